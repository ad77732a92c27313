"""Encoders from transformers: what the graphs give, what the bundles do without transformers, what is refused."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("optimum.exporters.onnx", reason="needs pip install 'edgealign[hf]'")
    import tiny_transformers
    import torch
    import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from edgealign import Bundle
from edgealign.errors import BundleUnreadable, InvalidInput, MissingExtra
from edgealign.export import huggingface_graph
from edgealign.export.graph import ParityLost
from edgealign.export.huggingface import Options, export_huggingface
from edgealign.tokenizers_hf import HuggingFaceTokenizer

pytestmark = pytest.mark.filterwarnings("ignore:::transformers", "ignore:::torch")
RATE_HZ = tiny_transformers.RATE_HZ
# Largest difference of an element of a unit embedding: float32 graphs, and front ends that transformers has in float64.
TOLERANCE = 2e-5
FAMILIES = {
    "bert": "text", "roberta": "text", "vit": "image", "deit": "image", "dinov2": "image",
    "dinov2_with_registers": "image", "wav2vec2": "speech", "hubert": "audio", "wavlm": "speech", "ast": "audio",
    "clip": "image", "clap": "audio", "clap_fused": "audio",
}  # fmt: skip
TEXTS = ("Dog", "the red bird sings", "zebra rain", "rain on the leaves " * 9)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Makes the folder of a family once."""
    made = {}

    def make(family: str) -> Path:
        if family not in made:
            torch.manual_seed(len(made))
            made[family] = getattr(tiny_transformers, family)(tmp_path_factory.mktemp(family))
        return made[family]

    return make


@pytest.fixture(scope="module")
def bundles(folders, tmp_path_factory):
    """Exports a family once; tests must not change the bundle."""
    made = {}

    def make(family: str) -> Bundle:
        if family not in made:
            target = tmp_path_factory.mktemp("bundles") / family
            options = Options(FAMILIES[family])
            made[family] = export_huggingface(folders(family), target, options, lambda line: None)
        return made[family]

    return make


def unit(x: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(x, dim=-1).numpy()


def noise(n_samples: int, seed: int = 0) -> np.ndarray:
    """A tone in colored noise, with an offset that a front end has to cope with."""
    rng = np.random.default_rng(seed)
    tone = 0.2 * np.sin(np.arange(n_samples) * (0.05 + 0.03 * seed))
    return (tone + 0.05 * rng.standard_normal(n_samples) + 0.01).astype(np.float32)


@functools.cache
def of_transformers(folder: Path, family: str) -> tuple:
    """The model as transformers loads it, and what prepares its samples."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    if FAMILIES[family] == "image":
        return model, transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    return model, functools.partial(transformers.AutoFeatureExtractor.from_pretrained(folder), sampling_rate=RATE_HZ)


def by_transformers(folder: Path, family: str, batch: list) -> np.ndarray:
    """What transformers makes of samples one by one, its own preprocessing included; the pooling is this function's."""
    rows = []
    model, prepare = of_transformers(folder, family)
    for sample in batch:
        with torch.inference_mode():
            inputs = prepare(sample, return_tensors="pt")
            if family == "clip":
                rows.append(model.get_image_features(**inputs)[0])
            elif family in ("clap", "clap_fused"):
                rows.append(model.get_audio_features(**inputs)[0])
            elif family == "ast":
                rows.append(model(**inputs).pooler_output[0])
            elif FAMILIES[family] == "image":
                rows.append(model(**inputs).last_hidden_state[0, 0])
            else:
                rows.append(model(**inputs).last_hidden_state[0].mean(dim=0))
    return unit(torch.stack(rows))


@pytest.mark.parametrize("family", [name for name, kind in FAMILIES.items() if kind in ("speech", "audio")])
def test_the_graph_of_sounds_gives_what_transformers_gives(bundles, folders, family):
    """At three lengths and batch sizes; a second is the most that the tiny AST and CLAP hear at once."""
    for n_samples, n_batch in ((RATE_HZ, 2), (1_600, 1), (7_003, 3)):
        batch = [noise(n_samples, seed) for seed in range(n_batch)]
        expected = by_transformers(folders(family), family, batch)
        assert np.abs(bundles(family).encode(np.stack(batch)) - expected).max() < TOLERANCE


def test_spectrogram_transformers_get_silence_as_transformers_gives_it(bundles, folders):
    """The logarithm's floor, and frames behind the end of the clip."""
    for family in ("ast", "clap"):
        clip = noise(8_000)
        clip[2_000:6_000] = 0
        expected = by_transformers(folders(family), family, [clip])
        assert np.abs(bundles(family).encode(clip[None]) - expected).max() < TOLERANCE


@pytest.mark.parametrize("family", [name for name, kind in FAMILIES.items() if kind == "image"])
def test_the_graph_of_pictures_gives_what_transformers_gives(bundles, folders, family):
    """Pictures of the size that the bundle takes, so that nothing is scaled; what scales is tested in test_images."""
    bundle, rng = bundles(family), np.random.default_rng(5)
    for n_batch in (1, 3):
        shape = (n_batch, bundle.input.height_px, bundle.input.width_px, 3)
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        expected = by_transformers(folders(family), family, [Image.fromarray(x) for x in pixels])
        values = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
        assert np.abs(bundle.encode(values) - expected).max() < TOLERANCE


def text_by_transformers(folder: Path, family: str, text: str) -> np.ndarray:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    # Positions of RoBERTa begin behind the padding's id: of 32 there are 31 for tokens.
    limit = 31 if family == "roberta" else tokenizer.model_max_length
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=limit)
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        if family in ("clip", "clap"):
            return unit(model.get_text_features(**inputs)[0])
        return unit(model(**inputs).last_hidden_state[0].mean(dim=0))


