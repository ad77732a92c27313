"""What setuptools calls to compile: one cmake build for the core and its bindings, installed beside the Python code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools.command.build_ext import build_ext

SOURCE = Path(__file__).resolve().parent
FIRST_TORCH = (2, 10)  # whose stable ABI bind/torch.cpp is written for


def torch_include() -> Path | None:
    """The torch headers of the environment that is installed into, if it has any that are new enough.

    Inside pip's isolated build, sys.path hides that environment, but sysconfig still names its folders.
    """
    for scheme in ("purelib", "platlib"):
        torch = Path(sysconfig.get_paths()[scheme]) / "torch"
        if (torch / "version.py").is_file():
            found = re.search(r"__version__ = '(\d+)\.(\d+)", (torch / "version.py").read_text())
            if found and tuple(map(int, found.groups())) >= FIRST_TORCH:
                return torch / "include"
    return None


def tool(name: str) -> str:
    """Path of cmake or ninja: of the system, or as pip installs them beside Python."""
    found = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: build with pip's build isolation, or pip install {name}")
    return found


class BuildExt(build_ext):
    """Builds everything with cmake in place of compiling the sources that pyproject.toml lists."""

    def build_extension(self, ext: object) -> None:
        work = Path(self.build_temp).resolve()
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "EDGEALIGN_PREFIX": "edgealign/",
            "EDGEALIGN_PYTHON": "ON",
            "EDGEALIGN_TORCH_INCLUDE": torch_include() or "",
        }
        # cmake's own choice would be make, which a machine with only a compiler may not have.
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
        settings = [f"-D{name}={value}" for name, value in options.items()]
        subprocess.run([tool("cmake"), "-S", SOURCE, "-B", work, *generator, *settings], check=True)
        subprocess.run([tool("cmake"), "--build", work], check=True)
        self.install(Path(self.build_lib).resolve())

    def copy_extensions_to_source(self) -> None:
        """For an editable install: what was built goes beside the Python code, where git ignores it."""
        self.install(SOURCE.parent)

    def install(self, prefix: Path) -> None:
        # cmake writes over old files in place, which would crash a process that has them loaded.
        for old in (prefix / "edgealign").rglob("*.so"):
            old.unlink()
        subprocess.run([tool("cmake"), "--install", self.build_temp, "--prefix", prefix], check=True)

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".abi3.so"
