"""What the runtime imports, never torch, and how little memory it needs; benchmarks/latency.py measures its time."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_bundle import word_clip

from edgealign import Bundle, demo
from edgealign.bundle import package_bundle
from edgealign.machine import cpu_cores

RATE_HZ = 16_000


def run(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **environment},
    )


NO_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails from here on
sys.argv = ["edgealign", *sys.argv[1:]]
from edgealign.cli.app import main
try:
    main()
finally:
    heavy = {"torch", "scipy", "matplotlib", "onnx", "pandas", "rich", "pydantic"} & {
        name.partition(".")[0] for name, module in sys.modules.items() if module is not None
    }
    assert not heavy, heavy
"""


def test_no_name_of_the_package_stands_in_front_of_a_module() -> None:
    done = run(
        "import pkgutil, edgealign\n"
        "names = [m.name for m in pkgutil.iter_modules(edgealign.__path__[:1]) if m.name != '_core']\n"
        "assert 'annotations' in names\n"
        "print(*(name for name in names if name in vars(edgealign)))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_the_runtime_works_where_torch_cannot_be_imported(
    toy_bundle: Bundle, samples_folder: Path, tmp_path: Path
) -> None:
    environment = {"EDGEALIGN_BUNDLE": toy_bundle.path, "EDGEALIGN_STORE": str(tmp_path)}
    clip = samples_folder / "maji" / "voice0.wav"
    for arguments in (
        ["enroll", "--modality", "speech", samples_folder],
        ["enroll", "--text", "maji"],
        ["classify", clip],
        ["classify", clip, "--format", "json"],
        ["embed", clip, "-o", tmp_path / "out.npz"],
        ["store", "info"],
        ["bundle", "verify"],
        ["doctor"],
        ["bench"],
        ["--help"],
    ):
        ran = run(NO_TORCH, *arguments, **environment)
        assert ran.returncode == 0, (arguments, ran.stderr)


def test_the_shipped_bundle_is_not_checked_like_that_of_a_stranger(tmp_path: Path) -> None:
    samples, clip = shipped_clips()
    code = (
        "import sys; from edgealign import Recognizer; recognizer = Recognizer.open(sys.argv[1]);"
        "recognizer.enroll([sys.argv[2]]); recognizer.classify(sys.argv[3]); print(*sys.modules)"
    )
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    ran = run(code, tmp_path / "words.store", samples, clip, **environment)
    assert ran.returncode == 0, ran.stderr
    assert not {"edgealign.onnx_check", "edgealign.first_load"} & set(ran.stdout.split())
    assert not (tmp_path / "cache" / "edgealign").exists()


def test_a_command_does_not_wait_for_the_others(toy_bundle: Bundle, samples_folder: Path, tmp_path: Path) -> None:
    code = """
import sys
from edgealign.cli.app import main
try:
    main()
finally:
    print(*sorted(name for name in sys.modules if name.startswith("edgealign.cli.")), file=sys.stderr)
"""
    environment = {"EDGEALIGN_BUNDLE": toy_bundle.path, "EDGEALIGN_STORE": str(tmp_path)}
    assert run(code, "enroll", samples_folder, **environment).returncode == 0
    ran = run(code, "classify", samples_folder / "maji" / "voice0.wav", **environment)
    assert ran.returncode == 0
    modules = {name.removeprefix("edgealign.cli.") for name in ran.stderr.splitlines()[-1].split()}
    assert modules == {"answers", "app", "lazy", "options", "output"}


def test_importing_edgealign_imports_nothing_heavy() -> None:
    code = (
        "import sys; before = set(sys.modules); import edgealign;"
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('edgealign')))"
    )
    ran = run(code)
    assert not set(ran.stdout.split()) & {"numpy", "onnxruntime", "soundfile", "typer", "importlib.metadata"}


def test_public_names_are_those_that_are_documented() -> None:
    import edgealign

    assert set(edgealign.__all__) == {"Bundle", "EdgealignError", "Recognizer", "Store", "__version__"}
    assert all(hasattr(edgealign, name) for name in edgealign.__all__)
    assert set(edgealign.__all__) <= set(dir(edgealign))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = edgealign.nothing


def test_the_version_is_the_one_that_is_packaged() -> None:
    import tomllib

    import edgealign

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert edgealign.__version__ == project["version"]


