"""Heads on frozen bundles: from a table of pairs to a bundle pair that starts labels from texts or pictures."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from toy_bundle import make_toy_bundle, word_clip
from toy_kinds import make_kind, picture

from edgealign import Bundle
from edgealign.errors import InputUnreadable
from edgealign.export.graph import session_of
from edgealign.export.projection import append_head
from edgealign.train import projection as heads
from edgealign.train.evaluation import Evaluation
from edgealign.train.features import Samples
from edgealign.train.loop import Loop, load_best
from edgealign.train.networks import NetworkConfig, PairedEncoders
from edgealign.train.paired import Paired, Protocol, Side
from edgealign.train.projection import Projection, Rows, SourceSide

GUIDE = Path(__file__).parents[1] / "docs" / "train.md"
WORDS = [a + b for a in ("ma", "ti", "lo", "ku") for b in ("ji", "na", "pe")]
TAKES = 6
SMALL = ["--steps", "12", "--shots", "1,3", "--queries", "2", "--episodes", "30", "--cache", "cache"]
SMALL += ["--set", "inner_steps=2,validate_every=6"]


def split_of(word: int) -> str:
    return "train" if word < 8 else "val" if word < 10 else "test"


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles and clips of twelve words, and pairs.csv about them; tests work on copies of the table."""
    root = tmp_path_factory.mktemp("projection")
    for name, made in (
        ("words-bundle", make_toy_bundle(root / "a")),
        ("sounds-bundle", make_kind(root / "b", "audio_waveform", seed=3)),
        ("pictures-bundle", make_kind(root / "c", "image", seed=4)),
    ):
        shutil.copytree(made.path, root / name)
    rows = []
    for word, label in enumerate(WORDS):
        Image.fromarray(picture(word)).save(root / f"{label}.png")
        for take in range(TAKES):
            soundfile.write(root / f"{label}{take}.wav", word_clip(word, take), 16_000)
            rows.append({"source": label, "target": f"{label}{take}.wav", "label": label, "pairing": "weak",
                         "split": split_of(word)})  # fmt: skip
    write_table(root / "pairs.csv", rows)
    return root


