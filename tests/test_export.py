"""Checkpoint to bundle: what is lost on the way is measured, and refused beyond a bound."""

import io
import logging
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from scipy.special import expit
from torch import Tensor

from edgealign import Bundle, Recognizer, demo, golden, kernels
from edgealign.errors import InvalidInput
from edgealign.export import decision, graph, quantize, speech
from edgealign.export.decision import FEATURES, Pool
from edgealign.export.graph import ExportedSpeech, ExportedText, ParityLost, session_of
from edgealign.export.main import main
from edgealign.export.quantize import QuantizationLost, measure_drift
from edgealign.kernels import Calibration
from edgealign.train.text_to_speech import Checkpoint

# Encoders of 24 channels lose more than those that ship.
TINY_SNR_DB = 3.0


class Exported(NamedTuple):
    """What `edgealign export` left."""

    bundle: Bundle
    weights: Path
    printed: str


@pytest.fixture(scope="module")
def exported(trained_run: Path, spoken_corpus, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Made from synthetic words alone, fewer than the bank and the quantizer would take."""
    folder, printed = tmp_path_factory.mktemp("export"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(quantize, "MIN_SNR_DB", TINY_SNR_DB)
        arguments = [trained_run / "best.pt", "--corpus", spoken_corpus.folder, "-o", folder / "new" / "bundle"]
        main([*map(str, arguments), "--weights", str(folder / "weights.pt")])
    return Exported(Bundle.open(folder / "new" / "bundle"), folder / "weights.pt", printed.getvalue())


@pytest.fixture(scope="module")
def checkpoint(trained_run: Path) -> Checkpoint:
    return Checkpoint.load(trained_run / "best.pt")


def speech_inputs(*shapes: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(batch, 48, frames)) * 3 - 6).astype(np.float32) for batch, frames in shapes]


# ---- graph ----


@pytest.mark.parametrize("shape", [(1, 18), (2, 37), (1, 99), (4, 140), (1, 300)])
def test_the_exported_speech_encoder_gives_what_the_checkpoint_gives(speech_onnx, checkpoint, shape):
    """Without a center the graph is e_t followed by A, which export folds into one layer."""
    (x,) = speech_inputs(shape)
    with torch.inference_mode():
        expected = checkpoint.encoders.embed_speech(torch.from_numpy(x)).numpy()
    assert np.abs(speech_onnx.run(None, {"log_mel": x})[0] - expected).max() < graph.PARITY_TOLERANCE


@pytest.fixture(scope="module")
def speech_onnx(checkpoint):
    config = checkpoint.encoders.config
    # An alignment map that training has turned and shifted, so that folding it wrongly shows.
    torch.manual_seed(0)
    torch.nn.init.normal_(checkpoint.encoders.alignment.weight, std=0.3)
    torch.nn.init.normal_(checkpoint.encoders.alignment.bias, std=0.3)
    module = ExportedSpeech(checkpoint.encoders, torch.zeros(config.dim))
    return session_of(graph.speech_to_onnx(module, config.n_mels))


@pytest.mark.parametrize("shape", [(1, 3), (3, 8), (1, 40)])
def test_the_exported_text_encoder_gives_what_the_checkpoint_gives(text_onnx, checkpoint, shape):
    tokens = np.random.default_rng(1).integers(checkpoint.encoders.config.n_tokens, size=shape)
    with torch.inference_mode():
        expected = checkpoint.encoders.embed_text(torch.from_numpy(tokens)).numpy()
    assert np.abs(text_onnx.run(None, {"tokens": tokens})[0] - expected).max() < graph.PARITY_TOLERANCE


@pytest.fixture(scope="module")
def text_onnx(checkpoint):
    config = checkpoint.encoders.config
    return session_of(graph.text_to_onnx(ExportedText(checkpoint.encoders, torch.zeros(config.dim)), config.n_tokens))


def test_the_center_is_taken_out_of_the_unit_embedding(checkpoint):
    center = torch.randn(checkpoint.encoders.config.dim, generator=torch.Generator().manual_seed(0)) * 0.05
    (x,) = speech_inputs((3, 50))
    with torch.inference_mode():
        plain = checkpoint.encoders.embed_speech(torch.from_numpy(x)).numpy() - center.numpy()
        centered = ExportedSpeech(checkpoint.encoders, center).eval()(torch.from_numpy(x)).numpy()
    assert np.allclose(centered, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-5)


def test_export_leaves_the_checkpoints_encoders_as_they_were(checkpoint):
    before = {name: value.clone() for name, value in checkpoint.encoders.state_dict().items()}
    ExportedSpeech(checkpoint.encoders, torch.zeros(checkpoint.encoders.config.dim))
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.encoders.state_dict().items())


class BakesItsLength(ExportedSpeech):
    """A graph that is right at the length it was traced with, and at no other."""

    def forward(self, log_mel: Tensor) -> Tensor:
        return super().forward(log_mel * (float(log_mel.shape[2]) / 98))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_an_encoder_that_is_right_at_one_length_only_is_refused(checkpoint):
    module = BakesItsLength(checkpoint.encoders, torch.zeros(checkpoint.encoders.config.dim))
    with pytest.raises(ParityLost, match=r"at the shape \(1, 48, 18\) the exported encoder differs from torch by"):
        graph.speech_to_onnx(module, 48)


def test_an_encoder_that_was_tampered_with_after_the_trace_is_refused(checkpoint, monkeypatch):
    def with_a_bit_less(data: bytes) -> object:
        model = onnx.load_from_string(data)
        largest = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
        values = onnx.numpy_helper.to_array(largest) * np.float32(0.99)
        largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))
        return session_of(model.SerializeToString())

    monkeypatch.setattr(graph, "session_of", with_a_bit_less)
    config = checkpoint.encoders.config
    with pytest.raises(ParityLost, match="allowed is 5e-05"):
        graph.text_to_onnx(ExportedText(checkpoint.encoders, torch.zeros(config.dim)), config.n_tokens)


def test_half_weights_halve_the_file_and_keep_the_embeddings(exported, checkpoint):
    config = checkpoint.encoders.config
    data = graph.text_to_onnx(ExportedText(checkpoint.encoders, torch.zeros(config.dim)), config.n_tokens)
    half = graph.with_half_weights(data)
    inputs = [np.random.default_rng(i).integers(config.n_tokens, size=(1, 9)) for i in range(8)]
    assert len(half) < 0.8 * len(data)
    # float16 has 11 bits: one part in 2048, or 66 dB, in every weight that was narrowed.
    assert measure_drift(data, half, "tokens", inputs).snr_db > 50
    assert {(i.name, i.type) for i in session_of(half).get_inputs()} == {("tokens", "tensor(int64)")}


# ---- quantization ----


def test_drift_is_the_noise_ratio_in_db_and_the_largest_cosine_distance(monkeypatch):
    """One embedding is exact, the other is turned by 0.1 rad."""
    true = np.array([[1, 0], [1, 0]], dtype=np.float32)
    turned = np.array([[1, 0], [np.cos(0.1), np.sin(0.1)]], dtype=np.float32)

    class Answers:
        def __init__(self, rows: np.ndarray) -> None:
            self.rows = rows

        def run(self, _outputs: None, _inputs: dict) -> list[np.ndarray]:
            return [self.rows]

    monkeypatch.setattr(quantize, "session_of", {b"fp32": Answers(true), b"int8": Answers(turned)}.__getitem__)
    drift = measure_drift(b"fp32", b"int8", "log_mel", [true])
    assert drift.max_cosine_drift == pytest.approx(1 - np.cos(0.1), abs=1e-6)
    # |a - b|^2 = (2 sin 0.05)^2 of |a|^2 = 2
    assert drift.snr_db == pytest.approx(10 * np.log10(2 / (2 * np.sin(0.05)) ** 2), abs=1e-3)


def quantized(checkpoint: Checkpoint) -> tuple[bytes, bytes, quantize.Drift]:
    config = checkpoint.encoders.config
    data = graph.text_to_onnx(ExportedText(checkpoint.encoders, torch.zeros(config.dim)), config.n_tokens)
    tokens = [np.random.default_rng(i).integers(config.n_tokens, size=(1, 4 + i % 7)) for i in range(40)]
    return data, *quantize.quantize(data, "tokens", tokens[:30], tokens[30:])


def test_the_quantized_encoder_is_smaller_has_int8_weights_and_the_drift_that_it_states(checkpoint, monkeypatch):
    monkeypatch.setattr(quantize, "MIN_SNR_DB", TINY_SNR_DB)
    level = logging.getLogger().level
    data, small, drift = quantized(checkpoint)
    assert len(small) < len(data)
    types = {
        tensor.data_type for tensor in onnx.load_from_string(small).graph.initializer if np.prod(tensor.dims) > 256
    }
    assert types == {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}  # weights, and the table of tokens
    assert drift.snr_db > TINY_SNR_DB
    assert 0 < drift.max_cosine_drift < 1
    assert logging.getLogger().level == level
    assert logging.getLogger().isEnabledFor(logging.WARNING)


def test_a_quantized_encoder_that_lost_too_much_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(quantize, "MIN_SNR_DB", 70.0)
    with pytest.raises(QuantizationLost, match=r"ratio of \d+\.\d dB, expected at least 70 dB"):
        quantized(checkpoint)


def test_a_quantized_encoder_that_is_broken_is_refused(checkpoint, monkeypatch):
    """Ranges taken from inputs that say nothing of real ones: all tokens alike."""
    config = checkpoint.encoders.config
    data = graph.speech_to_onnx(ExportedSpeech(checkpoint.encoders, torch.zeros(config.dim)), config.n_mels)
    flat = [np.full((1, 48, 30), -6, np.float32)] * 2
    with pytest.raises(QuantizationLost):
        quantize.quantize(data, "log_mel", flat, speech_inputs(*[(1, 60)] * 5))


# ---- decision ----


def pool(n_labels: int = 30, spread: float = 0.25, seed: int = 0, dim: int = 16) -> Pool:
    """Words as clouds around random directions; three speakers, six takes each; the text lies in the middle."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(n_labels, dim))
    label = np.repeat(np.arange(n_labels), 18)
    rows = unit(centers[label] / np.linalg.norm(centers[label], axis=1, keepdims=True)
                + spread * rng.normal(size=(len(label), dim)))  # fmt: skip
    text = {i: unit(centers[i : i + 1])[0] for i in range(n_labels)}
    return Pool(rows, label, np.tile(np.repeat(np.arange(3), 6), n_labels), text)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


NOISES, BANK = (unit(np.random.default_rng(seed).normal(size=(n, 16))) for seed, n in ((1, 40), (2, 200)))


@pytest.fixture(scope="module")
def fitted() -> dict:
    return decision.fit([pool()], NOISES, BANK, text_weight=1.0)


@pytest.mark.parametrize("text_weight", [1.0, 2.0])
def test_the_decision_is_fitted_on_what_the_device_computes(fitted, text_weight):
    """The features times the weights are the logit of `kernels.Matcher`, for labels of recordings, text, and both."""
    words, rng = pool(seed=3), np.random.default_rng(4)
    owner, spoken, support = [], [], []
    for slot, n_recordings, has_text in ((0, 1, False), (1, 5, False), (2, 0, True), (3, 3, True)):
        support += [words.speech[18 * slot + i] for i in range(n_recordings)] + [words.text[slot]] * has_text
        owner += [slot] * (n_recordings + has_text)
        spoken += [True] * n_recordings + [False] * has_text
    support, owner, spoken = np.array(support), np.array(owner, np.int32), np.array(spoken)
    queries = np.concatenate([words.speech[[9, 30, 50, 70, 17]], unit(rng.normal(size=(5, 16)))])
    features, nearest, shots = decision._features(
        queries, support, owner, spoken, 4, BANK, text_weight, fitted["prior_loo"]
    )
    kinds = np.where(spoken, kernels.RECORDING, kernels.TEXT)
    matcher = kernels.Matcher(support, owner, kinds, 4, BANK, Calibration(**fitted), text_weight)
    assert {0, 3, 5} & set(shots.tolist())
    for query, row, label in zip(queries, features, nearest, strict=True):
        match = matcher.classify(query)[0]
        assert match.label == label
        assert match.probability == pytest.approx(expit(row @ [fitted[name] for name in FEATURES]), abs=1e-4)


def test_a_larger_distance_can_only_make_a_label_less_probable(fitted):
    assert min(fitted[name] for name in ("w_z", "w_t", "w_margin", "w_shots")) >= 0
    assert fitted["w_distance"] <= 0
    Calibration(**fitted).check(len(BANK))


@pytest.mark.parametrize("text_alone", [False, True])
def test_the_share_of_never_enrolled_words_that_is_accepted_is_the_one_that_was_asked_for(text_alone):
    """Whether labels have recordings or a text alone, and however far texts lie from recordings."""
    words, rng = pool(), np.random.default_rng(6)
    far = {label: unit(text[None] + 0.3 * rng.normal(size=16))[0] for label, text in words.text.items()}
    words = Pool(words.speech, words.label, words.speaker, far)
    shares = {"false_accepts": 0.05, "false_accepts_of_texts": 0.08}
    fitted = decision.fit([words], NOISES, BANK, text_weight=1.0, **shares)
    asked = decision._ask(words, NOISES, BANK, 1.0, fitted["prior_loo"], np.random.default_rng(5))
    logits = asked.features @ [fitted[name] for name in FEATURES]
    accepted = logits >= fitted["accept_logit"]
    strangers = asked.stranger & ((asked.shots == 0) == text_alone)
    # of a store of five labels: whoever was asked of fewer had fewer chances
    share = np.mean(accepted[strangers] * 5 / asked.way[strangers])
    assert share == pytest.approx(shares["false_accepts_of_texts" if text_alone else "false_accepts"], abs=0.02)
    known = asked.enrolled & asked.right & ((asked.shots == 0) == text_alone)
    assert accepted[known].mean() > (0.35 if text_alone else 0.7)
    assert not (asked.enrolled & asked.stranger).any()
    assert not asked.right[~asked.enrolled].any()


def test_the_threshold_is_that_of_the_strictest_pool_and_noises_do_not_count():
    """Two pools of four strangers, the last a noise, asked of five labels; half of them may be accepted."""
    stranger, nobody = np.array([True, True, True, False]), np.zeros(4, bool)

    def questions(*logits: float) -> decision.Questions:
        features = np.array(logits)[:, None]
        return decision.Questions(features, nobody, nobody, stranger, np.ones(4), np.full(4, 5))

    asked = [questions(1, 2, 3, 9), questions(-1, 5, 7, 8)]
    everyone = [np.ones(4, bool)] * 2
    assert decision._threshold(asked, everyone, np.ones(1), 0.5) == np.nextafter(5, np.inf)
    assert decision._threshold(asked, [everyone[0], nobody], np.ones(1), 0.5) == np.nextafter(2, np.inf)


def test_the_decision_is_the_same_for_the_same_seed(fitted):
    assert decision.fit([pool()], NOISES, BANK, text_weight=1.0) == fitted


def test_a_pool_of_few_takes_is_judged_at_as_many_as_it_has():
    """Two takes by each speaker: five shots never occur."""
    few = pool()
    kept = np.tile(np.arange(18) % 6 < 2, 30)
    few = Pool(few.speech[kept], few.label[kept], few.speaker[kept], few.text)
    calibration = decision.fit([few], NOISES, BANK, text_weight=1.5)
    assert np.isfinite(list(calibration.values())).all()


def test_the_report_has_a_line_per_number_of_shots(fitted):
    lines = decision.report(fitted, [pool()], NOISES, BANK, text_weight=1.0)
    assert [line.split(",")[1].split()[0] for line in lines] == ["0", "1", "2", "3", "5"]  # of six takes, ten are never


# ---- the bundle ----


def test_the_bundle_is_whole_and_computes_what_its_golden_vectors_say(exported):
    exported.bundle.verify()
    assert [stage for stage in golden.compare(exported.bundle) if not stage.passed] == []


def test_the_command_prints_where_the_bundle_is_and_its_fingerprint(exported):
    assert exported.printed == f"{exported.bundle.path}\t{exported.bundle.encoder_sha256}\n"


def test_the_bundle_has_both_variants_and_states_their_drift(exported):
    encoder = exported.bundle.manifest["encoder"]
    assert encoder["default"] == "int8"
    assert set(encoder["variants"]) == {"int8", "fp32"}
    int8, fp32 = encoder["variants"]["int8"], encoder["variants"]["fp32"]
    assert TINY_SNR_DB < int8["snr_db"] < fp32["snr_db"]
    assert 0 <= fp32["max_cosine_drift"] < int8["max_cosine_drift"] < 1
    (x,) = speech_inputs((1, 70))
    one, other = (exported.bundle.encode(x, variant) for variant in ("int8", "fp32"))
    assert not np.array_equal(one, other)
    assert float(np.linalg.norm(one)) == pytest.approx(1, abs=1e-5)


def test_the_bundle_hears_what_training_heard(exported, spoken_corpus):
    """Front end, filters and window policy are those of training, and its languages are those of the corpus."""
    from dataclasses import asdict

    from edgealign.train.front_end import FRONT_END, WINDOWS, mel_filters

    assert exported.bundle.manifest["front_end"] == asdict(FRONT_END)
    assert exported.bundle.manifest["windows"] == asdict(WINDOWS)
    assert np.array_equal(exported.bundle.filters, mel_filters())
    assert {"sw", "en"} <= set(exported.bundle.tokenizer.languages)


def test_the_bank_holds_every_training_word_that_there_is_and_noises(exported, spoken_corpus):
    n_words = len(spoken_corpus.corpus.select("train", synthetic=True))
    bank = exported.bundle.bank
    assert bank.shape == (n_words + speech.BANK_NOISES, exported.bundle.manifest["dim"])
    assert np.allclose(np.linalg.norm(bank, axis=1), 1, atol=2e-3)  # float16


def test_the_demo_runs_with_the_bundle(exported):
    result = demo.run(exported.bundle.path)
    assert result.n_enrolled > 0
    assert all(query.answer is not None for query in result.queries)
    assert len(result.queries) > 10


def test_a_label_can_be_typed_with_the_bundle(exported, tmp_path):
    recognizer = Recognizer(exported.bundle, tmp_path / "words.store")
    report = recognizer.enroll((), label="water", text="maji", language="sw")
    assert [label.n_texts for label in report.labels] == [1]
    clips = sorted(Path(demo.CLIPS, "enroll").rglob("*.ogg"))
    recognizer.enroll(clips[:3], label="clips")
    assert recognizer.classify(clips[0]).label in {"water", "clips", None}


def test_the_weights_in_half_precision_can_be_exported_and_started_from(exported, trained_run, spoken_corpus, tmp_path):
    from tiny_run import tiny_config

    from edgealign.train.text_to_speech import Trainer

    half, full = Checkpoint.load(exported.weights), Checkpoint.load(trained_run / "best.pt")
    assert (half.vocabulary, half.config, half.corpus_sha256) == (full.vocabulary, full.config, full.corpus_sha256)
    assert exported.weights.stat().st_size < 0.3 * (trained_run / "best.pt").stat().st_size
    (x,) = speech_inputs((1, 50))
    with torch.inference_mode():
        one, other = (c.encoders.embed_speech(torch.from_numpy(x)) for c in (half, full))
    assert torch.allclose(one, other, atol=5e-3)
    Trainer(spoken_corpus.corpus, tiny_config(), tmp_path / "next").start_from(exported.weights)


# ---- refusals ----


@pytest.fixture
def export(edgealign, trained_run, spoken_corpus, tmp_path):
    def run(checkpoint=trained_run / "best.pt", corpus=spoken_corpus.folder, output=tmp_path / "bundle", more=()):
        return edgealign("export", checkpoint, "--corpus", corpus, "-o", output, *more)

    return run


def test_the_command_refuses_wrong_input_in_one_sentence(export, tmp_path):
    (tmp_path / "taken").write_text("text")
    (tmp_path / "folder").mkdir()
    research = tmp_path / "research.pt"
    torch.save({"format": "edgealign paired run 2", "model": {}}, research)
    for ran, sentence in (
        (export(checkpoint=tmp_path / "none.pt"), "there is no checkpoint"),
        (export(checkpoint=tmp_path / "taken"), "taken' is not a checkpoint of `edgealign train`"),
        (export(checkpoint=tmp_path), "is not a checkpoint of `edgealign train`"),
        (export(checkpoint=research), "is a checkpoint of another command ('edgealign paired run 2')"),
        (export(corpus=tmp_path), "is not a rendered corpus (no manifest.json)"),
        (export(output=tmp_path / "folder"), "exists and is not a bundle"),
        (export(output=tmp_path / "taken" / "bundle"), "no bundle can be written to"),
        (export(more=("--weights", tmp_path / "none" / "w.pt")), "the weights cannot be written to"),
    ):
        assert ran.code == 2, ran
        assert ran.out == ""
        assert ran.err.startswith("error: ")
        assert ran.err.count("\n") == 1
        assert sentence in ran.err
    assert not (tmp_path / "bundle").exists()


def test_a_corpus_that_was_rendered_anew_will_do(trained_run, recorded_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "MIN_SNR_DB", TINY_SNR_DB)
    lines: list[str] = []
    checkpoint = Checkpoint.load(trained_run / "best.pt")
    made = speech.export_speech(checkpoint, recorded_corpus.folder, tmp_path / "bundle", lines.append)
    made.verify()
    assert any("training heard" in line and recorded_corpus.corpus.sha256[:12] in line for line in lines)


def test_a_corpus_that_was_rendered_with_other_options_is_refused(export, trained_run, tmp_path):
    def trained_on(**changed: object) -> Path:
        state = torch.load(trained_run / "best.pt", weights_only=True)
        torch.save({**state, "corpus_sha256": "0" * 64, "corpus": {**state["corpus"], **changed}}, tmp_path / "own.pt")
        return tmp_path / "own.pt"

    for changed, sentence in (
        ({"languages": ["sw", "fi"]}, "languages = ['sw', 'en'] where it was ['sw', 'fi']"),
        ({"words_per_language": 600}, "words_per_language = 60 where it was 600"),
        ({"recordings": True}, "recordings = False where it was True"),
    ):
        ran = export(checkpoint=trained_on(**changed))
        assert (ran.code, ran.out) == (2, ""), ran
        assert sentence in ran.err
    assert not (tmp_path / "bundle").exists()


def test_an_encoder_that_lost_too_much_leaves_no_bundle(trained_run, spoken_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "MIN_SNR_DB", 90.0)
    checkpoint = Checkpoint.load(trained_run / "best.pt")
    with pytest.raises(QuantizationLost):
        speech.export_speech(checkpoint, spoken_corpus.folder, tmp_path / "bundle", lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_other_encoders_than_this_version_knows_is_refused(trained_run, tmp_path):
    state = torch.load(trained_run / "best.pt", weights_only=True)
    state["config"]["encoders"]["n_wings"] = 2
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(InvalidInput, match="saved by another version"):
        Checkpoint.load(tmp_path / "other.pt")
