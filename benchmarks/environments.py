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
from benchmarks.footprint import run, tree_bytes

# Pinned, so that a row can be measured again.
REQUIREMENTS = {
    "openwakeword": ("openwakeword==0.5.1",),
    "sherpa-onnx": ("sherpa-onnx==2.0.1", "kaldi-native-fbank==1.23.0", "numpy==2.4.6"),
    "librosa": ("librosa==0.11.0", "scikit-learn==1.7.2"),
}


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

    def versions(self) -> dict[str, str]:
        """Package -> version, of what was asked for."""
        listed = subprocess.run(
            [self.python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True
        ).stdout.split()
        return dict(line.split("==") for line in listed if "==" in line)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.environments", description=__doc__.partition("\n")[0])
    parser.add_argument("--cache", type=Path, default=rows.default_cache())
    arguments = parser.parse_args()
    for name in REQUIREMENTS:
        print(f"{name:15} {Environment(name, arguments.cache).installed_mb:8.1f} MB")


if __name__ == "__main__":
    main()