@pytest.fixture
def there(bench: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(bench)
    return bench


def table_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "pairs.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_lines_of_the_guide_make_a_pair_that_starts_labels_from_text(edgealign, there):
    lines = re.search(r"^    edgealign (train projection .*)\n    edgealign (enroll .*)$", GUIDE.read_text(), re.M)
    line, enroll = lines.groups()
    ran = edgealign(*line.split(), *SMALL)
    assert ran.code == 0, ran.err
    assert "before" in ran.out and "after, with one source − before" in ran.out
    bundle = Bundle.open("aligned/bundle")
    assert bundle.verify() and set(bundle.sources) == {"text", "image"}
    assert bundle.encoder_sha256 != Bundle.open("sounds-bundle").encoder_sha256
    assert (bundle.modality, bundle.dim) == ("audio", 32)
    whole = json.loads(Path("aligned/results.json").read_text(encoding="utf-8"))
    found = {(row["head"], row["k"]): row for row in whole["accuracies"]}
    assert found["before", 1]["episodes"] == found["after", 1]["episodes"] == 30
    mean = found["after", 3]["mean"] - found["before", 3]["mean"]
    assert found["after − before", 3]["mean"] == pytest.approx(mean, abs=2e-3)
    assert whole["head"] in heads.HEADS and whole["weight"] in heads.WEIGHTS
    assert edgealign(*enroll.split()).code == 0
    answer = edgealign("classify", "--bundle", "aligned/bundle", "maji0.wav", "--format", "json")
    assert json.loads(answer.out)["top"][0]["label"] == "owl"


def test_a_run_that_is_killed_goes_on_to_the_same_numbers(edgealign, there, monkeypatch):
    line = ["train", "projection", "--source", "words-bundle", "--target", "words-bundle", "--pairs", "pairs.csv"]
    assert edgealign(*line, *SMALL, "-o", "whole").code == 0
    advance, done = heads.Loop.advance, []

    def killed(loop: heads.Loop) -> dict[str, float]:
        done.append(loop.step)
        if len(done) == 16:  # in the second head
            raise KeyboardInterrupt
        return advance(loop)

    monkeypatch.setattr(heads.Loop, "advance", killed)
    assert edgealign(*line, *SMALL, "-o", "stopped").code == 130
    assert not Path("stopped/bundle").exists()
    monkeypatch.setattr(heads.Loop, "advance", advance)
    assert edgealign(*line, *SMALL, "-o", "stopped").code == 0
    assert Path("whole/results.json").read_text() == Path("stopped/results.json").read_text()
    one, other = (Bundle.open(f"{name}/bundle") for name in ("whole", "stopped"))
    assert one.encoder_sha256 == other.encoder_sha256
    drift = one.manifest["encoder"]["variants"]["int8"]
    assert drift["snr_db"] > 100 and abs(drift["max_cosine_drift"]) < 1e-6  # both variants of the toy are one graph


def test_a_picture_starts_a_label_of_sounds(edgealign, there):
    rows = [row | {"source": f"{row['label']}.png"} for row in table_rows(there)]
    write_table(there / "pictures.csv", rows)
    ran = edgealign(
        "train", "projection", "--source", "pictures-bundle", "--source-kind", "image", "--target", "sounds-bundle",
        "--pairs", "pictures.csv", "-o", "seen", *SMALL,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert edgealign("enroll", "--bundle", "seen/bundle", "--image", "maji.png", "--label", "maji").code == 0


def rotated(n_labels: int = 24, n_each: int = 6) -> Paired:
    """Sources and targets of a label are near one point, but the targets are rotated: what heads can undo."""
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(n_labels), n_each)
    points, rotation = rng.normal(size=(n_labels, 8)), np.linalg.qr(rng.normal(size=(8, 8)))[0]
    sides = []
    for turn in (np.eye(8), rotation):
        x = (points[labels] + 0.3 * rng.normal(size=(len(labels), 8))) @ turn
        x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        sides.append(Side("embedding", x, labels))
    roles = tuple("test" if i % 6 == 0 else "val" if i % 6 == 1 else "train" for i in range(n_labels))
    names, pairs = tuple(f"label {i:02d}" for i in range(n_labels)), np.zeros((0, 2), np.int64)
    return Paired("rotated", names, roles, *sides, pairs, labels.copy(), (Protocol("labels", 4, True),))


@pytest.mark.parametrize("residual", [False, True])
def test_heads_align_labels_that_training_did_not_see(tmp_path, residual):
    data = rotated()
    config = replace(
        heads.default_config("croma-weak-nce", 0, 40), inner_steps=2, validate_every=20,
        inner_learning_rate=0.02, outer_learning_rate=0.05,
        networks=NetworkConfig(dim=8, hidden=16, residual=residual),
    )  # fmt: skip
    Loop(data, config, tmp_path).run(lambda line: None)
    model = load_best(data, config, tmp_path)
    projections = Projection.of(model.source, None), Projection.of(model.target, model.alignment)
    rows = tuple(Rows(side.x, np.ones(len(side.x), np.int64)) for side in (data.source, data.target))
    evaluation = Evaluation(data, "test", 100, 3, (1, 3))
    before = heads.cells(evaluation, data, "before")[0]
    after = heads.cells(evaluation, heads.projected(data, rows, projections), "after")[0]
    assert (before.k, after.k) == (0, 0)
    assert before.accuracies.mean() < 0.5 and after.accuracies.mean() > 0.85


def model_of(residual: bool) -> PairedEncoders:
    torch.manual_seed(1)
    model = PairedEncoders(NetworkConfig(dim=16, hidden=8, residual=residual), heads.EMBEDDED, 1, 2, (32, 16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("residual", [False, True])
def test_what_is_folded_is_what_was_trained(residual, toy_bundle):
    model, rng = model_of(residual), np.random.default_rng(0)
    x = rng.normal(size=(5, 32)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    projection = Projection.of(model.source, None)
    with torch.inference_mode():
        expected = model.embed_source(torch.from_numpy(x * np.float32(32**0.5))).numpy()
        behind = model.embed_target(torch.from_numpy(x[:, :16] * np.float32(4))).numpy()
    np.testing.assert_allclose(projection(x), expected, atol=1e-6)
    np.testing.assert_allclose(Projection.of(model.target, model.alignment)(x[:, :16]), behind, atol=1e-6)
    session = session_of(append_head(toy_bundle.read("encoder.onnx"), projection))
    log_mel = rng.normal(size=(2, 24, 40)).astype(np.float32)
    (output,) = session.run(None, {"log_mel": log_mel})
    np.testing.assert_allclose(output, projection(toy_bundle.encode(log_mel)), atol=1e-6)


def test_a_head_sees_windows_and_not_their_mean():
    windows = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    rows = Rows(windows, np.array([2, 1]))
    np.testing.assert_allclose(rows.means(), [[0.5**0.5, 0.5**0.5], [0.6, 0.8]], atol=1e-7)


def test_samples_are_embedded_once_and_a_damaged_cache_is_made_again(tmp_path):
    calls = []

    def encode(item: Samples) -> np.ndarray:
        calls.append(item)
        return item.values

    items = [Samples(np.array([[np.cos(i), np.sin(i)]], np.float32)) for i in range(heads.SAVE_EVERY + 3)]
    arguments = items, encode, "tiny", tmp_path, lambda line: None
    first = heads.embedded(*arguments)
    again = heads.embedded(*arguments)
    assert len(calls) == len(items) and np.array_equal(first.windows, again.windows)
    shorter = heads.embedded(items[5:], *arguments[1:])
    assert len(calls) == len(items) and np.array_equal(first.windows[5:], shorter.windows)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert np.array_equal(heads.embedded(*arguments).windows, first.windows) and len(calls) == 2 * len(items)


def test_all_samples_that_cannot_be_embedded_are_told_at_once(bench, tmp_path):
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(16_000, np.float32), 16_000)
    (tmp_path / "text.wav").write_text("no sound")
    bundle = Bundle.open(bench / "words-bundle")
    items = [bench / "maji0.wav", silent, tmp_path / "text.wav"]
    with pytest.raises(InputUnreadable, match=r"2 of 3 .*silent\.wav.*text\.wav.*take their rows out"):
        heads.embedded(items, lambda item: heads.windows_of(bundle, item), "x", tmp_path / "c", lambda line: None)


def test_a_table_without_splits_is_split_by_a_hash(bench, tmp_path):
    rows = [{name: value for name, value in row.items() if name != "split"} for row in table_rows(bench)]
    for row in rows:
        row["target"] = str(bench / row["target"])
    write_table(tmp_path / "pairs.csv", rows)
    bundle = Bundle.open(bench / "words-bundle")
    roles = heads.read_pairs(tmp_path / "pairs.csv", SourceSide.of(bundle, None), bundle).roles
    assert sorted(roles) == sorted(WORDS)
    assert [list(roles.values()).count(role) for role in ("train", "val", "test")] == [8, 2, 2]


def swapped(name: str, row: int, **values: str) -> object:
    def change(folder: Path) -> None:
        rows = table_rows(folder)
        rows[row] |= values
        write_table(folder / name, rows)

    return change


def damaged(folder: Path) -> None:
    shutil.copytree(folder / "words-bundle", folder / "damaged", dirs_exist_ok=True)
    encoder = folder / "damaged" / "encoder.onnx"
    encoder.write_bytes(encoder.read_bytes()[:-1] + b"x")


def too_few(folder: Path) -> None:
    write_table(folder / "bad.csv", [row for row in table_rows(folder) if row["target"] != f"{WORDS[11]}5.wav"])


def unknown_column(folder: Path) -> None:
    write_table(folder / "bad.csv", [row | {"speaker": "a"} for row in table_rows(folder)])


def occupied(folder: Path) -> None:
    (folder / "bad" / "bundle").mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize(
    ("prepare", "options", "code", "sentence"),
    [
        (swapped("bad.csv", 4, target="gone.wav"), {}, 4, "row 6: there is no target"),
        (swapped("bad.csv", 4, split="test"), {}, 2, "row 6: the label 'maji' is in the split test"),
        (unknown_column, {}, 2, "unknown column 'speaker'"),
        (too_few, {}, 2, "'kupe' has 5 target samples, but k + queries is 3 + 3: add 1 more"),
        (None, {"source": "sounds-bundle", "source-kind": "text"}, 2, "reads no text: it reads image"),
        (None, {"source": "pairs.csv"}, 3, "no bundle at 'pairs.csv'"),
        (damaged, {"target": "damaged"}, 3, "differs from its manifest"),
        (None, {"method": "croma-strong"}, 2, "needs strong ones"),
        (None, {"method": "croma-shared"}, 2, "shares a trunk"),
        (None, {"set": "inner_learning_rate=1e30,inner_steps=2"}, 1, "the loss of"),
        (occupied, {}, 2, "exists and is not a bundle"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_and_writes_no_bundle(edgealign, there, prepare, options, code, sentence):
    shutil.rmtree(there / "bad", ignore_errors=True)
    shutil.copy(there / "pairs.csv", there / "bad.csv")
    if prepare is not None:
        prepare(there)
    given = {
        "source": "words-bundle", "target": "words-bundle", "pairs": "bad.csv", "output": "bad", "shots": "1,3",
        "queries": 3, "steps": 4, "set": "inner_steps=1", "episodes": 10, "cache": "cache",
    } | options  # fmt: skip
    ran = edgealign("train", "projection", *[word for name, value in given.items() for word in (f"--{name}", value)])
    assert (ran.code, sentence in ran.err) == (code, True), ran.err
    assert not (there / "bad" / "bundle" / "manifest.json").exists()
    assert ran.err.count("error:") == 1 and "Traceback" not in ran.err