@pytest.mark.parametrize("family", ["bert", "roberta", "clip", "clap"])
def test_the_graph_of_text_gives_what_transformers_gives(bundles, folders, family):
    """Case, unknown words and truncation are the tokenizer's; nothing of it is transformers at run time."""
    bundle = bundles(family)
    for text in TEXTS:
        tokens = bundle.tokenizer.encode(text)
        expected = text_by_transformers(folders(family), family, text)
        assert np.abs(bundle.encode_text(tokens) - expected).max() < TOLERANCE


def test_pooling_can_be_chosen(folders, tmp_path):
    for family, pool, expected in (
        ("bert", "pooler", lambda answer: answer.pooler_output[0]),
        ("vit", "mean", lambda answer: answer.last_hidden_state[0, 1:].mean(dim=0)),
    ):
        options = Options(FAMILIES[family], pool)
        bundle = export_huggingface(folders(family), tmp_path / f"{family}-{pool}", options, lambda line: None)
        model = transformers.AutoModel.from_pretrained(folders(family)).eval()
        with torch.inference_mode():
            if family == "bert":
                tokens = bundle.tokenizer.encode("the dog barks")
                got, answer = bundle.encode_text(tokens), model(torch.from_numpy(tokens.ids[None]))
            else:
                values = np.random.default_rng(1).random((1, 3, 32, 32), dtype=np.float32)
                got, answer = bundle.encode(values)[0], model((torch.from_numpy(values) - 0.5) / 0.5)
        assert np.abs(got - unit(expected(answer))).max() < TOLERANCE


def test_a_folder_of_sentence_transformers_is_pooled_as_it_says(folders, tmp_path):
    folder = shutil.copytree(folders("bert"), tmp_path / "sentences")
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 6}')
    bundle = export_huggingface(folder, tmp_path / "bundle", Options("text"), lambda line: None)
    text = "the red bird sings the blue rain"
    tokens = bundle.tokenizer.encode(text)
    assert tokens.ids.shape == (6,)
    read = bundle.tokenizer.encode(text[: -tokens.n_cut])
    assert tokens.n_cut > 0 and read.n_cut == 0 and (read.ids == tokens.ids).all()
    with torch.inference_mode():
        states = transformers.AutoModel.from_pretrained(folder).eval()(torch.from_numpy(tokens.ids[None]))
    assert np.abs(bundle.encode_text(tokens) - unit(states.last_hidden_state[0, 0])).max() < TOLERANCE


def test_the_runtime_tokenizer_names_what_it_does_not_know(bundles):
    tokens = bundles("bert").tokenizer.encode("Dogs meow")
    assert tokens.ids.tolist() == [2, 5, 16, 1, 3]
    assert tokens.unknown == ("meow",)
    assert tokens.unknown_share == pytest.approx(4 / 9)
    for text, kind in (("", "grapheme"), (" \n", "grapheme"), ("x" * 1001, "grapheme"), ("dɔɡ", "ipa")):
        with pytest.raises(InvalidInput):
            bundles("bert").tokenizer.encode(text, kind)


def test_a_damaged_tokenizer_is_refused():
    for data in (b"", b"{}", b"[1, 2]", b'{"version": "1.0"}', b"\xff" * 100):
        with pytest.raises(BundleUnreadable, match=r"tokenizer\.json cannot be used"):
            HuggingFaceTokenizer.from_json(data, 8)


