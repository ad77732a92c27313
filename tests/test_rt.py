"""edgealign-rt, the command without Python, and the C++ header. Run: python -m pytest tests/test_rt.py"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import level2
import numpy as np
import pytest
import soundfile
from toy_bundle import noise_clip, word_clip

import edgealign
from edgealign import Bundle, Recognizer
from edgealign.store import Store

HOME = Path(edgealign.__file__).parent
COMMAND = HOME / "bin" / "edgealign-rt"
INCLUDE = Path(__file__).parents[1] / "cpp_ext" / "include"
RATE = 16_000

pytestmark = [
    pytest.mark.skipif(level2.ONNXRUNTIME is None, reason="this onnxruntime has no shared library"),
    pytest.mark.skipif(not COMMAND.exists(), reason="edgealign-rt was not built"),
]


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def store(toy_bundle: Bundle, samples_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rt") / "speech.store"
    Recognizer(toy_bundle, path).enroll(samples_folder)
    return path


@pytest.fixture
def rt(toy_bundle: Bundle, store: Path) -> Callable[..., Ran]:
    """Runs the command with the toy bundle and the store of three words."""
    environment = os.environ | {
        "EDGEALIGN_BUNDLE": toy_bundle.path,
        "EDGEALIGN_STORE": str(store.parent),
        "EDGEALIGN_ONNXRUNTIME": str(level2.ONNXRUNTIME),
    }

    def run(*arguments: object, stdin: bytes = b"", stdout: IO | int = subprocess.PIPE, **changed: str) -> Ran:
        words = [str(COMMAND), *map(str, arguments)]
        done = subprocess.run(
            words, input=stdin, stdout=stdout, stderr=subprocess.PIPE, check=False, env=environment | changed
        )
        return Ran(done.returncode, (done.stdout or b"").decode(), done.stderr.decode())

    return run


def pcm(samples: np.ndarray) -> bytes:
    return np.round(samples * 32767).astype("<i2").tobytes()


def test_its_json_is_that_of_edgealign_classify(
    rt: Callable, edgealign: Callable, samples_folder: Path, store: Path, tmp_path: Path
) -> None:
    clips = []
    names = (
        "plain.wav",
        'a "quoted" name.wav',
        "Ümlaut\n\u202e.wav",
        os.fsdecode(b"caf\xe9 \xf0\x9f\x90\xa6\xed\xa0\x80.wav"),
    )
    for i, name in enumerate(names):
        clips.append(tmp_path / name)
        soundfile.write(tmp_path / "word.wav", word_clip(i % 3, 8), RATE)
        (tmp_path / "word.wav").rename(clips[-1])
    soundfile.write(tmp_path / "noise.wav", noise_clip(), RATE)
    clips.append(tmp_path / "noise.wav")
    python = edgealign("classify", *clips, "--format", "json", "--store", store)
    ours = rt("classify", *clips, "--json")
    assert (ours.code, ours.err) == (0, "")
    assert [json.loads(line) for line in ours.out.splitlines()] == [
        json.loads(line) for line in python.out.splitlines()
    ]
    assert "\u202e" not in ours.out
    del clips[2]  # Python's text names its line break otherwise than JSON does
    assert rt("classify", *clips).out == edgealign("classify", *clips, "--store", store).out


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64"])
def test_every_kind_of_wav_is_read_as_python_reads_it(
    rt: Callable, toy_bundle: Bundle, store: Path, tmp_path: Path, subtype: str, container: str
) -> None:
    path = tmp_path / "x.wav"
    mono = word_clip(0, 8)
    soundfile.write(path, np.stack([mono, 0.5 * mono], axis=1), RATE, subtype=subtype, format=container)
    answer = Recognizer(toy_bundle, store).classify(path)
    ours = json.loads(rt("classify", path, "--json").out)
    assert (ours["label"], ours["distance"]) == (answer.label, pytest.approx(answer.distance, abs=1e-6))


def test_it_hears_a_pipe_as_python_does(rt: Callable, toy_bundle: Bundle, store: Path, tmp_path: Path) -> None:
    samples = np.concatenate([word_clip(i % 3, i, silence_s=0.4) for i in range(6)])
    samples += 1e-4 * np.random.default_rng(0).normal(size=len(samples)).astype(np.float32)
    ran = rt("listen", "--json", stdin=pcm(samples) + b"\1")
    assert (ran.code, ran.err) == (0, "")
    heard = [json.loads(line) for line in ran.out.splitlines()]
    soundfile.write(tmp_path / "x.wav", samples, RATE)
    from edgealign.audio import AudioFile
    from edgealign.listen import listen

    expected = list(listen(Recognizer(toy_bundle, store), AudioFile(tmp_path / "x.wav"), debounce_s=0.5))
    assert [(event["label"], event["start_s"]) for event in heard] == [
        (event.answer.label, round(event.answer.start_s, 4)) for event in expected
    ]
    assert len(heard) == 6
    stereo = np.repeat(samples.astype("<f4")[:, None], 2, axis=1).tobytes()
    words = ("listen", "--sample-format", "f32", "--channels", 2)
    assert len(rt(*words, stdin=stereo).out.splitlines()) == 6


@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64"])
def test_it_takes_the_header_of_a_wav_in_its_pipe_as_python_does(rt: Callable, form: str) -> None:
    samples = np.concatenate([word_clip(i % 3, i, silence_s=0.4) for i in range(3)])

    def heard(data: bytes) -> list[dict]:
        ran = rt("listen", "--json", stdin=data)
        assert (ran.code, ran.err) == (0, "")
        return [json.loads(line) | {"heard_s": None} for line in ran.out.splitlines()]  # blocks begin elsewhere

    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=form, subtype="PCM_16")
    data = file.getvalue()
    expected = heard(data[-2 * len(samples) :])
    assert len(expected) == 3
    junk = b"LIST" + struct.pack("<I", 101) + bytes(102)
    assert heard(data) == heard(data[:12] + junk + data[12:]) == expected
    if form != "RF64":  # whose own size says nothing: ds64 would
        noise = np.random.default_rng(0).integers(-9000, 9000, RATE).astype("<i2").tobytes()
        assert heard(data + b"guan" + struct.pack("<I", len(noise)) + noise) == expected
    soundfile.write(file := io.BytesIO(), samples, RATE, format=form, subtype="FLOAT")
    ran = rt("listen", stdin=file.getvalue())
    assert (ran.code, ran.out) == (2, "") and "16000 Hz, 1 channel(s) and f32 does, but raw PCM of" in ran.err
    assert rt("listen", "--sample-format", "f32", stdin=file.getvalue()).out.count("\n") == 3
    assert rt("listen", "--rate", 8000, stdin=data).code == 2


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"RIFF" + bytes(4) + b"AVI LIST" + bytes(9), "begins with RIFF"),
        (b"RIFF" + bytes(4) + b"WAVEdata" + bytes(400), "samples before their format"),
        (b"RIFF" + bytes(4) + b"WAVEfmt " + struct.pack("<I", 8) + bytes(400), "damaged format"),
        (b"RIFF" + bytes(4) + b"WAVELIST" + struct.pack("<I", 2**20) + bytes(400), "no samples in its first 64 KiB"),
        (b"RIFF" + bytes(4) + b"WAVELIST" + struct.pack("<I", 400) + bytes(100), "ends in the header of a WAV"),
    ],
)
def test_a_wav_in_its_pipe_without_samples_is_refused(rt: Callable, data: bytes, said: str) -> None:
    ran = rt("listen", stdin=data)
    assert (ran.code, ran.out) == (4, "") and said in ran.err


@pytest.mark.parametrize("name", ["x.flac", "x.aiff"])
def test_a_file_in_its_pipe_is_no_sound(rt: Callable, tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, word_clip(0, 8), RATE)
    ran = rt("listen", stdin=(tmp_path / name).read_bytes())
    assert (ran.code, ran.out) == (4, "") and "raw PCM is expected" in ran.err


def bad_wavs(folder: Path) -> dict[str, str]:
    """name -> what is said of it"""
    soundfile.write(folder / "good.wav", word_clip(0, 8), RATE)
    data = (folder / "good.wav").read_bytes()
    for name, content in {
        "empty.wav": b"", "head.wav": data[:40], "text.wav": b"hello " * 50,
        "no_rate.wav": data[:24] + bytes(4) + data[28:],
        "adpcm.wav": data[:20] + b"\x02\0" + data[22:], "tiny.wav": data[:100],
    }.items():  # fmt: skip
        (folder / name).write_bytes(content)
    (folder / "folder.wav").mkdir()
    soundfile.write(folder / "nan.wav", np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    return {
        "empty.wav": "is empty (0 bytes)", "head.wav": "cut short", "text.wav": "is not a WAV file",
        "no_rate.wav": "is read", "adpcm.wav": "format 2",
        "tiny.wav": "at least 25 ms", "folder.wav": "not a regular file",
        "nan.wav": "NaN", "gone.wav": "No such file",
    }  # fmt: skip


def test_what_is_no_wav_is_said_and_the_others_are_answered(rt: Callable, tmp_path: Path) -> None:
    said = bad_wavs(tmp_path)
    for name, why in said.items():
        ran = rt("classify", tmp_path / name)
        assert (ran.code, ran.out) == (4, ""), name
        assert ran.err.startswith("error: '") and why in ran.err and ran.err.count("\n") == 1, ran.err
    ran = rt("classify", *(tmp_path / name for name in said), tmp_path / "good.wav")
    assert (ran.code, ran.out.count("\n"), ran.err.count("\n")) == (5, 1, len(said))


def test_a_header_that_lies_about_the_length_ends_where_the_file_ends(rt: Callable, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", word_clip(0, 8), RATE)
    data = bytearray((tmp_path / "x.wav").read_bytes())
    whole = rt("classify", tmp_path / "x.wav").out
    at = data.index(b"data") + 4
    data[at : at + 4] = b"\xff\xff\xff\x7f"
    (tmp_path / "x.wav").write_bytes(data)
    assert rt("classify", tmp_path / "x.wav").out == whole


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        ([], 2, "edgealign-rt classify"),
        (["sing"], 2, "edgealign-rt classify"),
        (["classify"], 2, "name at least one WAV file"),
        (["classify", "x.wav", "--loud"], 2, "no option --loud"),
        (["classify", "x.wav", "--top-k"], 2, "--top-k needs a value"),
        (["classify", "x.wav", "--top-k", "0"], 2, "1 to 100"),
        (["listen", "x.wav"], 2, "takes no files"),
        (["listen", "--rate", "fast"], 2, "--rate is 'fast'"),
        (["listen", "--rate", "10"], 2, "sample rate of 10 Hz"),
        (["listen", "--sample-format", "u8"], 2, "expected s16 or f32"),
        (["classify", "x.wav", "--store", "none.store"], 3, "there is no store at 'none.store'"),
        (["classify", "x.wav", "--bundle", "none"], 3, "no bundle at 'none'"),
        (["classify", "x.wav", "--runtime", "none.so"], 3, "ONNX Runtime cannot be loaded"),
        (["classify", "x.wav", "--variant", "int4"], 2, "no encoder variant 'int4'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(rt: Callable, arguments: list[str], code: int, why: str) -> None:
    ran = rt(*arguments)
    assert (ran.code, ran.out) == (code, "")
    assert why in ran.err


def test_an_instruction_set_that_is_not_there_is_no_other_one(rt: Callable, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", word_clip(0, 8), RATE)
    ran = rt("classify", tmp_path / "x.wav", EDGEALIGN_INSTRUCTION_SET="sse9")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "'sse9'" in ran.err


def test_unknowns_can_be_an_exit_code(rt: Callable, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", noise_clip(), RATE)
    assert rt("classify", tmp_path / "x.wav").code == 0
    assert rt("classify", tmp_path / "x.wav", "--fail-on-unknown").code == 1


def test_help_and_version(rt: Callable) -> None:
    assert rt("--version").out == f"edgealign-rt {edgealign.__version__}\n"
    assert "--sample-format" in rt("--help").out


CPP_PROGRAM = r"""
#include <cstdio>
#include <dlfcn.h>
#include <edgealign.hpp>
#include <utility>

