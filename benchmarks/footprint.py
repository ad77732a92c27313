"""What the runtime weighs: the wheel, a fresh environment with it and its dependencies, and its import time there.

    python -m benchmarks.footprint

Builds the wheel of this source tree and installs it, without extras, into a new virtual environment; needs a C++
compiler and the package index.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from benchmarks import rows
from benchmarks.environments import run, tree_bytes
from benchmarks.latency import cold_rows

ROOT = Path(__file__).parent.parent
N_IMPORTS = 15
LISTED_BYTES = 1e6


def copy_source(target: Path) -> Path:
    """The source tree as git would have it, so that nothing left over from an earlier build gets into the wheel."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target


def measure() -> list[dict]:
    made = []
    with tempfile.TemporaryDirectory() as folder:
        source = copy_source(Path(folder) / "source")
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source)
        (wheel,) = Path(folder).glob("*.whl")
        made.append(_size("wheel", wheel.name, wheel.stat().st_size))
        environment = Path(folder) / "environment"
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        site = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        empty, before = tree_bytes(site), {path.name for path in site.iterdir()}
        run(python, "-I", "-m", "pip", "install", "--quiet", wheel)
        made.append(_size("installed", "edgealign and all of its dependencies", tree_bytes(site) - empty))
        added = [path for path in site.iterdir() if path.is_dir() and path.name not in before]
        packages = sorted(((tree_bytes(path), path.name) for path in added), reverse=True)
        made += [_size("installed", name, size) for size, name in packages if size > LISTED_BYTES]
        # -I keeps the source tree, where this runs, off the path.
        commands = {f"import {name}": [python, "-I", "-c", f"import {name}"] for name in ("numpy", "edgealign")}
        made += cold_rows(commands, "import numpy", N_IMPORTS)

    from edgealign import machine

    common = {"machine": machine.describe(), "commit": rows.commit(), "command": rows.command("footprint")}
    return [row | common for row in made]


def _size(what: str, of: str, n_bytes: int) -> dict:
    return {"what": what, "stage": of, "value": round(n_bytes / 1e6, 3), "unit": "MB"}


if __name__ == "__main__":
    rows.show(rows.remeasured("footprint", __doc__, measure))
