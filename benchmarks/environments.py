"""Environments of the rivals: a virtual environment each, so that none of them runs with another's dependencies.

python -m benchmarks.environments      makes those that are missing, under the cache folder
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import venv
from pathlib import Path

from benchmarks import rows

# Pinned, so that a row can be measured again.
REQUIREMENTS = {
    "openwakeword": ("openwakeword==0.5.1",),
    "sherpa-onnx": ("sherpa-onnx==2.0.1", "kaldi-native-fbank==1.23.0", "numpy==2.4.6"),
    "librosa": ("librosa==0.11.0", "scikit-learn==1.7.2"),
}


def tree_bytes(folder: Path) -> int:
    """Bytes of all files below a folder, links not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def run(*words: str | Path) -> None:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"'{' '.join(map(str, words))}' ended with {done.returncode}:\n{done.stdout}{done.stderr}")


class Environment:
    """A virtual environment with one rival in it; made when it is not there yet.

    python     its interpreter
    installed_mb   what the requirements and all that they need take, in 10^6 bytes
    """

    def __init__(self, name: str, cache: Path) -> None:
        requirements = REQUIREMENTS[name]
        digest = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:12]
        folder = cache / "environments" / f"{name}-{digest}"
        self.python = folder / "bin" / "python"
        size = folder / "installed_bytes"
        if not size.exists():
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            (site,) = folder.glob("lib/python*/site-packages")
            before = tree_bytes(site)
            run(self.python, "-m", "pip", "install", "--quiet", *requirements)
            size.write_text(str(tree_bytes(site) - before))
        self.installed_mb = int(size.read_text()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.environments", description=__doc__.partition("\n")[0])
    parser.add_argument("--cache", type=Path, default=rows.default_cache())
    arguments = parser.parse_args()
    for name in REQUIREMENTS:
        print(f"{name:15} {Environment(name, arguments.cache).installed_mb:8.1f} MB")


if __name__ == "__main__":
    main()