int main(int, char **words) {
    try {
        const edgealign::Runtime opened(words[1]);
        using GetApiBase = const OrtApiBase *();
        auto *get = reinterpret_cast<GetApiBase *>(dlsym(dlopen(words[1], RTLD_NOW), "OrtGetApiBase"));
        if (edgealign::Runtime(get()).version() != opened.version()) return 3;
        try {
            edgealign::Runtime("no such library.so");
            return 4;
        } catch (const edgealign::Error &error) {
            if (error.status != EA_RUNTIME_MISSING) return 5;
        }
        std::vector<float> samples(60 * 16000);
        samples.resize(std::fread(samples.data(), sizeof(float), samples.size(), stdin));
        edgealign::Model model(words[2], edgealign::Runtime(std::string(words[1])));
        edgealign::Recognizer first(model, words[3]);
        edgealign::Recognizer recognizer(std::move(first));
        for (int turn = 0; turn < 2; turn++) std::printf("%d", recognizer.enroll("maji", samples, 16000));
        std::puts("");
        recognizer.save();
        const edgealign::Answer answer = recognizer.classify(samples, 16000);
        std::printf("%s %zu %.3f\n", answer.label ? answer.label->c_str() : "?", answer.top.size(), answer.distance);
        edgealign::Stream stream(recognizer, 16000, 1, 0, 60);
        edgealign::Recognizer moved(std::move(recognizer));
        if (stream.push(samples.data(), samples.size()) != EA_OK) return 2;
        stream.end();
        while (const auto heard = stream.poll()) std::printf("%s\n", heard->top[0].label.c_str());
        moved.begin(1);
    } catch (const edgealign::Error &error) {
        std::printf("%d %s\n", int(error.status), error.what());
    }
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_cpp_header_owns_what_it_opens_and_knows_a_path_in_quotes(toy_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "program.cpp").write_text(CPP_PROGRAM)
    link = (f"-I{INCLUDE}", f"-L{HOME}/lib", f"-Wl,-rpath,{HOME}/lib", "-ledgealign")
    flags = ("-std=c++17", "-pedantic", "-Wall", "-Wextra", "-Werror")
    program = tmp_path / "program"
    subprocess.run(["g++", *flags, tmp_path / "program.cpp", "-o", program, *link], check=True)
    words = [program, level2.ONNXRUNTIME, toy_bundle.path, tmp_path / "cpp.store"]
    done = subprocess.run(words, input=word_clip(0).tobytes(), capture_output=True, check=True, text=False)
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "10"
    assert lines[1].endswith(" 1 0.000")
    assert len(lines) == 4
    assert lines[2] == "maji"
    assert lines[3] == "1 a sample rate of 1 Hz: 4000 to 500000 Hz are read"
    assert Store.load(tmp_path / "cpp.store").labels() == ["maji"]


def test_what_it_enrolls_python_knows(rt: Callable, toy_bundle: Bundle, samples_folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "new folder" / "speech.store"
    clips = sorted(samples_folder.glob("*/*.wav"))
    done = rt("enroll", *clips, "--store", store)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"learned {len(clips)} recordings (0 known already) into {store}, which holds 3 labels\n"
    by_python = tmp_path / "python.store"
    Recognizer(toy_bundle, by_python).enroll(samples_folder)
    held = []
    for path in (store, by_python):
        saved = Store.load(path)
        labels = [saved.labels()[row["label"]] for row in saved.rows()]
        held.append(sorted(zip(labels, saved.rows()["name"], map(bytes, saved.embeddings()), strict=True)))
    assert held[0] == held[1]
    again = Recognizer(toy_bundle, store).enroll(samples_folder)
    assert [label.n_added for label in again.labels] == [0, 0, 0]
    again = rt("enroll", clips[0], "--store", store)
    assert again.out.startswith("learned 0 recordings (1 known already)")
    assert rt("classify", clips[0], "--store", store).out.startswith(f"{clips[0]}: {clips[0].parent.name}")


@pytest.mark.parametrize("instruction_set", ["", "baseline"])
def test_sha256_is_right_with_and_without_instructions_for_it(
    rt: Callable, instruction_set: str, tmp_path: Path
) -> None:
    """Clips of lengths at which the last block is padded differently; "" is the widest set of this processor."""
    expected = set()
    for n_samples in range(8000, 8033):
        path, samples = tmp_path / f"{n_samples}.wav", word_clip(n_samples, silence_s=0.05)[:n_samples]
        samples = (samples * 32767).astype(np.int16)
        soundfile.write(path, samples, RATE)
        expected.add(hashlib.sha256(b"16000 Hz\n" + (samples / np.float32(32768)).astype("<f4").tobytes()).digest())
    store = tmp_path / "hashed.store"
    clips = sorted(tmp_path.glob("*.wav"))
    done = rt("enroll", *clips, "--store", store, "--label", "any", EDGEALIGN_INSTRUCTION_SET=instruction_set)
    assert done.code == 0, done.err
    held = store.read_bytes()  # the hash of each row lies in it as it is: docs/formats.md
    assert len(expected) == len(clips) and all(digest in held for digest in expected)


def test_what_it_cannot_enroll_is_said(rt: Callable, samples_folder: Path, tmp_path: Path) -> None:
    clip, store = sorted(samples_folder.glob("*/*.wav"))[0], tmp_path / "speech.store"
    soundfile.write(tmp_path / "noise.wav", noise_clip(), RATE)
    (tmp_path / "text.wav").write_text("no sound")
    given = ("--label", "maji", "--store", store)
    some = rt("enroll", clip, tmp_path / "noise.wav", *given)
    assert (some.code, some.out.split(" into")[0]) == (5, "learned 1 recordings (0 known already)")
    assert "no sound stands out" in some.err
    assert rt("enroll", tmp_path / "noise.wav", *given).code == 6
    unreadable = rt("enroll", tmp_path / "text.wav", *given)
    assert (unreadable.code, unreadable.out) == (4, "")
    assert "is not a WAV file" in unreadable.err
    assert rt("enroll", "clip.wav").code == 2
    assert rt("enroll", clip, "--label", "maji", "--store", "/proc/none/speech.store").code == 3


def test_answers_that_cannot_be_written_are_an_error(rt: Callable, samples_folder: Path) -> None:
    clip = sorted(samples_folder.glob("*/*.wav"))[0]
    with open("/dev/full", "w") as full:
        done = rt("classify", clip, stdout=full)
    assert done.code == 1
    assert done.err == "error: standard output cannot be written\n"
