"""What gets installed works from another directory: wheel, sdist, editable install, and the C library in them.

The wheel is built from the sdist, so that one build proves both. Run: python -m pytest tests/test_packaging.py
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgealign.store import RECORDING, Store

ROOT = Path(__file__).parents[1]
HEADER = ROOT / "cpp_ext" / "include" / "edgealign.h"
NOT_SOURCES = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "*.so", "build", "dist", "runs", "include", "lib", "bin"
)  # the last three are outputs of an editable install; cpp_ext/include is put back below
# cmake and ninja may be those that pip installed beside Python.
PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])


def run(*command: object, env: dict[str, str] | None = None, **options: object) -> str:
    options["env"] = (os.environ if env is None else env) | {"PATH": PATH}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command} said\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, so that builds leave nothing in it."""
    copy = tmp_path_factory.mktemp("sources") / "repository"
    shutil.copytree(ROOT, copy, ignore=NOT_SOURCES)
    shutil.copytree(ROOT / "cpp_ext" / "include", copy / "cpp_ext" / "include")
    return copy


@pytest.fixture(scope="module")
def sdist(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--skip-dependency-check", "-o", out, sources)
    return next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out, sdist)
    return next(out.glob("*.whl"))


def clean() -> dict[str, str]:
    """The environment without PYTHONPATH and the like, by which pip takes a folder for an installed edgealign."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@dataclass
class Environment:
    """A virtual environment that sees this one's packages, edgealign excepted."""

    python: Path
    site_packages: Path
    elsewhere: Path

    def run(self, program: str) -> str:
        return run(self.python, "-c", program, cwd=self.elsewhere, env=clean())


def environment(folder: Path) -> Environment:
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    site_packages = next((folder / "venv").glob("lib/python*/site-packages"))
    # A path in a .pth file adds that folder but none of the .pth files in it, so an editable edgealign stays unseen.
    (site_packages / "host.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    (folder / "elsewhere").mkdir()
    return Environment(folder / "venv" / "bin" / "python", site_packages, folder / "elsewhere")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = environment(tmp_path_factory.mktemp("installed"))
    run(sys.executable, "-m", "pip", "--python", made.python, "install", "--no-deps", "--no-index", wheel, env=clean())
    return made


@pytest.fixture(scope="module")
def editable(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = environment(tmp_path_factory.mktemp("editable"))
    install = ("install", "--no-deps", "--no-build-isolation", "-e", sources)
    run(sys.executable, "-m", "pip", "--python", made.python, *install, env=clean())
    return made


@pytest.fixture(scope="module", params=["installed", "editable"])
def either(request: pytest.FixtureRequest) -> Environment:
    return request.getfixturevalue(request.param)


def test_the_package_and_its_parts_import_from_elsewhere(either: Environment, sources: Path) -> None:
    program = """
import edgealign, edgealign.cli, edgealign.export, edgealign.store, edgealign.kernels
import pathlib, sys
print(edgealign.kernels.backend())
print(pathlib.Path(edgealign.__file__).parent)
print("torch" in sys.modules)
"""
    backend, where, has_torch = either.run(program).splitlines()
    assert backend == "native"
    assert Path(where) in (either.site_packages / "edgealign", sources / "edgealign")
    assert has_torch == "False"


@pytest.mark.parametrize("name", ["cli", "export", "cpp_ext", "tests", "benchmarks"])
def test_folders_of_the_repository_are_no_top_level_modules(either: Environment, name: str) -> None:
    assert either.run(f"import importlib.util; print(importlib.util.find_spec({name!r}))") == "None\n"


def test_the_console_script_runs(either: Environment) -> None:
    script = either.python.with_name("edgealign")
    assert "enroll" in run(script, "--help", cwd=either.elsewhere)


def test_a_store_is_written_and_read_elsewhere(either: Environment) -> None:
    program = """
from edgealign.store import Store
Store.create("speech", "00" * 32, 3).save("new.store")
print(Store.load("new.store").modality)
"""
    assert either.run(program) == "speech\n"


def test_the_wheel_holds_what_it_should_and_is_small(wheel: Path) -> None:
    assert re.fullmatch(r"edgealign-[\d.]+-cp311-abi3-\w+\.whl", wheel.name)
    assert wheel.stat().st_size <= 15e6
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"edgealign"}
    for needed in (
        "edgealign/_core.abi3.so",
        "edgealign/_torch_ops.so",
        "edgealign/cli/app.py",
        "edgealign/train/ops.py",
        "edgealign/include/edgealign.h",
        "edgealign/include/edgealign_rt.h",
        "edgealign/include/edgealign.hpp",
        "edgealign/bin/edgealign-rt",
        "edgealign/lib/libedgealign.so",
        "edgealign/lib/cmake/edgealign/edgealignConfig.cmake",
        "edgealign/lib/pkgconfig/edgealign.pc",
    ):
        assert needed in names
    # Whatever the repository has for the runtime to read is in the wheel too.
    for folder in ("bundles", "demo_clips"):
        for file in (ROOT / "edgealign" / folder).rglob("*"):
            assert file.is_dir() or file.relative_to(ROOT).as_posix() in names
    sources = {name for name in names if name.endswith((".cpp", ".hpp"))}
    assert sources == {"edgealign/include/edgealign.hpp"}


def test_the_sdist_holds_the_sources_and_no_build_outputs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("cpp_ext", "cli", "edgealign", "tests"):
        for file in (ROOT / folder).rglob("*.[ch]pp"):
            name = file.relative_to(ROOT).as_posix()
            assert name in names or name.startswith("edgealign/include/")  # output of an editable install
    assert {"LICENSE", "pyproject.toml", "cpp_ext/CMakeLists.txt", "cpp_ext/build.py", "cli/app.py"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


@pytest.mark.parametrize(("version", "fits"), [("2.9.1", False), ("2.10.0", True), ("2.13.0+cpu", True), ("3.0", True)])
def test_operators_are_built_for_a_torch_that_has_their_abi(
    version: str, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("build_bridge", ROOT / "cpp_ext" / "build.py")
    bridge = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bridge)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(tmp_path), "platlib": str(tmp_path)})
    assert bridge.torch_include() is None
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.py").write_text(f"__version__ = '{version}'\ndebug = False\n")
    assert bridge.torch_include() == (tmp_path / "torch" / "include" if fits else None)