def test_without_tokenizers_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'edgealign\[text\]'"):
        HuggingFaceTokenizer.from_json(b"{}", 8)


# --- as a user has it: neither torch nor transformers, only the bundle


ON_THE_DEVICE = """
import sys
for name in ("torch", "transformers", "optimum", "onnx", "scipy"):
    sys.modules[name] = None  # importing it fails from here on
sys.argv = ["edgealign", *sys.argv[1:]]
from edgealign.cli.app import main
main()
"""


@pytest.fixture
def device(tmp_path):
    """Runs the command line where nothing can be imported that made the bundle; returns what it printed."""

    def run(bundle: Bundle, *arguments: object, code: int = 0) -> str:
        environment = {**os.environ, "EDGEALIGN_BUNDLE": bundle.path, "EDGEALIGN_STORE": str(tmp_path / "stores")}
        command = [sys.executable, "-c", ON_THE_DEVICE, *map(str, arguments)]
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert ran.returncode == code, ran.stderr
        return ran.stdout if code == 0 else ran.stderr

    return run


def nearest(answers: str) -> list[str]:
    return [json.loads(line)["top"][0]["label"] for line in answers.splitlines()]


def test_a_bundle_for_speech_learns_words(bundles, device, samples_folder, tmp_path):
    """The word in a clip is found as ever; the encoder hears its samples."""
    for label in ("maji", "moto"):
        (tmp_path / "samples" / label).mkdir(parents=True)
        shutil.copy(samples_folder / label / "voice0.wav", tmp_path / "samples" / label)
    store, clips = tmp_path / "words.store", [samples_folder / label / "voice0.wav" for label in ("maji", "moto")]
    device(bundles("wav2vec2"), "enroll", tmp_path / "samples", "--store", store)
    answers = device(bundles("wav2vec2"), "classify", *clips, "--store", store, "--format", "json")
    assert nearest(answers) == ["maji", "moto"]


def test_a_bundle_of_sounds_starts_from_words_and_from_clips(bundles, device, tmp_path):
    """One clip is longer than a window, one shorter."""
    for label, seed, n_samples in (("low", 0, 4 * RATE_HZ), ("high", 9, 9_000)):
        (tmp_path / "samples" / label).mkdir(parents=True)
        soundfile.write(tmp_path / "samples" / label / "a.wav", noise(n_samples, seed), RATE_HZ)
    store, clips = tmp_path / "a.store", [tmp_path / "samples" / label / "a.wav" for label in ("low", "high")]
    device(bundles("clap"), "enroll", "--label", "typed", "--text", "the dog barks", "--store", store)
    device(bundles("clap"), "enroll", tmp_path / "samples", "--store", store)
    answers = device(bundles("clap"), "classify", *clips, "--store", store, "--format", "json", "--top-k", "3")
    assert nearest(answers) == ["low", "high"]
    assert all("typed" in line for line in answers.splitlines())


def test_background_becomes_the_bank_and_the_license_is_the_folders(folders, tmp_path):
    (tmp_path / "background").mkdir()
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "background" / f"{seed}.png")
    options = Options("image", background=tmp_path / "background")
    folder = shutil.copytree(folders("vit"), tmp_path / "vit")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n\nlicense: another\n")
    bundle = export_huggingface(folder, tmp_path / "bundle", options, lambda line: None)
    assert bundle.bank.shape == (4, 32)
    assert bundle.manifest["license"] == "apache-2.0"
    assert "4 embeddings of 4 files" in (tmp_path / "bundle" / "README.md").read_text()


