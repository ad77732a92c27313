"""Encoders of sounds and pictures: what they are trained on, training and export on tiny packs, the shipped bundles."""

import copy
import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_packs
import torch
from PIL import Image
from typer.testing import CliRunner

from edgealign import Bundle, Recognizer, cli, golden
from edgealign.bundle import package_bundle
from edgealign.errors import InputUnreadable, InvalidInput
from edgealign.export import main as export_main
from edgealign.export import quantize
from edgealign.text import Tokenizer
from edgealign.train import main as train_main
from edgealign.train import packs, pictures, sense_commands, sense_encoders, sounds, starts
from edgealign.train.made_sounds import made_sound
from edgealign.train.sense_encoders import SenseConfig, SenseEncoder
from edgealign.train.senses import Sense, accuracy, load_state
from edgealign.train.source_networks import Words

DATA = os.environ.get("EDGEALIGN_DATA")
needs_packs = pytest.mark.skipif(not DATA, reason="EDGEALIGN_DATA does not name the folder of the packs")


# ---- data ----


def test_a_made_sound_is_the_same_each_time_and_takes_are_alike():
    assert np.array_equal(made_sound(3, 1), made_sound(3, 1))
    mels = [[sounds.log_mel(made_sound(recipe, take)).mean(axis=1) for take in range(3)] for recipe in range(12)]
    flat = np.array(mels).reshape(36, -1)
    assert np.isfinite(flat).all()
    unit = flat - flat.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    near = (unit @ unit.T - 2 * np.eye(36)).argmax(axis=1) // 3
    assert (near == np.arange(36) // 3).mean() > 0.6  # chance is 2 of 35


@needs_packs
def test_every_sound_class_is_tested_in_one_fold_and_only_free_clips_are_trained_on():
    data = Path(DATA)
    by_fold = [sounds.class_roles(data, fold) for fold in range(3)]
    for label in by_fold[0]:
        assert [roles[label] for roles in by_fold].count("test") == 1, label
    licence = {row["file"]: row["licence"] for row in packs.read_table(data / "esc50" / "manifest.tsv")}
    for fold in (None, 0):
        for sound in sounds.listed(data, fold):
            if sound.role == "train" and "esc50" in str(sound.file):
                assert licence["/".join(Path(sound.file).parts[-2:])] in ("CC0", "CC-BY")
    with pytest.raises(InvalidInput, match="no fold 3"):
        sounds.class_roles(data, 3)


@needs_packs
def test_no_picture_of_a_tested_category_is_trained_on():
    listed = pictures.listed(Path(DATA), split=True)
    by_role = {role: {p.group for p in listed if p.role == role} for role in ("train", "val", "test")}
    assert not by_role["train"] & by_role["test"] and not by_role["val"] & by_role["test"]
    tested = {name.removeprefix("photograph ").replace("_", " ") for name in by_role["test"]}
    called = {text for p in listed if p.role == "train" for locale, text in p.names if locale == "en"}
    assert not tested & called
    assert {p.role for p in pictures.listed(Path(DATA), split=False)} == {"train"}


def test_varied_sounds_and_pictures_are_finite_and_differ():
    x = torch.from_numpy(np.stack([sounds.log_mel(made_sound(i, 0))[:, :120] for i in range(4)]))
    varied = sounds.vary(x, torch.Generator().manual_seed(0))
    assert varied.shape == x.shape and varied.isfinite().all() and not torch.allclose(varied, x)
    arrays = torch.randint(0, 255, (5, 4, pictures.SEEN_PX, pictures.SEEN_PX), dtype=torch.uint8)
    varied = pictures.vary(arrays, torch.Generator().manual_seed(0), 32)
    assert varied.shape == (5, 3, 32, 32) and varied.min() >= 0 and varied.max() <= 1


def test_two_classes_heard_at_once_are_a_class_of_a_batch_without_a_label(tmp_path):
    listed = [sounds.Sound((recipe, take), f"{kind}{recipe}", "train") for kind in ("", "made ") for recipe, take in
              np.ndindex(3, 3)]  # fmt: skip
    batches = sounds.SoundBatches(listed, sounds.LogMels.of(listed, tmp_path, print), seed=0)
    x, labels, groups, instances = batches.draw(0)
    mixed = labels == sounds.NO_LABEL
    n_mixed = batches.mixtures_per_batch * batches.takes_per_mixture
    assert len(x) == len(labels) == len(groups) == len(instances) and mixed.sum() == 2 * n_mixed
    assert (groups[~mixed] == labels[~mixed]).all() and (labels[~mixed] < batches.n_labels).all()
    assert torch.bincount(groups[mixed])[batches.n_labels :].tolist() == [4] * batches.mixtures_per_batch
    assert (torch.bincount(instances) == 2).all() and x.isfinite().all()
    again = batches.draw(0)
    assert all(torch.equal(a, b) for a, b in zip((x, labels, groups, instances), again, strict=True))
    quiet = batches._view([(0, [0], 0.0), (3, [0], -40.0)], 96, np.random.default_rng(1))
    alone = batches._view([(0, [0], 0.0)], 96, np.random.default_rng(1))
    assert np.abs(quiet - alone).max() < 1e-2  # 170 dB below: not heard


# ---- encoders ----


def test_the_level_of_a_sound_does_not_change_its_embedding():
    torch.manual_seed(0)
    encoder = SenseEncoder(SenseConfig(widths=(8, 8, 16, 16), n_rows=64)).eval()
    x = torch.from_numpy(sounds.log_mel(made_sound(1, 0)))[None]
    with torch.no_grad():
        assert torch.allclose(encoder.embed(x), encoder.embed(x - 5), atol=1e-5)
        assert encoder.embed(torch.full((1, 64, 9), -20.0)).isfinite().all()  # digital silence


def test_training_in_bfloat16_moves_the_weights_as_in_float32_and_embedding_is_in_float32(monkeypatch):
    torch.manual_seed(0)
    encoder = SenseEncoder(SenseConfig(widths=(8, 8, 16, 16), n_rows=64, dropout=0.0))
    x = torch.from_numpy(np.stack([sounds.log_mel(made_sound(i, 0))[:, :96] for i in range(6)]))
    gradients, embedded = [], []
    for is_fast in (False, True):
        monkeypatch.setattr(sense_encoders, "computes_bfloat16", lambda is_fast=is_fast: is_fast)
        own = copy.deepcopy(encoder)
        embedded.append(own.eval()(x))
        own.train()(x).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in own.parameters()]))
    assert torch.equal(*embedded)
    assert not torch.equal(*gradients) and torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_half_of_a_described_embedding_is_what_was_learned_and_half_is_white():
    torch.manual_seed(0)
    encoder = SenseEncoder(SenseConfig("image", dim=16, widths=(8, 8, 8, 8))).eval()
    with torch.no_grad():
        encoder.embedding.weight[8:] = 0  # what was learned fills half of the dimensions
        encoder.embedding.bias[8:] = 0
    batches = [torch.rand(20, 3, 16, 16) ** torch.rand(20, 3, 1, 1).mul(4) for _ in range(3)]
    made = sense_encoders.described(encoder, batches)
    assert made.config.is_described and not encoder.config.is_described
    x = torch.cat(batches)
    with torch.no_grad():
        learned, given = encoder.embed(x), made(x)
        description = made.embedding(made.features(x))[:, 8:]
    assert torch.allclose(given[:, :8] @ given[:, :8].T, learned @ learned.T, atol=1e-5)
    assert torch.allclose(given[:, 8:].norm(dim=1), torch.full((60,), sense_encoders.DESCRIPTION_WEIGHT), atol=1e-5)
    assert np.abs(np.cov(description.numpy().T, ddof=0) - np.eye(8)).max() < 1e-2
    assert description.mean(dim=0).abs().max() < 1e-2
    with pytest.raises(InvalidInput, match="there are 5 samples to train on: expected more than 8"):
        sense_encoders.described(encoder, [x[:5]])


