"""How many instructions the hot paths of the core take, by valgrind: a number that no other process disturbs.

    python -m benchmarks.instructions            compares with benchmarks/rows/instructions.jsonl
    python -m benchmarks.instructions --update   writes the numbers of this build there

Counts are of the instruction set that valgrind emulates, AVX2 at the most, and of one compiler and C library; a row
names both, and nothing is compared across them.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import edgealign
from benchmarks import rows

ROWS = rows.FOLDER / "instructions.jsonl"
TOLERANCE = 0.03  # more instructions than the row by this share are a regression; allocators and caches take less
HOME = Path(edgealign.__file__).parent
ROOT = Path(__file__).parent.parent
C = ROOT / "tests" / "c"
PATHS = {
    "path_packed_distances": "cosine distances, 64 x 1000 x 192",
    "path_packed_distances_int8": "the same, int8",
    "path_packed_nearest": "5 nearest, 64 x 1000 x 192",
    "path_log_mel": "log-mel of 1 s",
    "path_word_finding": "word finding in 1 s",
    "path_store_open": "open a store of 200 labels x 5",
    "path_match": "match among 200 labels",
    "path_model_open": "open the bundle, without ONNX Runtime",
    "path_pcm_to_embedding": "PCM of 1 s to embedding, without the encoder (mean of the first and the second clip)",
}
N_CALLS = {"path_pcm_to_embedding": 2}


def missing() -> str | None:
    """What is needed and not there; None if all is."""
    tools = [name for name in ("gcc", "valgrind", "callgrind_annotate") if shutil.which(name) is None]
    if tools:
        return f"no {' and no '.join(tools)}"
    if not list(HOME.glob("lib/libedgealign.so")):
        return "no compiled core"
    return None


def count() -> list[dict]:
    """One row for each path."""
    with tempfile.TemporaryDirectory() as folder:
        program, stand_in, counts = (Path(folder) / name for name in ("hot_paths", "stand_in.so", "counts"))
        link = (f"-I{ROOT}/cpp_ext/include", f"-L{HOME}/lib", f"-Wl,-rpath,{HOME}/lib", "-ledgealign", "-lm")
        _run("gcc", "-O1", "-shared", "-fPIC", C / "stand_in_runtime.c", "-o", stand_in, "-lm")
        _run("gcc", "-O1", "-g", C / "hot_paths.c", "-o", program, *link)
        instruction_set = _run(
            "valgrind", "-q", "--tool=callgrind", "--toggle-collect=path_*", f"--callgrind-out-file={counts}",
            program, stand_in, HOME / "bundles" / "speech", Path(folder) / "speech.store",
        ).strip()  # fmt: skip
        listed = _run("callgrind_annotate", "--inclusive=yes", "--threshold=100", "--auto=no", counts)
    common = {"unit": "instructions", "instruction_set": instruction_set, **_toolchain()}
    return [
        {"what": what, "path": path, "instructions": _inclusive(listed, path) // N_CALLS.get(path, 1), **common}
        for path, what in PATHS.items()
    ]


def comparable(row: dict, other: dict) -> bool:
    return all(row[key] == other[key] for key in ("path", "instruction_set", "compiler", "libc"))


def compare(made: list[dict], committed: list[dict]) -> list[tuple[dict, float | None]]:
    """Each row with its share of the committed number, None where that is of another compiler or machine."""
    known = [[old["instructions"] for old in committed if comparable(row, old)] for row in made]
    return [(row, row["instructions"] / old[0] if old else None) for row, old in zip(made, known, strict=True)]


def _inclusive(listed: str, path: str) -> int:
    found = re.search(rf"^\s*([\d,]+) \([^)]*\)  \S*:{path}(?: |$)", listed, flags=re.MULTILINE)
    if not found:
        raise RuntimeError(f"callgrind_annotate does not list {path}:\n{listed}")
    return int(found[1].replace(",", ""))


def _toolchain() -> dict[str, str]:
    built_by = re.search(rb"GCC: \([^)]*\) [\d.]+", (HOME / "lib" / "libedgealign.so").read_bytes())
    return {"compiler": built_by[0].decode() if built_by else "unknown", "libc": " ".join(platform.libc_ver())}


def _run(*words: object) -> str:
    # Symbols are looked up at the start, not within the first call.
    environment = os.environ | {"LD_BIND_NOW": "1"}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"'{' '.join(map(str, words))}' ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__.partition("\n")[0])
    parser.add_argument("--update", action="store_true", help="write the numbers instead of comparing with them")
    arguments = parser.parse_args()
    lacking = missing()
    if lacking:
        sys.exit(lacking)
    compared = compare(count(), rows.read(ROWS))
    for row, share in compared:
        print(f"{row['instructions']:12,}  {'new' if share is None else f'{share - 1:+.1%}':>7}  {row['what']}")
    if arguments.update:
        from edgealign import machine

        common = {"machine": machine.describe(), "commit": rows.commit(), "command": rows.command("instructions")}
        key = ("path", "instruction_set", "compiler", "libc")
        rows.replace(ROWS, [row | common for row, _ in compared], key)
    elif any(share is not None and share > 1 + TOLERANCE for _, share in compared):
        sys.exit(f"more than {TOLERANCE:.0%} above the committed number: find out why, or commit with --update")


if __name__ == "__main__":
    main()
