"""The command line as a user types it: exit codes, streams, formats, and refusals in one sentence."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_bundle import noise_clip, word_clip

from edgealign import Bundle, Store, __version__

RATE_HZ = 16_000


def write_clip(path: Path, samples: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE_HZ)
    return path


@pytest.fixture
def taught(edgealign, samples_folder: Path):
    """The command line with a default store that knows maji, moto and ndege."""
    assert edgealign("enroll", "--modality", "speech", f"{samples_folder}/").code == 0
    return edgealign


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A voice of the word maji that was not enrolled."""
    return write_clip(tmp_path / "clip.wav", word_clip(0, 80))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A word that was never enrolled."""
    return write_clip(tmp_path / "other.wav", word_clip(300, 1))


def test_the_main_job(taught, clip: Path, other: Path) -> None:
    ran = taught("classify", clip, other)
    assert ran.code == 0 and ran.err == ""
    first, second = ran.out.splitlines()
    assert first.startswith(f"{clip}: maji, ")
    assert second.startswith(f"{other}: (unknown), closest is ") and second.split(" sure, ")[1].startswith("50% needed")


def test_enroll_prints_what_it_learned(edgealign, samples_folder: Path, tmp_path: Path) -> None:
    ran = edgealign("enroll", samples_folder)
    assert ran.code == 0 and ran.err == ""
    lines = ran.out.splitlines()
    assert lines[0] == f"learned 3 labels into {tmp_path / 'stores' / 'speech.store'}"
    assert lines[1].split()[:5] == ["label", "new", "recordings", "text", "tightness"]
    assert lines[2].split()[:4] == ["maji", "5", "5", "-"] and lines[2].split()[4].startswith("0.0")
    assert "71% of its threshold rests on these recordings" in lines[2]
    again = edgealign("enroll", samples_folder / "maji", "--text", "maji", "--language", "sw").out.splitlines()
    assert again[2].split()[:6] == ["maji", "1", "(5", "known)", "5", "23%"]  # 1.5 / (1.5 + 5)
    words = edgealign("enroll", samples_folder, "--labels-are-words", "--language", "sw").out.splitlines()
    assert [line.split()[5] for line in words[2:5]] == ["23%"] * 3
    alone = edgealign("enroll", "--ipa", "ˈmoto")
    assert "ˈmoto" in alone.out and "text alone" in alone.out
    one = edgealign("enroll", "--label", "one", samples_folder / "maji" / "voice0.wav")
    assert "its threshold is a guess" in one.out
    assert "easily confused" in one.err or "is more like" in one.err


def test_json_is_exactly_as_specified(taught, clip: Path, other: Path, tmp_path: Path) -> None:
    noise = write_clip(tmp_path / "noise.wav", noise_clip())
    ran = taught("classify", clip, other, noise, "--format", "json", "--top-k", 2)
    answers = [json.loads(line) for line in ran.out.splitlines()]
    keys = [
        "file", "label", "probability", "distance", "threshold", "runner_up", "top", "modality", "store_sha256",
        "encoder_sha256", "backend",
    ]  # fmt: skip
    assert all(list(answer) == keys for answer in answers)
    known, unknown, silent = answers
    assert (known["file"], known["label"], unknown["label"], silent["label"]) == (str(clip), "maji", None, None)
    assert known["distance"] <= known["threshold"] and unknown["distance"] > unknown["threshold"]
    assert [set(entry) for entry in known["top"]] == [{"label", "distance", "probability"}] * 2
    assert set(known["runner_up"]) == {"label", "distance"}
    assert len(unknown["top"]) == 2 and unknown["top"][0]["distance"] == unknown["distance"]
    assert [silent[key] for key in keys[2:7]] == [None, None, None, None, []]
    store = Store.load(tmp_path / "stores" / "speech.store")
    assert (known["store_sha256"], known["encoder_sha256"]) == (store.sha256, store.encoder_sha256)
    assert known["modality"] == "speech" and known["backend"] in ("native", "numpy")


def test_csv_is_the_same_flattened(taught, clip: Path, other: Path, tmp_path: Path) -> None:
    noise = write_clip(tmp_path / "noise, with comma.wav", noise_clip())
    ran = taught("classify", clip, other, noise, "--format", "csv", "--top-k", 2)
    assert ran.out.count("\r\n") == 4
    rows = list(csv.DictReader(io.StringIO(ran.out, newline="")))
    answers = [
        json.loads(line)
        for line in taught("classify", clip, other, noise, "--format", "json", "--top-k", 2).out.splitlines()
    ]
    for row, answer in zip(rows, answers, strict=True):
        assert row["file"] == answer["file"]
        assert row["label"] == (answer["label"] or "")
        assert row["distance"] == ("" if answer["distance"] is None else str(answer["distance"]))
        assert row["store_sha256"] == answer["store_sha256"]
        for i, top in enumerate(answer["top"], 1):
            assert row[f"top{i}_label"] == top["label"]


def test_top_k_lists_labels_and_the_default_does_not(taught, clip: Path) -> None:
    assert len(taught("classify", clip).out.splitlines()) == 1
    assert len(taught("classify", clip, "--top-k", 2).out.splitlines()) == 3
    assert len(taught("classify", clip, "--top-k", 99).out.splitlines()) == 4
    assert taught("classify", clip, "--top-k", 0).code == 2


@pytest.mark.parametrize(("columns", "width"), [(20, 19), (200, 60)])
def test_progress_fits_into_one_line_of_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, width: int) -> None:
    from edgealign.cli.progress import Progress

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(Progress, "EVERY_S", 0)
    progress = Progress(12)
    for share in (0.25, 0.5, 1.0):
        progress(share, round(12 * share))
    lines = sys.stderr.getvalue().removesuffix("\n").split("\r")[1:]
    assert [len(line) for line in lines] == [width] * 3
    assert lines[0].startswith(" 25%  3 of 12") and lines[-1].startswith("100%  12 of 12")


def test_a_huge_top_k_is_no_huge_table(taught, clip: Path) -> None:
    header, row = taught("classify", clip, "--top-k", 10**12, "--format", "csv").out.splitlines()
    assert header.split(",") == taught("classify", clip, "--format", "csv").out.splitlines()[0].split(",")
    assert len(next(csv.reader([row]))) == len(header.split(","))


def test_a_clip_that_breaks_off_is_told(taught, clip: Path, tmp_path: Path) -> None:
    whole = clip.read_bytes()
    clip.write_bytes(whole[: len(whole) * 3 // 4])
    seconds = (len(whole) - 44) / 2 / RATE_HZ
    said = f"'{clip}' breaks off at {seconds * 0.75:.1f} s: its header announces {seconds:.1f} s"
    for command in (["classify", clip], ["enroll", clip, "--label", "cut"]):
        ran = taught(*command)
        assert ran.code == 0 and f"warning: {said}\n" in ran.err


def test_what_is_done_first_is_listed_first(edgealign) -> None:
    listed = [line.split()[0] for line in edgealign("--help").out.partition("Commands:\n")[2].splitlines()]
    assert listed[:4] == ["enroll", "classify", "scan", "listen"] and listed[-2:] == ["train", "export"]
    assert len(set(listed)) == len(listed) == 15


def test_the_file_is_named_as_it_was_given(taught, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clip.parent)
    for given in ("./clip.wav", f"..//{clip.parent.name}/clip.wav", "clip.wav"):
        assert json.loads(taught("classify", given, "--format", "json").out)["file"] == given


def test_fail_on_unknown(taught, clip: Path, other: Path) -> None:
    assert taught("classify", clip, "--fail-on-unknown").code == 0
    assert taught("classify", clip, other, "--fail-on-unknown").code == 1
    assert taught("classify", other).code == 0


HOSTILE = {
    "\x1b[2Jred": r"\x1b[2Jred",
    "new\nline": r"new\x0aline",
    "\u202egnp.exe": r"\u202egnp.exe",
    "tab\there": r"tab\x09here",
    "\u2066isolate\u2069": r"\u2066isolate\u2069",
}


@pytest.mark.parametrize("label", HOSTILE)
def test_labels_cannot_take_over_the_terminal(edgealign, clip: Path, samples_folder: Path, label: str) -> None:
    enrolled = edgealign("enroll", "--label", label, samples_folder / "maji")
    outputs = [enrolled.out]
    outputs += [edgealign("classify", clip, "--format", form).out for form in ("text", "json", "csv")]
    outputs.append(edgealign("store", "list").out)
    for output in outputs:
        assert HOSTILE[label] in output or json.dumps(label)[1:-1] in output
        assert not set(output) & set("\x1b\u202e\u2066\u2069\t")
    assert json.loads(outputs[2])["label"] == label
    removed = edgealign("store", "remove", label)
    assert removed.code == 0 and HOSTILE[label] in removed.out


@pytest.mark.parametrize("label", ['=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", "=1+1, quoted"])
def test_labels_are_no_formulas_in_a_spreadsheet(edgealign, clip: Path, samples_folder: Path, label: str) -> None:
    assert edgealign("enroll", f"--label={label}", samples_folder / "maji").code == 0
    out = edgealign("classify", clip, "--format", "csv").out
    (row,) = csv.DictReader(io.StringIO(out, newline=""))
    assert row["label"] == "'" + label
    assert json.loads(edgealign("classify", clip, "--format", "json").out)["label"] == label


def test_right_to_left_and_emoji_labels_are_printed_as_they_are(edgealign, clip: Path, samples_folder: Path) -> None:
    for label in ("ماء", "🦜", "水"):
        edgealign("enroll", "--label", label, samples_folder / "maji")
        assert label in edgealign("store", "list").out
        edgealign("store", "remove", label)


def test_folders_of_clips_are_classified_in_order(taught, samples_folder: Path) -> None:
    out = taught("classify", samples_folder / "moto").out
    assert [line.split(":")[0] for line in out.splitlines()] == [
        str(samples_folder / "moto" / f"voice{i}.wav") for i in range(5)
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes as a name")
def test_file_names_of_any_bytes(taught, clip: Path, tmp_path: Path) -> None:
    for name in (b"\xff\xfe.wav", b"two\nlines\x1b[31m.wav", b"-dash.wav", "\u202eright.wav".encode()):
        folder = tmp_path / "odd"
        folder.mkdir()
        shutil.copy(clip, os.fsencode(folder) + b"/" + name)
        for form in ("text", "json", "csv"):
            ran = taught("classify", folder, "--format", form)
            assert ran.code == 0 and "maji" in ran.out
            assert "\x1b" not in ran.out and "\u202e" not in ran.out
        assert taught("embed", folder, "-o", tmp_path / "out.npz").code == 0
        assert taught("enroll", folder, "--label", "odd").code == 0
        shutil.rmtree(folder)


def bad_inputs(folder: Path) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    (folder / "empty_folder").mkdir()
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("just text\n" * 50)
    write_clip(folder / "one_sample.wav", np.zeros(1))
    write_clip(folder / "no_sample.wav", np.zeros(0))
    nan = np.full(16_000, np.nan, np.float32)
    soundfile.write(folder / "nan.wav", nan, RATE_HZ, subtype="FLOAT")
    names = ("empty_folder", "empty.wav", "text.wav", "one_sample.wav", "no_sample.wav", "nan.wav", "missing.wav")
    return {name: folder / name for name in names}


@pytest.mark.parametrize("command", ["enroll", "classify", "embed"])
def test_inputs_that_cannot_be_read(taught, clip: Path, tmp_path: Path, command: str) -> None:
    options = {"enroll": ["--label", "maji"], "classify": [], "embed": ["-o", tmp_path / "out.npz"]}[command]
    before = (tmp_path / "stores" / "speech.store").read_bytes()
    bad = bad_inputs(tmp_path / "bad")
    for path in bad.values():
        ran = taught(command, path, *options)
        assert ran.code == 4, (path, ran)
        assert ran.out == "" and str(path) in ran.err
        assert len(ran.err.splitlines()) == 1 and ran.err.startswith("error: ")
    ran = taught(command, *bad.values(), *options)
    assert ran.code == 4
    assert (tmp_path / "stores" / "speech.store").read_bytes() == before
    assert not (tmp_path / "out.npz").exists()
    ran = taught(command, *bad.values(), clip, *options)
    assert ran.code == 5
    assert all(str(path) in ran.err for path in bad.values())
    assert "maji" in ran.out or command == "embed"


def test_an_unreadable_file(taught, clip: Path) -> None:
    clip.chmod(0)
    if os.access(clip, os.R_OK):
        pytest.skip("this user may read everything")
    ran = taught("classify", clip)
    assert ran.code == 4 and "permission denied" in ran.err.lower()


def test_a_folder_that_cannot_be_read_costs_the_others_nothing(
    edgealign, samples_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "samples"
    shutil.copytree(samples_folder, folder)
    locked = str(folder / "moto")
    listdir, scandir = os.listdir, os.scandir  # as they are for somebody who may not read the folder; root may

    def refusing(function):
        def call(path="."):
            if os.fspath(path) == locked:
                raise PermissionError(13, "Permission denied", locked)
            return function(path)

        return call

    monkeypatch.setattr(os, "listdir", refusing(listdir))
    monkeypatch.setattr(os, "scandir", refusing(scandir))
    said = f"'{locked}' cannot be read: Permission denied"
    ran = edgealign("enroll", folder)
    assert ran.code == 5 and f"not learned: {said}" in ran.err and ran.out.startswith("learned 2 labels")
    for command in (["enroll", locked], ["classify", locked], ["evaluate", locked], ["embed", locked, "-o", "x.npz"]):
        ran = edgealign(*command)
        assert (ran.code, ran.err, ran.out) == (4, f"error: {said}\n", ""), command
    ran = edgealign("classify", locked, folder / "maji" / "voice0.wav")
    assert ran.code == 5 and said in ran.err and "maji" in ran.out


def test_a_store_that_may_not_be_read_is_no_usage_error(taught, clip: Path, tmp_path: Path) -> None:
    store = tmp_path / "stores" / "speech.store"
    store.chmod(0)
    if os.access(store, os.R_OK):
        pytest.skip("this user may read everything")
    ran = taught("classify", clip, "--store", store)
    assert ran.code == 3 and "Permission denied" in ran.err and len(ran.err.splitlines()) == 1


def test_where_the_output_cannot_be_is_said_before_the_work(taught, clip: Path, samples_folder: Path, tmp_path: Path):
    for command in (["embed", clip], ["evaluate", samples_folder]):
        ran = taught(*command, "-o", tmp_path / "missing" / "out.json")
        assert ran.code == 2 and f"there is no folder '{tmp_path / 'missing'}', make it first" in ran.err
        ran = taught(*command, "-o", tmp_path)
        assert ran.code == 2 and f"'{tmp_path}' is a folder: name a file to write" in ran.err


def test_an_output_may_be_a_link_or_a_device(taught, samples_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("old")
    (tmp_path / "link.json").symlink_to("report.json")
    assert taught("evaluate", samples_folder, "-o", tmp_path / "link.json").code == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "report.json").read_text())["n_enrolled"] == 15
    pipe = tmp_path / "pipe.JSON"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True)
    assert taught("evaluate", samples_folder, "-o", pipe).code == 0
    assert json.loads(reader.communicate(timeout=60)[0])["n_enrolled"] == 15
    assert pipe.is_fifo()


def test_the_quality_gate(edgealign, clip: Path, tmp_path: Path) -> None:
    noise = write_clip(tmp_path / "noise.wav", noise_clip())
    ran = edgealign("enroll", noise, "--label", "maji")
    assert ran.code == 6 and "no sound stands out" in ran.err and ran.out == ""
    ran = edgealign("enroll", noise, clip, "--label", "maji")
    assert ran.code == 5 and "not learned: no sound stands out" in ran.err and "learned 1 label into" in ran.out
    assert edgealign("enroll", "--text", "水").code == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["enroll"], "nothing to learn from"),
        (["enroll", "clip.wav"], "does not exist"),
        (["enroll", "--label", "a" * 10_000, "clip.wav"], "10000 bytes"),
        (["enroll", "--text", " "], "the text is empty"),
        (["enroll", "x.wav", "--label", "x", "--language", "sw"], "a language was given without a text"),
        (["enroll", "x.wav", "--label", "x", "--tier", "words"], "a tier was given without a table"),
        (["calibrate", "x.wav", "--tier", "words"], "--tier was given without --table"),
        (["scan", "x.wav", "-o", "out", "--rtype", ""], "rtype is ''"),
        (["enroll", "--text", "a", "--ipa", "b"], "both text and ipa"),
        (["classify"], "FILES"),
        (["classify", "x.wav", "--format", "xml"], "xml"),
        (["classify", "x.wav", "--modality", "smell"], "smell"),
        (["classify", "x.wav", "--device", "tpu"], "tpu"),
        (["classify", "x.wav", "--channel", "left"], "channel is 'left'"),
        (["classify", "x.wav", "--top", "3"], "--top"),
        (["embed", "x.wav"], "output"),
        (["store", "remove", "never"], "never"),
        (["store"], "Usage"),
        (["no-such-command"], "no-such-command"),
    ],
)
def test_wrong_usage_is_exit_code_2(taught, arguments: list[str], message: str) -> None:
    ran = taught(*arguments)
    assert ran.code == (4 if message == "does not exist" else 2), ran
    assert message in ran.err + (ran.out if arguments == ["store"] else "")


@pytest.mark.parametrize("store", [(), ("--store", "my words.store")])
def test_the_command_that_a_warning_names_takes_the_clip_out(
    edgealign, samples_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(samples_folder, "card")
    (tmp_path / "card" / "maji" / "it's moto.wav").write_bytes((samples_folder / "moto" / "voice0.wav").read_bytes())
    ran = edgealign("enroll", "card", *store)
    commands = [shlex.split(command) for command in re.findall(r"is more like 'moto'.*`(edgealign .*)`", ran.err)]
    assert [command[:4] for command in commands] == [["edgealign", "store", "remove", "maji"]]
    removed = edgealign(*commands[0][1:])
    assert removed.out == "removed 1 sample of maji, which has 5 samples left\n", removed.err
    assert "it's moto.wav" not in edgealign("store", "list", "maji", *store).out


def test_links_that_lead_nowhere_or_in_a_circle_cost_the_others_nothing(
    edgealign, samples_folder: Path, tmp_path: Path
) -> None:
    card = tmp_path / "card"
    shutil.copytree(samples_folder, card)
    for name, target in (("circle", "circle"), ("nowhere", "gone"), ("itself", ".")):
        (card / name).symlink_to(target)
    ran = edgealign("enroll", card)
    assert ran.code == 0 and "learned 3 labels" in ran.out, ran.err
    assert edgealign("evaluate", card).code == 0


def test_a_clip_without_folder_needs_a_label(edgealign, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clip.parent)
    ran = edgealign("enroll", clip.name)
    assert ran.code == 2 and "say with --label" in ran.err


def test_cuda_that_is_absent_is_an_error_not_a_fallback(taught, clip: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has CUDA here")
    ran = taught("classify", clip, "--device", "cuda")
    assert ran.code == 2 and "cuda" in ran.err and ran.out == ""


def test_stores_that_cannot_be_used(taught, clip: Path, other_bundle: Bundle, tmp_path: Path) -> None:
    store = tmp_path / "stores" / "speech.store"
    good = store.read_bytes()
    ran = taught("classify", clip, "--bundle", other_bundle.path)
    assert ran.code == 3 and "was enrolled with encoder" in ran.err
    assert taught("enroll", clip, "--label", "maji", "--bundle", other_bundle.path).code == 3
    for damaged in (
        good[:-1],
        good[: len(good) // 2],
        good[:200] + bytes([good[200] ^ 1]) + good[201:],
        good + b"x",
        b"",
    ):
        store.write_bytes(damaged)
        for command in (
            ["classify", clip],
            ["enroll", clip, "--label", "maji"],
            ["store", "verify"],
            ["store", "list"],
        ):
            ran = taught(*command)
            assert ran.code == 3 and len(ran.err.splitlines()) == 1, (command, ran)
        assert store.read_bytes() == damaged
    store.write_bytes(good)
    assert taught("store", "verify").code == 0


def test_bundles_that_cannot_be_used(taught, clip: Path, toy_bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(toy_bundle.path, tmp_path / "copy"))
    data = bytearray((copy / "encoder.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "encoder.onnx").write_bytes(data)
    for command in (["classify", clip], ["enroll", clip, "--label", "x"], ["doctor"], ["bench"]):
        ran = taught(*command, "--bundle", copy)
        assert ran.code == 3 and "encoder.onnx" in ran.err, ran
    assert taught("bundle", "verify", copy).code == 3
    assert taught("bundle", "info", tmp_path).code == 3
    assert taught("classify", clip, "--bundle", tmp_path / "none").code == 3


def test_a_folder_that_cannot_be_written_to(edgealign, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    ran = edgealign("enroll", clip, "--label", "maji", "--store", tmp_path / "file" / "words.store")
    assert ran.code == 3 and "cannot be made" in ran.err
    ran = edgealign("enroll", clip, "--label", "maji", "--store", tmp_path)
    assert ran.code == 2 and "is a folder" in ran.err


def test_a_read_only_folder_loses_nothing(taught, clip: Path, tmp_path: Path) -> None:
    store = tmp_path / "stores" / "speech.store"
    before = store.read_bytes()
    (tmp_path / "stores" / "speech.store.lock").unlink()
    store.parent.chmod(0o500)
    try:
        if os.access(store.parent, os.W_OK):
            pytest.skip("this user may write everywhere")
        for command in (["enroll", clip, "--label", "maji"], ["store", "remove", "maji"], ["store", "undo"]):
            ran = taught(*command)
            assert ran.code == 3 and len(ran.err.splitlines()) == 1 and ran.out == "", ran
        assert taught("classify", clip).code == 0
        assert taught("embed", clip, "-o", store.parent / "out.npz").code == 2
    finally:
        store.parent.chmod(0o700)
    assert store.read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on file sizes")
def test_a_full_disk_loses_nothing(taught, clip: Path, tmp_path: Path) -> None:
    """A limit on file sizes fails writes the way a full disk does."""
    store = tmp_path / "stores" / "speech.store"
    before = store.read_bytes()
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "from edgealign.cli.app import main; main()"
    )
    arguments = ["enroll", str(clip), "--label", "maji"]
    ran = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 3, ran
    assert len(ran.stderr.splitlines()) == 1
    assert store.read_bytes() == before
    assert sorted(path.name for path in store.parent.iterdir()) == ["speech.store", "speech.store.lock"]


def test_store_commands(taught, samples_folder: Path, tmp_path: Path) -> None:
    assert [line.split() for line in taught("store", "list").out.splitlines()] == [
        ["label", "recordings", "texts"],
        ["maji", "5", "0"],
        ["moto", "5", "0"],
        ["ndege", "5", "0"],
    ]
    info = dict(line.split(maxsplit=1) for line in taught("store", "info").out.splitlines())
    assert info["labels"] == "3" and info["samples"] == "15" and info["operations"] == "1"
    assert taught("store", "remove", "maji", "moto").out.splitlines()[1] == "removed moto (5 samples)"
    assert len(taught("store", "list").out.splitlines()) == 2
    taught("store", "undo")
    assert len(taught("store", "list").out.splitlines()) == 4
    assert taught("store", "remove", "maji", "never").code == 2
    assert len(taught("store", "list").out.splitlines()) == 4  # all or nothing

    listed = [line.split() for line in taught("store", "list", "maji").out.splitlines()]
    assert listed[0] == ["sample", "what", "it", "is", "id"]
    assert [line[1] for line in listed[1:]] == ["recording"] * 5
    removed = taught("store", "remove", "maji", "--sample", listed[1][0], "--sample", listed[2][-1])
    assert removed.out == "removed 2 samples of maji, which has 3 samples left\n"
    assert [line.split() for line in taught("store", "list", "maji").out.splitlines()] == [listed[0], *listed[3:]]
    assert taught("store", "remove", "maji", "moto", "--sample", listed[3][0]).code == 2
    assert taught("store", "remove", "maji", "--sample", listed[3][0], "--sample", "never.wav").code == 2
    taught("store", "undo")  # both at once; what was refused left no operation behind
    assert [line.split() for line in taught("store", "list", "maji").out.splitlines()] == listed
    assert "no label 'never'" in taught("store", "list", "never").err

    assert taught("store", "rename", "maji", " water ").out == "renamed maji to water (5 samples)\n"
    joined = taught("store", "rename", "water", "moto")
    assert joined.out == "renamed water to moto, which was there: 5 samples joined it (10 samples)\n"
    assert len(taught("store", "list").out.splitlines()) == 3
    assert taught("store", "rename", "moto", " ").code == taught("store", "rename", "never", "x").code == 2
    taught("store", "undo")
    taught("store", "undo")
    assert len(taught("store", "list").out.splitlines()) == 4

    elsewhere = tmp_path / "elsewhere.store"
    taught("enroll", samples_folder / "maji", "--label", "water", "--store", elsewhere)
    merged = taught("store", "merge", elsewhere)
    assert merged.code == 0 and "added 5 samples" in merged.out
    Store.create("image", "ab" * 32, 8).save(tmp_path / "stores" / "image.store")
    assert "added 0 samples" in taught("store", "merge", elsewhere).out  # into the store of its own modality
    (tmp_path / "stores" / "image.store").unlink()
    assert "4 labels, 20 samples" in taught("store", "verify").out
    for _ in range(2):
        assert taught("store", "undo").code == 0
    assert taught("store", "merge", tmp_path / "none.store").code == 3
    assert taught("store", "list", "--store", tmp_path / "none.store").code == 3
    assert not (tmp_path / "none.store").exists()


def test_bundle_commands(edgealign, toy_bundle: Bundle) -> None:
    info = dict(line.split(maxsplit=1) for line in edgealign("bundle", "info").out.partition("\n\n")[0].splitlines())
    assert info["encoder_sha256"] == toy_bundle.encoder_sha256 and info["dim"] == str(toy_bundle.dim)
    assert "is intact: 8 files" in edgealign("bundle", "verify", toy_bundle.path).out


def test_embed_writes_what_numpy_reads_without_pickle(edgealign, samples_folder: Path, tmp_path: Path) -> None:
    ran = edgealign("embed", samples_folder / "maji", samples_folder / "moto" / "voice0.wav", "-o", tmp_path / "out")
    assert ran.code == 0 and "wrote 6 embeddings" in ran.out
    with np.load(tmp_path / "out", allow_pickle=False) as arrays:
        assert arrays["embeddings"].shape == (6, 32) and arrays["embeddings"].dtype == np.float32
        assert arrays["files"].dtype.kind == "U" and arrays["files"][5].endswith("moto/voice0.wav")
    ran = edgealign("embed", samples_folder / "maji", "-o", tmp_path / "none" / "out.npz")
    assert ran.code == 2 and "cannot be written" in ran.err


def test_doctor_proves_parity_and_finds_a_difference(edgealign, toy_bundle: Bundle, monkeypatch) -> None:
    ran = edgealign("doctor")
    assert ran.code == 0 and "all stages agree" in ran.out
    assert toy_bundle.encoder_sha256 in ran.out
    for stage in ("front end", "word finding", "encoder int8", "encoder fp32", "text encoder", "matching"):
        assert any(line.startswith(stage) and line.endswith("ok") for line in ran.out.splitlines())

    from edgealign import kernels

    right = kernels.log_mel
    monkeypatch.setattr(kernels, "log_mel", lambda *arguments: right(*arguments) + np.float32(0.01))
    ran = edgealign("doctor")
    assert ran.code == 1 and "do not trust" in ran.err
    assert any(line.startswith("front end") and line.endswith("FAILED") for line in ran.out.splitlines())


def test_bench_names_everything_a_number_depends_on(edgealign, toy_bundle: Bundle) -> None:
    report = json.loads(edgealign("bench", "--format", "json").out)
    assert set(report["latency"]) == {"front end", "word finding", "encoder", "matching", "pcm to label"}
    for times in report["latency"].values():
        assert 0 < times["median_ms"] <= times["p95_ms"]
    parts_ms = sum(report["latency"][stage]["median_ms"] for stage in ("front end", "encoder", "matching"))
    assert report["latency"]["pcm to label"]["p95_ms"] > 0.5 * parts_ms
    assert report["n_windows"] >= 5 and report["threads"] == 1 and report["peak_rss_mb"] > 10
    assert report["encoder_sha256"] == toy_bundle.encoder_sha256 and report["cpu"] and report["encoder_bytes"] > 0
    assert "median ms" in edgealign("bench").out


def test_version_and_help(edgealign) -> None:
    assert edgealign("--version").out == f"edgealign {__version__}\n"
    for command in ([], ["enroll"], ["classify"], ["embed"], ["store"], ["bundle"], ["doctor"], ["bench"], ["demo"]):
        ran = edgealign(*command, "--help")
        assert ran.code == 0 and "Usage" in ran.out


@pytest.mark.parametrize("command", ["train", "export"])
def test_training_without_torch_is_one_sentence(edgealign, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    ran = edgealign(command, "text-to-speech")
    assert ran.code == 2 and "pip install torch==2.13.0" in ran.err and len(ran.err.splitlines()) == 1


def test_an_interrupt_is_exit_code_130(taught, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgealign import Recognizer

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Recognizer, "classify", interrupted)
    assert taught("classify", clip).code == 130


def test_results_survive_a_closed_pipe_and_a_poor_locale(taught, samples_folder: Path) -> None:
    ran = in_shell(f"classify {samples_folder / 'maji'} --format json | head -n 1; echo ${{PIPESTATUS[0]}}")
    assert ran.stdout.splitlines()[1:] == ["0"] and ran.stderr == ""
    taught("enroll", "--label", "水", samples_folder / "maji")
    poor = {**os.environ, "PYTHONUTF8": "0", "LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run(
        [sys.executable, "-m", "edgealign.cli.app", "store", "list"], capture_output=True, env=poor, timeout=60
    )
    assert ran.returncode == 0 and "水" in ran.stdout.decode()


def in_shell(command: str) -> subprocess.CompletedProcess:
    command = f"{sys.executable} -m edgealign.cli.app {command}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)


def test_standard_streams_may_be_closed(taught, clip: Path, tmp_path: Path) -> None:
    for streams, said in ((">&-", ""), ("<&- 2>&-", "maji"), (">&- 2>&- <&-", "")):
        ran = in_shell(f"classify {clip} --format csv {streams}")
        assert ran.returncode == 0 and said in ran.stdout and ran.stderr == "", streams
    ran = in_shell(f"classify {tmp_path / 'missing.wav'} 2>&-")
    assert ran.returncode == 4 and ran.stdout == ""
    ran = in_shell("listen - <&-")
    assert ran.returncode == 4 and ran.stderr == "error: standard input is closed: raw PCM is expected there\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_told_and_loses_no_enrollment(taught, samples_folder: Path) -> None:
    ran = in_shell(f"enroll --label anew {samples_folder / 'maji' / 'voice0.wav'} >/dev/full 2>/dev/null")
    assert ran.returncode == 1
    ran = in_shell("store list >/dev/full")
    assert ran.returncode == 1
    assert ran.stderr == "error: standard output cannot be used: No space left on device\n"
    assert "anew" in taught("store", "list").out
    ran = in_shell(f"enroll --label more {samples_folder} {samples_folder / 'moto' / 'voice0.wav'} 2>/dev/full")
    assert ran.returncode == 5 and "more" in taught("store", "list").out


def test_an_instruction_set_that_is_not_there_is_a_usage_error(taught, clip: Path) -> None:
    environment = {**os.environ, "EDGEALIGN_INSTRUCTION_SET": "sse9"}
    command = [sys.executable, "-m", "edgealign.cli.app", "classify", clip]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: EDGEALIGN_INSTRUCTION_SET asks for 'sse9'") and ran.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep user data elsewhere")
def test_the_default_store_lies_in_the_users_data(
    edgealign, samples_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEALIGN_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert edgealign("enroll", samples_folder).code == 0
    assert (tmp_path / "data" / "edgealign" / "speech.store").is_file()
    assert edgealign("classify", samples_folder / "moto" / "voice3.wav").out.split(": ")[1].startswith("moto")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep user data elsewhere")
def test_a_user_without_a_home_is_told_where_a_store_could_be(
    edgealign, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("EDGEALIGN_STORE", "XDG_DATA_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.chdir(tmp_path)
    ran = edgealign("enroll", clip, "--label", "maji")
    assert ran.code == 2 and "no home folder" in ran.err and "$EDGEALIGN_STORE" in ran.err
    assert edgealign("enroll", clip, "--label", "maji", "--store", "words.store").code == 0
    assert edgealign("bundle", "info", "--measure").code == 0  # which would remember something
    assert not list(tmp_path.glob("~*"))


def test_the_store_is_for_its_owner_only(taught, tmp_path: Path) -> None:
    assert (tmp_path / "stores" / "speech.store").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "stores").stat().st_mode & 0o077 == 0