def test_padding_does_not_change_what_a_word_stands_for():
    vocab = starts.vocabulary(["dog", "chien", "ሰላም"])
    tokenizer = Tokenizer.from_dict(vocab)
    torch.manual_seed(0)
    words = Words(3 + len(vocab["tokens"]), 16).eval()
    with torch.no_grad():
        together = words(starts.pad_tokens(tokenizer, ["dog", "ሰላም", "chien", "Ωmega"]))
        for row, text in zip(together, ("dog", "ሰላም", "chien", "Ωmega"), strict=True):
            assert torch.allclose(row, words(starts.pad_tokens(tokenizer, [text]))[0], atol=1e-5)
    assert not torch.allclose(together[0], together[2], atol=1e-3)


def test_accuracy_is_of_the_nearest_prototype():
    labels = np.repeat(np.arange(6), 8)
    assert accuracy(np.eye(6)[labels].astype(np.float32), labels, 1) == 100
    noise = np.random.default_rng(0).normal(0, 1, (48, 8)).astype(np.float32)
    assert 10 < accuracy(noise, labels, 1) < 35


# ---- from packs to bundles ----


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `image` and `audio` on tiny packs, and the bundles that were exported from them."""
    folder = tmp_path_factory.mktemp("senses")
    data = tiny_packs.write(folder / "packs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sounds, "N_RECIPES", 8)
        patch.setattr(sounds, "FREE", ("CC0",))
        patch.setattr(quantize, "MIN_SNR_DB", 5.0)  # three steps make no encoder that quantizes well
        patch.setattr(
            sense_commands,
            "encoder_config",
            lambda modality: SenseConfig(modality, dim=32, widths=(8, 16, 16, 16), dropout=0.0),
        )
        common = ["--data", str(data), "--cache", str(folder / "cache"), "--steps", "3"]
        words = ["--word-steps", "40"]
        train_main.main(["image", str(folder / "image"), *common, *words])
        shown = ["--pictures", str(folder / "image" / "sense.pt")]
        train_main.main(["audio", str(folder / "audio"), *common, "--minutes", "0"])
        assert load_state(folder / "audio" / "last.pt")["step"] == 1  # stopped, and goes on
        train_main.main(["audio", str(folder / "audio"), *common, *words, *shown])
        with pytest.raises(InvalidInput, match="other values of seed"):
            train_main.main(["audio", str(folder / "audio"), *common, "--seed", "1"])
        for name in ("image", "audio"):
            checkpoint = str(folder / name / "sense.pt")
            export_main.main([
                checkpoint, "-o", str(folder / f"{name}_bundle"), "--data", str(data), "--cache", str(folder / "cache"),
                "--weights", str(folder / f"{name}.pt"),
            ])  # fmt: skip
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def invoke(*arguments: object):
        return CliRunner().invoke(cli.app.app, [str(argument) for argument in arguments])

    monkeypatch.setenv("EDGEALIGN_STORE", str(tmp_path / "user.eas"))
    return invoke


def test_a_run_is_logged_and_its_checkpoint_is_what_was_exported(made):
    logged = [json.loads(line) for line in (made / "image" / "log.jsonl").read_text().splitlines()]
    assert logged[-1]["step"] == 3 and {"label", "group", "instance", "1 shot"} <= set(logged[-1])
    sense = Sense.load(made / "audio.pt", "audio")
    assert sense.words is not None and sense.pictures is not None
    with pytest.raises(InvalidInput, match="of the modality audio: expected image"):
        Sense.load(made / "audio.pt", "image")
    (made / "none.pt").write_bytes(b"no checkpoint")
    with pytest.raises(InvalidInput, match="is not a checkpoint"):
        Sense.load(made / "none.pt")


def test_the_sources_of_an_encoder_are_kept_beside_it_and_are_of_no_other(made, tmp_path):
    shutil.copy(made / "audio.pt", tmp_path)
    with pytest.raises(InvalidInput, match=r"has words, but there is no '.*audio-words\.pt'"):
        Sense.load(tmp_path / "audio.pt")
    for source in ("words", "pictures"):
        shutil.copy(made / f"audio-{source}.pt", tmp_path)
    kept, sense = Sense.load(tmp_path / "audio.pt"), Sense.load(made / "audio" / "sense.pt")
    for part in ("encoder", "words", "pictures", "picture_map"):
        expected = getattr(sense, part).state_dict()
        assert all(torch.equal(t, expected[name]) for name, t in getattr(kept, part).state_dict().items())
    assert kept.vocabulary == sense.vocabulary
    shutil.copy(made / "image-words.pt", tmp_path / "audio-words.pt")
    with pytest.raises(InvalidInput, match="belongs to another encoder"):
        Sense.load(tmp_path / "audio.pt")


@pytest.mark.parametrize("name", ["audio", "image"])
def test_an_exported_bundle_is_whole_and_gives_its_golden_vectors(made, name):
    bundle = Bundle.open(made / f"{name}_bundle")
    bundle.verify()
    assert bundle.modality == name and set(bundle.sources) == {"text", *(["image"] if name == "audio" else [])}
    assert all(stage.passed for stage in golden.compare(bundle))


def test_a_checkpoint_of_all_classes_needs_another_for_the_decision(made, tmp_path):
    sense = Sense.load(made / "image.pt")
    sense.config["fold"] = -1
    sense.save(tmp_path / "all.pt")
    with pytest.raises(InvalidInput, match="name with --split"):
        export_main.main([
            str(tmp_path / "all.pt"), "-o", str(tmp_path / "b"), "--data", str(made / "packs"),
            "--cache", str(made / "cache"),
        ])  # fmt: skip


def test_sounds_are_told_apart_and_start_from_words_and_pictures(made, run, tmp_path):
    for recipe in range(3):
        for take in range(4):
            folder = tmp_path / ("samples" if take < 3 else "ask") / f"kind{recipe}"
            folder.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / f"{take}.wav", made_sound(recipe * 4, take, seed=4), 16_000)
    store = ["--store", tmp_path / "sounds.eas"]
    bundle = ["--bundle", made / "audio_bundle", "--modality", "audio", *store]
    assert run("enroll", tmp_path / "samples", *bundle).exit_code == 0
    answered = run("classify", *sorted((tmp_path / "ask").glob("*/*.wav")), *bundle, "--format", "json")
    rows = [json.loads(line) for line in answered.stdout.splitlines()]
    assert answered.exit_code == 0 and len(rows) == 3 and {row["modality"] for row in rows} == {"audio"}
    assert sum(row["top"][0]["label"] == Path(row["file"]).parent.name for row in rows) >= 2
    tiny_packs.drawing(1, 0).save(tmp_path / "shown.png")
    started = run("enroll", "--label", "shown", "--image", tmp_path / "shown.png", *bundle)
    assert started.exit_code == 0, started.output
    assert run("enroll", "--label", "named", "--text", "thing 3", *bundle).exit_code == 0
    listed = run("store", "list", *store)
    assert "shown" in listed.stdout and "named" in listed.stdout


# ---- the bundles that ship ----

SHIPPED = {"audio": Path(package_bundle("audio")), "image": Path(package_bundle("image"))}


@pytest.mark.parametrize("name", ["audio", "image"])
def test_a_shipped_bundle_is_whole_and_computes_here_what_it_computed_where_it_was_made(name):
    bundle = Bundle.open(SHIPPED[name])
    bundle.verify()
    assert [stage for stage in golden.compare(bundle) if not stage.passed] == []
    card = bundle.read("README.md").decode()
    assert card.index("| license |") < card.index("## For what")  # data and licenses first
    for subject in ("Caltech-101", "OpenMoji", "CC BY-SA 4.0", "gets wrong"):
        assert subject in card and (subject == "gets wrong" or subject in " ".join(bundle.manifest["attribution"]))


def test_the_three_shipped_bundles_are_small():
    total = 0
    for name in ("speech", "audio", "image"):
        manifest = Bundle.open(package_bundle(name)).manifest
        left_out = {"encoder.fp32.onnx", "golden.npz"}
        total += sum(entry["bytes"] for file, entry in manifest["files"].items() if file not in left_out)
    assert total <= 10e6


def test_pictures_are_told_apart_whatever_their_format(run, tmp_path):
    for kind in range(4):
        folder = tmp_path / "samples" / f"form{kind}"
        folder.mkdir(parents=True)
        for take in range(5):
            tiny_packs.drawing(kind, take, 90).save(folder / f"{take}.png")
    assert run("enroll", "--modality", "image", tmp_path / "samples").exit_code == 0
    ask = tmp_path / "ask"
    ask.mkdir()
    asked = [tiny_packs.drawing(kind, 7, 90) for kind in range(4)]
    asked[0].convert("CMYK").save(ask / "0.jpg")
    asked[1].convert("P").save(ask / "1.png")
    asked[2].save(ask / "2.gif", save_all=True, append_images=[asked[2].rotate(5)])
    Image.fromarray(np.asarray(asked[3].convert("L"), np.uint16) * 257).save(ask / "3.png")
    Image.new("RGB", (1, 1), "red").save(ask / "4.png")
    files = [ask / f"{i}.{suffix}" for i, suffix in enumerate(("jpg", "png", "gif", "png", "png"))]
    answered = run("classify", *files, "--format", "json")
    rows = [json.loads(line) for line in answered.stdout.splitlines()]
    assert answered.exit_code == 0 and len(rows) == 5
    assert [row["top"][0]["label"] for row in rows[:3]] == ["form0", "form1", "form2"]


@pytest.mark.parametrize("kind", ["text", "bomb", "empty"])
def test_what_is_no_picture_is_refused_in_a_sentence(run, tmp_path, kind):
    path = tmp_path / "label" / "odd.png"
    path.parent.mkdir()
    path.write_bytes(b"" if kind == "empty" else b"no picture")
    if kind == "bomb":  # a header that claims 60000 x 60000 pixels
        chunk = struct.pack(">II5B", 60_000, 60_000, 8, 2, 0, 0, 0)
        data = struct.pack(">I", 13) + b"IHDR" + chunk + struct.pack(">I", zlib.crc32(b"IHDR" + chunk))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    done = run("enroll", "--modality", "image", path)
    assert isinstance(done.exception, InputUnreadable) and done.exception.exit_code == 4
    assert "odd.png" in str(done.exception) and "\n" not in str(done.exception)


def test_words_of_many_languages_start_classes_of_pictures(run, tmp_path):
    bundle = Bundle.open(SHIPPED["image"])
    words = {"dog": ("dog", "Hund", "mbwa", "собака", "개", "كلب"), "banana": ("banana", "Banane", "ndizi", "банан")}
    embedded = {
        word: bundle.encode_text(bundle.tokenizer.encode(word)) for of in words.values() for word in (*of, "ꦱꦼꦒꦮꦺꦴꦤ꧀")
    }
    among = {of: np.mean([embedded["dog"] @ embedded[text] for text in words[of][1:]]) for of in words}
    assert among["dog"] > among["banana"] + 0.1
    assert run("enroll", "--modality", "image", "--text", "собака").exit_code == 0


def test_a_recording_of_a_made_sound_is_known_again(run, tmp_path):
    for recipe in range(3):
        for take in range(4):
            folder = tmp_path / f"kind{recipe}"
            folder.mkdir(exist_ok=True)
            soundfile.write(folder / f"{take}.wav", made_sound(recipe * 5 + 1, take, seed=3), 16_000)
    recognizer = Recognizer(Bundle.open(SHIPPED["audio"]))
    embedded = np.stack([recognizer.embed(tmp_path / f"kind{i // 4}" / f"{i % 4}.wav").reshape(-1) for i in range(12)])
    near = (embedded @ embedded.T - 2 * np.eye(12)).argmax(axis=1) // 4
    assert (near == np.arange(12) // 4).all()