def shipped_clips() -> tuple[str, str]:
    """The demo's folder of labels, and one of its clips."""
    entries = json.loads((Path(demo.CLIPS) / "manifest.json").read_text(encoding="utf-8"))
    enrolled = next(entry["file"] for entry in entries if entry["role"] == "enroll")
    query = next(entry["file"] for entry in entries if entry["role"] == "query")
    return str((Path(demo.CLIPS) / enrolled).parents[1]), str(Path(demo.CLIPS) / query)


CLASSIFY_AND_PEAK = """
import json, sys
from edgealign import Recognizer
from edgealign.machine import peak_rss_mb
answer = Recognizer.open().classify(sys.argv[1])
print(json.dumps([answer.label, answer.start_s, list(answer.warnings), peak_rss_mb()]))
"""


def test_ten_hours_are_searched_in_little_memory(toy_bundle: Bundle, samples_folder: Path, tmp_path: Path) -> None:
    """A sparse file, so that it costs no disk: digital silence with two words, one of them fainter."""
    from edgealign import Recognizer

    Recognizer(toy_bundle, tmp_path / "speech.store").enroll(samples_folder)
    n_samples = 10 * 3600 * RATE_HZ
    path = tmp_path / "tape.wav"
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + 2 * n_samples, b"WAVE", b"fmt ", 16, 1, 1, RATE_HZ,
                         2 * RATE_HZ, 2, 16, b"data", 2 * n_samples)  # fmt: skip
    with path.open("wb") as file:
        file.write(header)
        for at_s, loudness, word in ((3600, 0.1, 1), (27_182, 1.0, 0)):
            file.seek(len(header) + 2 * at_s * RATE_HZ)
            file.write((loudness * word_clip(word, 90) * 2**15).astype("<i2").tobytes())
        file.truncate(len(header) + 2 * n_samples)
    assert soundfile.info(path).duration == 36_000
    environment = {"EDGEALIGN_BUNDLE": toy_bundle.path, "EDGEALIGN_STORE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ran = run(CLASSIFY_AND_PEAK, path, **environment)
    assert ran.returncode == 0, ran.stderr
    label, start_s, warnings, peak_mb = json.loads(ran.stdout)
    assert label == "maji"
    assert start_s == pytest.approx(27_182.15, abs=0.2)
    assert "600 min" in warnings[0] and "scan" in warnings[0]
    assert peak_mb <= 90, peak_mb


def test_one_clip_needs_little_memory(tmp_path: Path) -> None:
    from edgealign import Recognizer

    samples_folder, clip = shipped_clips()
    Recognizer(Bundle.open(package_bundle("speech")), tmp_path / "speech.store").enroll(samples_folder)
    environment = {"EDGEALIGN_BUNDLE": package_bundle("speech"), "EDGEALIGN_STORE": str(tmp_path)}
    ran = run(CLASSIFY_AND_PEAK, clip, OMP_NUM_THREADS="1", **environment)
    *_, peak_mb = json.loads(ran.stdout)
    assert peak_mb <= 90


def test_samples_of_any_dtype_do_not_change_in_place(toy_bundle: Bundle, tmp_path: Path) -> None:
    from edgealign import Recognizer

    samples = word_clip(0)
    kept = samples.copy()
    Recognizer(toy_bundle, tmp_path / "words.store").enroll([samples], label="maji", sample_rate_hz=RATE_HZ)
    assert np.array_equal(samples, kept)


def test_nothing_is_left_behind_for_reports_of_use(tmp_path: Path) -> None:
    """ONNX Runtime from 1.32 on writes a device id into the cache folder when it may report."""
    encoder = Path(package_bundle("speech"), "encoder.onnx")
    code = "import sys, edgealign, onnxruntime; onnxruntime.InferenceSession(sys.argv[1])"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, encoder], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0 and not list(tmp_path.iterdir()), done.stderr


@pytest.mark.parametrize(("siblings", "cores"), [(["0-1", "0-1"], 1), (["0", "1"], 2), ([], None)])
def test_two_threads_of_one_core_are_one_core(tmp_path: Path, siblings: list[str], cores: int | None) -> None:
    for number, shared in enumerate(siblings):
        topology = tmp_path / f"cpu{number}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{shared}\n")
    assert cpu_cores(str(tmp_path)) == cores
