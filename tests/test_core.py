"""The core under sanitizers, and for arm64 under an emulator: compiled anew, with nothing but a compiler and cmake.

cpp_ext/tests/fuzz.cpp puts random shapes and bytes through all of the C interface and compares distances with sums in
float64; tests/c/hot_paths.c runs each kernel at its usual size, tests/c/every_call.c all of level 2. The seed is fixed,
so that a failure can be repeated with the command it prints. Run: python -m pytest tests/test_core.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import level2
import pytest

from edgealign import Bundle, kernels
from edgealign.bundle import package_bundle

CORE = Path(__file__).parents[1] / "cpp_ext"
C = Path(__file__).parent / "c"
SEED, ROUNDS, EMULATED_ROUNDS = 20261122, 400, 80
PATH = os.pathsep.join([os.environ["PATH"], sysconfig.get_path("scripts")])
FATAL = {"ASAN_OPTIONS": "abort_on_error=1:detect_leaks=1", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
SANITIZE = ("-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def run(*words: object, stdin: bytes = b"", **environ: str) -> str:
    command = [str(word) for word in words]
    environment = os.environ | {"PATH": PATH} | environ
    done = subprocess.run(command, input=stdin, capture_output=True, check=False, env=environment)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{out}\n{err}"
    return out


def build(folder: Path, compiler_prefix: str, flags: tuple[str, ...], *settings: str) -> None:
    """Puts fuzz, hot_paths, every_call and stand_in.so into the folder."""
    cc, cxx = f"{compiler_prefix}gcc", f"{compiler_prefix}g++"
    # -O1: a third of the time that -O3 takes to compile, and what optimizing breaks is no less visible.
    optimization = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O1", f"-DCMAKE_CXX_FLAGS={' '.join(flags)}")
    options = (f"-DCMAKE_CXX_COMPILER={cxx}", "-DEDGEALIGN_FUZZ=ON", *optimization, *settings)
    run("cmake", "-S", CORE, "-B", folder, "-G", "Ninja", *options)
    run("cmake", "--build", folder, "--target", "fuzz")
    run(cc, "-O1", "-shared", "-fPIC", C / "stand_in_runtime.c", "-o", folder / "stand_in.so", "-lm")
    link = (f"-I{CORE}/include", f"-L{folder}", f"-Wl,-rpath,{folder}", "-ledgealign", "-lm")
    for program in ("hot_paths", "every_call"):
        run(cc, "-O1", *flags, C / f"{program}.c", "-o", folder / program, *link)


def use(folder: Path, bundle: Bundle, instruction_set: str, n_rounds: int, *emulator: str) -> None:
    """Runs what was built, with the instruction set."""
    environ = FATAL | {"EDGEALIGN_INSTRUCTION_SET": instruction_set}
    stand_in, copy, store = folder / "stand_in.so", folder / "bundle", folder / "new.store"
    shutil.copytree(bundle.path, copy, dirs_exist_ok=True)
    store.unlink(missing_ok=True)
    heard = run(*emulator, folder / "every_call", stand_in, copy, store, stdin=level2.two_words().tobytes(), **environ)
    assert heard.splitlines()[1:] == ["2 heard, 0 dropped"]
    paths = run(*emulator, folder / "hot_paths", stand_in, package_bundle("speech"), store, **environ)
    assert paths == f"{instruction_set}\n"
    rounds = run(*emulator, folder / "fuzz", SEED, n_rounds, folder, stand_in, copy, **environ)
    assert rounds == f"{instruction_set} {n_rounds}\n"


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_address_and_undefined_behavior_sanitizers_find_nothing(toy_bundle: Bundle, tmp_path: Path) -> None:
    sets = tuple(dict.fromkeys(("baseline", kernels.instruction_set() or "baseline")))
    build(tmp_path, "", SANITIZE, f"-DEDGEALIGN_INSTRUCTION_SETS={';'.join(sets)}")
    for instruction_set in sets:
        use(tmp_path, toy_bundle, instruction_set, ROUNDS)


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("qemu-aarch64") is None,
    reason="no g++-aarch64-linux-gnu, or no qemu-user",
)
def test_the_core_for_arm64_computes_right(toy_bundle: Bundle, tmp_path: Path) -> None:
    build(tmp_path, "aarch64-linux-gnu-", (), "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")
    use(tmp_path, toy_bundle, "neon", EMULATED_ROUNDS, "qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
