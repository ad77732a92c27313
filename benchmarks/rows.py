"""Rows: one JSON object per measured number, with what is needed to measure it again."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parent / "rows"


def default_cache() -> Path:
    """Where things that can be made again are kept: $XDG_CACHE_HOME/edgealign."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgealign"


def commit() -> str | None:
    """The commit of the source tree, with "+changes" where measured code differs from it; None outside of git."""
    tree = Path(__file__).parent.parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=tree, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "-uno", "--", "edgealign", "cpp_ext", "cli", "benchmarks/*.py")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def command(module: str) -> str:
    """The command line that is running, as one would type it."""
    return shlex.join(["python", "-m", f"benchmarks.{module}", *sys.argv[1:]])


def read(path: Path) -> list[dict]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def remeasured(module: str, doc: str, measure: Callable[[], list[dict]]) -> list[dict]:
    """The command line of a benchmark whose rows are a file of their own: measures, and replaces the file."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=doc.partition("\n")[0])
    parser.add_argument("--rows", type=Path, default=FOLDER / f"{module}.jsonl", help="JSONL file to write")
    arguments = parser.parse_args()
    made = measure()
    replace(arguments.rows, made, ())
    return made


def replace(path: Path, new_rows: list[dict], key: tuple[str, ...]) -> None:
    """Put rows into a JSONL file; earlier rows that agree with a new one in all fields of the key are dropped.

    An empty key replaces the whole file.
    """

    def identity(row: dict) -> tuple:
        return tuple(row.get(field) for field in key)

    replaced = {identity(row) for row in new_rows}
    kept = [row for row in read(path) if identity(row) not in replaced]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept + new_rows)
    path.write_text(text, encoding="utf-8")


def show(made: list[dict]) -> None:
    """Prints times and sizes, a line each."""
    for row in made:
        number = f"{row['value']:10.3f} {row['unit']}" if "value" in row else f"{row['median_ms']:10.3f} ms"
        ratio = f"  {row['ratio']} x {row['ratio_to']}" if "ratio" in row else ""
        ratio += f" ({row['cpu_ratio']} x in processor time)" if "cpu_ratio" in row else ""
        memory = f"  peak {row['peak_rss_mb']} MB" if "peak_rss_mb" in row else ""
        print(f"{row['what']:40} {row['stage']:24} {number}{ratio}{memory}")