# ---- the C library ----


@pytest.fixture(scope="module")
def c_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program in the comment at the top of the header, as a file."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    comment = re.search(r"\n\n((?:       .*\n|\n)+)", HEADER.read_text()).group(1)
    file = tmp_path_factory.mktemp("c") / "program.c"
    file.write_text(re.sub(r"^       ", "", comment, flags=re.MULTILINE))
    return file


@pytest.fixture(scope="module")
def c_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "speech.store"
    store = Store.create("speech", "00" * 32, 3)
    rows = np.eye(3, dtype=np.float32)
    store.add("moto", rows[1:], RECORDING, [b"0" * 32, b"1" * 32], ["", ""])
    store.add("maji 💧", rows[:1], RECORDING, [b"2" * 32], [""])
    store.save(path)
    return path


C99 = ("gcc", "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")


def check_program(program: Path, store: Path) -> None:
    """The program asks for the first axis, which is where the second label lies."""
    assert run(program, store) == "maji 💧 0.0000 accepted\n"
    missing = subprocess.run([program, "missing.store"], capture_output=True, text=True, check=False)
    assert (missing.returncode, missing.stderr) == (1, "there is no store at 'missing.store'\n")


def test_the_program_of_the_header_compiles_as_c99(c_program: Path, c_store: Path, installed: Environment) -> None:
    home = installed.site_packages / "edgealign"
    built = c_program.with_name("direct")
    flags = (f"-I{home}/include", f"-L{home}/lib", f"-Wl,-rpath,{home}/lib", "-ledgealign")
    run(*C99, c_program, "-o", built, *flags)
    check_program(built, c_store)


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="no valgrind")
def test_the_program_of_the_header_leaks_nothing(c_program: Path, c_store: Path, installed: Environment) -> None:
    home = installed.site_packages / "edgealign"
    built = c_program.with_name("checked")
    flags = (f"-I{home}/include", f"-L{home}/lib", f"-Wl,-rpath,{home}/lib", "-ledgealign")
    run(*C99, "-g", c_program, "-o", built, *flags)
    check = ("valgrind", "-q", "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=all")
    assert run(*check, "--errors-for-leak-kinds=all", built, c_store) == "maji 💧 0.0000 accepted\n"


def cmake(source: Path, build: Path, *settings: object) -> None:
    run("cmake", "-S", source, "-B", build, "-G", "Ninja", *settings)
    run("cmake", "--build", build)


