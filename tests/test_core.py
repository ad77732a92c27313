"""The core under sanitizers, and on arm64 under an emulator: random shapes and bytes, results against sums in float64.

The program is cpp_ext/tests/fuzz.cpp; the seed is fixed, so that a failure can be repeated with the command it prints.
Run: python -m pytest tests/test_core.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from edgealign import kernels

CORE = Path(__file__).parents[1] / "cpp_ext"
SEED, ROUNDS = 20261122, 60
PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
FATAL = {"ASAN_OPTIONS": "abort_on_error=1:detect_leaks=1", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}


def run(*words: object, **environ: str) -> str:
    command = [str(word) for word in words]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PATH": PATH} | environ
    )
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def built(folder: Path, *settings: str) -> Path:
    run("cmake", "-S", CORE, "-B", folder, "-G", "Ninja", "-DEDGEALIGN_FUZZ=ON", *settings)
    run("cmake", "--build", folder, "--target", "fuzz")
    return folder / "fuzz"


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_address_and_undefined_behavior_sanitizers_find_nothing(tmp_path: Path) -> None:
    widest = kernels.instruction_set() or "baseline"
    fuzz = built(
        tmp_path,
        "-DCMAKE_CXX_COMPILER=g++",
        f"-DEDGEALIGN_INSTRUCTION_SETS={';'.join(dict.fromkeys(('baseline', widest)))}",
        "-DCMAKE_CXX_FLAGS=-g1 -fsanitize=address,undefined -fno-sanitize-recover=all",
    )
    for instruction_set in dict.fromkeys(("baseline", widest)):
        printed = run(fuzz, SEED, ROUNDS, tmp_path, EDGEALIGN_INSTRUCTION_SET=instruction_set, **FATAL)
        assert printed == f"{instruction_set} {ROUNDS}\n"


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("qemu-aarch64") is None,
    reason="no g++-aarch64-linux-gnu, or no qemu-user",
)
def test_the_core_for_arm64_computes_right(tmp_path: Path) -> None:
    fuzz = built(
        tmp_path,
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
    )
    printed = run("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", fuzz, SEED, ROUNDS, tmp_path)
    assert printed == f"neon {ROUNDS}\n"
