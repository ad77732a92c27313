"""The example apps do what they say. Run: python -m pytest tests/test_examples.py"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import level2
import numpy as np
import pytest
import soundfile
from toy_bundle import word_clip

import edgealign
from edgealign import Bundle, Recognizer

ROOT = Path(__file__).parents[1]
HOME = Path(edgealign.__file__).parent
RATE = 16_000
WORDS = ("maji", "moto", "ndege")


@pytest.fixture(scope="module")
def store(toy_bundle: Bundle, samples_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("examples") / "words.store"
    Recognizer(toy_bundle, path).enroll(samples_folder)
    return path


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three words a second apart."""
    samples = np.concatenate([word_clip(word, 10 + word, silence_s=0.5) for word in range(3)])
    samples += 1e-4 * np.random.default_rng(0).normal(size=len(samples)).astype(np.float32)
    path = tmp_path_factory.mktemp("tape") / "in.wav"
    soundfile.write(path, samples, RATE, subtype="PCM_16")
    return path


def chunks(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    assert struct.unpack_from("<4sI4s", data) == (b"RIFF", len(data) - 8, b"WAVE")
    found, at = {}, 12
    while at < len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        found[name.decode()] = data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    assert at == len(data)
    return found


def check_recording(out: Path, tape: Path) -> dict[str, bytes]:
    assert np.array_equal(soundfile.read(out, dtype="int16")[0], soundfile.read(tape, dtype="int16")[0])
    rows = [line.split("\t") for line in out.with_suffix(".txt").read_text().splitlines()]
    assert [row[2].split()[0] for row in rows] == list(WORDS)
    assert all(float(start) < float(end) for start, end, _ in rows)
    found = chunks(out)
    guano = dict(line.split(":", 1) for line in found["guan"].decode().splitlines())
    assert guano["GUANO|Version"] == "1.0"
    assert guano["Note"] == "3 marked words"
    return found


@pytest.mark.skipif(shutil.which("gcc") is None or level2.ONNXRUNTIME is None, reason="no gcc, or no shared runtime")
def test_the_field_recorder_marks_words_while_it_records(
    toy_bundle: Bundle, store: Path, tape: Path, tmp_path: Path
) -> None:
    program = tmp_path / "field_recorder"
    alsa = ("-DHAVE_ALSA", "-lasound") if Path("/usr/include/alsa/asoundlib.h").exists() else ()
    subprocess.run(
        ["gcc", "-std=c11", "-pedantic", "-Wall", "-Wextra", "-Werror",
         ROOT / "examples" / "field-recorder" / "field_recorder.c", "-o", program, f"-I{ROOT}/cpp_ext/include",
         f"-L{HOME}/lib", f"-Wl,-rpath,{HOME}/lib", "-ledgealign", *alsa],
        check=True,
    )  # fmt: skip
    out = tmp_path / "out.wav"
    words = [program, level2.ONNXRUNTIME, toy_bundle.path, store, out]
    done = subprocess.run([*words, tape], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = check_recording(out, tape)
    (n_cues,) = struct.unpack_from("<I", found["cue "])
    places = [struct.unpack_from("<IIIIII", found["cue "], 4 + 24 * i)[5] / RATE for i in range(n_cues)]
    starts = [float(line.split("\t")[0]) for line in out.with_suffix(".txt").read_text().splitlines()]
    assert places == pytest.approx(starts, abs=1e-3)
    assert all(word.encode() in found["LIST"] for word in WORDS)
    again = subprocess.run([*words, tape], capture_output=True, text=True, check=False)
    assert (again.returncode, "exists" in again.stderr) == (1, True)
    check_recording(out, tape)
    (tmp_path / "notes.txt").write_text("not by this program")
    beside = subprocess.run([*words[:-1], tmp_path / "notes.wav", tape], capture_output=True, text=True, check=False)
    assert (beside.returncode, "notes.txt: exists" in beside.stderr) == (1, True)
    assert (tmp_path / "notes.txt").read_text() == "not by this program"
    assert not (tmp_path / "notes.wav").exists()
    for bad in ("nothing.wav", str(store)):
        refused = subprocess.run([*words, bad], capture_output=True, text=True, check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (4, 1)


def test_the_python_app_does_the_same(toy_bundle: Bundle, store: Path, tape: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    app = ROOT / "examples" / "python-app" / "recorder.py"
    environment = os.environ | {"EDGEALIGN_BUNDLE": toy_bundle.path}
    subprocess.run([sys.executable, app, store, out, tape], env=environment, capture_output=True, check=True)
    check_recording(out, tape)