def test_a_bundle_of_pictures_starts_from_words_and_from_pictures(bundles, device, tmp_path):
    rng = np.random.default_rng(3)
    for label in ("one", "two"):
        pixels = np.kron(rng.integers(0, 256, (6, 5, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        (tmp_path / "samples" / label).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "samples" / label / "a.png")
    pictures = [tmp_path / "samples" / label / "a.png" for label in ("one", "two")]
    store = tmp_path / "clip.store"
    device(bundles("clip"), "enroll", tmp_path / "samples", "--store", store)
    device(bundles("clip"), "enroll", "--text", "the blue bird", "--store", store)
    answers = device(bundles("clip"), "classify", *pictures, "--store", store, "--format", "json", "--top-k", "3")
    assert nearest(answers) == ["one", "two"]
    assert "the blue bird" in answers


def test_a_bundle_of_text_alone_is_whole_and_cannot_be_enrolled_with(bundles, device, tmp_path):
    bundle = bundles("bert")
    assert (bundle.modality, bundle.input.kind, list(bundle.sources)) == ("text", "text", ["text"])
    device(bundle, "doctor")
    message = device(bundle, "enroll", "--text", "dog", code=2)
    assert "edgealign train projection" in message
    assert message.count("\n") == 1


def test_pictures_of_any_size_are_scaled_nearly_as_transformers_scales_them(bundles, folders):
    """Cosine distance; both use pillow, but transformers cuts the middle out of the scaled picture."""
    from edgealign.images import fit

    rng = np.random.default_rng(4)
    for family, height, width in (("vit", 57, 90), ("dinov2", 57, 90), ("clip", 90, 57), ("deit", 21, 33)):
        pixels = np.kron(rng.integers(0, 256, (3, 5, 3)), np.ones((30, 30, 1)))[:height, :width].astype(np.uint8)
        bundle = bundles(family)
        expected = by_transformers(folders(family), family, [Image.fromarray(pixels)])[0]
        assert 1 - bundle.encode(fit(pixels, bundle.input)[None])[0] @ expected < 1e-3


# --- what is refused


@pytest.fixture
def export(edgealign, tmp_path):
    def run(folder: Path, modality: str, *more: object):
        return edgealign("export", "--hf", folder, "--modality", modality, "-o", tmp_path / "bundle", *more)

    return run


def broken(folder: Path, target: Path, *, without: tuple[str, ...] = (), config: dict | None = None) -> Path:
    shutil.copytree(folder, target)
    for name in without:
        (target / name).unlink()
    if config is not None:
        have = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(have | config))
    return target


def test_folders_that_cannot_be_exported_are_refused_in_one_sentence(export, folders, tmp_path):
    bert, vit, wave = folders("bert"), folders("vit"), folders("wav2vec2")
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    pickled = broken(bert, tmp_path / "pickled", without=("model.safetensors",))
    torch.save({}, pickled / "pytorch_model.bin")
    cut = broken(bert, tmp_path / "cut")
    weights = load_file(cut / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, cut / "model.safetensors")
    torn = broken(bert, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes()[:2000])
    garbled = broken(bert, tmp_path / "garbled")
    (garbled / "tokenizer.json").write_text("{")
    unreadable = broken(bert, tmp_path / "unreadable")
    (unreadable / "config.json").write_text("[")
    unpooled = broken(vit, tmp_path / "unpooled")
    weights = {name: x for name, x in load_file(vit / "model.safetensors").items() if "pooler" not in name}
    save_file(weights, unpooled / "model.safetensors")
    large = broken(vit, tmp_path / "large")
    processor = json.loads((large / "preprocessor_config.json").read_text())
    processor["size"] = {"height": 48, "width": 48}
    (large / "preprocessor_config.json").write_text(json.dumps(processor))
    for arguments, code, sentence in (
        ((tmp_path / "none", "text"), 4, "is not a folder"),
        ((tmp_path / "empty", "text"), 4, "has no config.json"),
        ((unreadable, "text"), 4, "is not usable JSON"),
        ((broken(bert, tmp_path / "gpt", config={"model_type": "gpt2"}), "text"), 2, "supported are albert"),
        ((bert, "image"), 2, "use --modality text, not image"),
        ((wave, "image"), 2, "use --modality speech or audio, not image"),
        ((pickled, "text"), 2, "a pickle can run code"),
        ((broken(bert, tmp_path / "light", without=("model.safetensors",)), "text"), 4, "has no weights"),
        ((cut, "text"), 4, "shape (encoder.layer.1.output.dense.weight)"),
        ((torn, "text"), 4, "cannot be loaded as BertModel"),
        ((unpooled, "image", "--pool", "pooler"), 4, "lack 2 tensors of ViTModel"),
        ((broken(bert, tmp_path / "mute", without=("tokenizer.json",)), "text"), 4, "has no tokenizer"),
        ((garbled, "text"), 4, "the tokenizer in"),
        ((broken(vit, tmp_path / "blind", without=("preprocessor_config.json",)), "image"), 4, "preprocessor_config"),
        ((large, "image"), 2, "do not belong together"),
        ((broken(vit, tmp_path / "wide", config={"image_size": 48}), "image"), 4, "or have them in another shape"),
        ((folders("clip"), "image", "--pool", "cls"), 2, "it has a projection of its own"),
        ((wave, "speech", "--pool", "cls"), 2, "--pool cls does not fit a 'wav2vec2' model: use mean"),
        ((vit, "image", "--window", "3"), 2, "--window and --hop are for sounds"),
        ((folders("ast"), "audio", "--window", "3"), 2, "hears at most 1 s at once"),
        ((wave, "audio", "--window", "0.01"), 2, "needs at least 0.1 s"),
        ((wave, "audio", "--hop", "-1"), 2, "--hop -1: windows of 5 s need"),
        ((wave, "speech", "--hop", "1"), 2, "hears the word in a clip"),
        ((bert, "text", "--background", tmp_path), 2, "leave it out for words alone"),
        ((folders("ast"), "audio", "--background", tmp_path / "none"), 4, "is not a folder"),
        ((bert, "text", "--corpus", tmp_path), 2, "--corpus is for an export of CHECKPOINT"),
        ((bert, "text", "-o", tmp_path / "taken"), 2, "exists and is not a bundle"),
    ):
        ran = export(*arguments)
        assert (ran.code, ran.out) == (code, ""), (arguments, ran)
        assert ran.err.startswith("error: ")
        assert ran.err.count("\n") == 1, ran.err
        assert sentence in ran.err
    assert not (tmp_path / "bundle").exists()
    assert list((tmp_path / "taken").iterdir()) == []


def test_without_optimum_the_message_says_what_to_install(export, folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx", None)
    ran = export(folders("bert"), "text")
    assert ran.code == 2
    assert "pip install 'edgealign[hf]'" in ran.err


def test_what_to_export_must_be_named_once(edgealign, folders, tmp_path):
    for arguments in (
        ("-o", tmp_path / "bundle"),
        ("some.pt", "--hf", folders("bert"), "-o", tmp_path / "bundle"),
        ("some.pt", "-o", tmp_path / "bundle"),
        ("some.pt", "--corpus", tmp_path, "--pool", "cls", "-o", tmp_path / "bundle"),
        ("--hf", folders("bert"), "-o", tmp_path / "bundle"),
    ):
        ran = edgealign("export", *arguments)
        assert ran.code == 2
        assert ran.err.startswith("error: ")
        assert ran.err.count("\n") == 1


def test_the_command_prints_where_the_bundle_is_and_its_fingerprint(export, folders, tmp_path):
    ran = export(folders("bert"), "text")
    assert ran.out == f"{tmp_path / 'bundle'}\t{Bundle.open(tmp_path / 'bundle').encoder_sha256}\n"


def test_a_graph_that_lost_parity_leaves_no_bundle(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_graph, "PARITY_TOLERANCE", 1e-12)
    with pytest.raises(ParityLost, match="differs from torch by"):
        options = Options("audio")
        export_huggingface(folders("hubert"), tmp_path / "bundle", options, lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_quantized_where_samples_are_named(export, folders, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        (tmp_path / "pictures" / f"label{i % 2}").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255 // (1 + i % 2), (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"label{i % 2}" / f"{i}.png")
    ran = export(folders("vit"), "image", "--quantize", "int8-dynamic")
    assert (ran.code, ran.out) == (2, "") and "needs --samples" in ran.err
    assert not (tmp_path / "bundle").exists()
    ran = export(folders("vit"), "image", "--quantize", "int8-dynamic", "--samples", tmp_path / "pictures")
    assert ran.code == 0, ran.err
    entries = Bundle.open(tmp_path / "bundle").manifest["encoder"]["variants"]
    assert set(entries) == {"fp32", "int8-dynamic"} and entries["int8-dynamic"]["snr_db"] > 20


def test_words_are_quantized_where_a_file_of_them_is_named(export, folders, tmp_path):
    things, acts = ("a dog", "the cat", "rain", "a bell"), ("barks", "meows", "falls", "rings", "runs")
    (tmp_path / "words.txt").write_text("\n".join(f"{thing} that {acts[i]}" for thing in things for i in range(5)))
    ran = export(folders("clip"), "image", "--quantize", "int8-dynamic", "--texts", tmp_path / "words.txt")
    assert ran.code == 0, ran.err
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.source("text").file == "text.int8-dynamic.onnx" and bundle.variants == ["fp32"]
    graph = onnx.load_from_string(bundle.read("text.int8-dynamic.onnx")).graph
    assert {tensor.data_type for tensor in graph.initializer} & {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    assert bundle.encode_text(bundle.tokenizer.encode("a dog that barks")).shape == (bundle.dim,)