@pytest.fixture(scope="module")
def by_cmake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core as cmake alone installs it. Returns the prefix."""
    folder = tmp_path_factory.mktemp("by_cmake")
    cmake(ROOT / "cpp_ext", folder / "build")
    run("cmake", "--install", folder / "build", "--prefix", folder / "prefix")
    return folder / "prefix"


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="no pkg-config")
@pytest.mark.parametrize("built_by", ["wheel", "distribution"])
def test_the_library_is_found_by_pkg_config(
    c_program: Path, c_store: Path, built_by: str, request: pytest.FixtureRequest
) -> None:
    if built_by == "wheel":
        lib = request.getfixturevalue("installed").site_packages / "edgealign" / "lib"
    else:  # which has folders of its own for architectures, and packages
        folder = request.getfixturevalue("by_cmake").parent
        cmake(
            ROOT / "cpp_ext", folder / "build",
            "-DCMAKE_INSTALL_LIBDIR=lib/an-architecture", "-DCMAKE_INSTALL_INCLUDEDIR=include/edgealign",
        )  # fmt: skip
        run("cmake", "--install", folder / "build", "--prefix", folder / "usr")
        lib = folder / "usr" / "lib" / "an-architecture"
    environ = os.environ | {"PKG_CONFIG_PATH": str(lib / "pkgconfig")}
    flags = run("pkg-config", "--cflags", "--libs", "edgealign", env=environ).split()
    built = c_program.with_name(f"by_pkg_config_of_{built_by}")
    run(*C99, c_program, "-o", built, *flags, f"-Wl,-rpath,{lib}")
    check_program(built, c_store)


@pytest.mark.parametrize("built_by", ["wheel", "cmake"])
def test_the_library_is_found_by_cmake(
    c_program: Path, c_store: Path, built_by: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if built_by == "wheel":
        prefix = request.getfixturevalue("installed").site_packages / "edgealign"
    else:
        prefix = request.getfixturevalue("by_cmake")
    shutil.copy(c_program, tmp_path / "program.c")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\n"
        "project(consumer C)\n"
        "find_package(edgealign 0.1 REQUIRED)\n"
        "add_executable(program program.c)\n"
        "target_link_libraries(program PRIVATE edgealign::edgealign)\n"
    )
    cmake(tmp_path, tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    check_program(tmp_path / "build" / "program", c_store)


def test_the_core_can_be_a_part_of_another_project(c_program: Path, tmp_path: Path) -> None:
    shutil.copy(c_program, tmp_path / "program.c")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\n"
        "project(consumer C CXX)\n"
        f'add_subdirectory("{ROOT}/cpp_ext" core)\n'
        "add_executable(program program.c)\n"
        "target_link_libraries(program PRIVATE edgealign::edgealign)\n"
    )
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build", "-G", "Ninja")  # fails where a target is not there
    assert (tmp_path / "build" / "build.ninja").is_file()


def test_the_library_shows_nothing_but_its_interface(installed: Environment) -> None:
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    library = installed.site_packages / "edgealign" / "lib" / "libedgealign.so"
    shown = set(re.findall(r" [A-Za-z] (\w+)", run("nm", "-D", "--defined-only", library)))
    headers = "".join(header.read_text() for header in (HEADER, HEADER.with_name("edgealign_rt.h")))
    declared = set(re.findall(r"EA_(?:API|KERNEL) [\w *]+?\b(ea_\w+)\(", headers))
    assert shown == declared


def test_the_declared_python_abi_is_pythons(tmp_path: Path) -> None:
    """The binding declares by hand what it needs of the stable ABI; Python's own header has the last word."""
    include = Path(sysconfig.get_paths()["include"])
    if not (include / "Python.h").is_file() or shutil.which("g++") is None:
        pytest.skip("no g++, or no Python.h to compare with")
    fields = {
        "PyObject": (),
        "Py_buffer": ("buf", "obj", "len", "itemsize", "readonly", "ndim", "format", "shape", "strides", "suboffsets"),
        "PyMethodDef": (("name", "ml_name"), ("function", "ml_meth"), ("flags", "ml_flags"), ("doc", "ml_doc")),
        "PyModuleDef": (
            ("name", "m_name"), ("doc", "m_doc"), ("size", "m_size"), ("methods", "m_methods"), ("slots", "m_slots"),
            ("traverse", "m_traverse"), ("clear", "m_clear"), ("free", "m_free"),
        ),
    }  # fmt: skip
    constants = ("METH_FASTCALL", "PYTHON_ABI_VERSION", "PyBUF_WRITABLE", "PyBUF_FORMAT", "PyBUF_C_CONTIGUOUS")
    printed = []
    for i, header in enumerate(("python_abi.h", "Python.h")):
        lines = [f"sizeof({struct})" for struct in fields]
        for struct, names in fields.items():
            lines += [f"offsetof({struct}, {name if isinstance(name, str) else name[i]})" for name in names]
        lines += [f"int({constant})" for constant in constants]
        source = tmp_path / f"abi{i}.cpp"
        body = "".join(f'std::printf("%zu\\n", size_t({line}));' for line in lines)
        source.write_text(
            f"#define Py_LIMITED_API 0x030b0000\n#include <{header}>\n#include <cstddef>\n#include <cstdio>\n"
            f"int main() {{ {body} }}\n"
        )
        run("g++", "-w", f"-I{ROOT}/cpp_ext/bind", f"-I{include}", source, "-o", tmp_path / f"abi{i}")
        printed.append(run(tmp_path / f"abi{i}"))
    assert printed[0] == printed[1]
