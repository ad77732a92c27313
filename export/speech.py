"""A checkpoint of `edgealign train text-to-speech` -> the bundle `speech`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path

import numpy as np
import soundfile

from edgealign import __version__, demo
from edgealign.bundle import Bundle, check_target, write_bundle
from edgealign.export import decision, graph
from edgealign.export.quantize import embedder, measure_drift, quantize
from edgealign.train import last_maps
from edgealign.train.batches import Batches
from edgealign.train.clips import Clips
from edgealign.train.config import TrainConfig
from edgealign.train.corpus import EVALUATION_PACKS, Corpus, EvaluationPack
from edgealign.train.front_end import FRONT_END, WINDOWS, mel_filters
from edgealign.train.pronunciations import with_dictionary
from edgealign.train.text_to_speech import Checkpoint

CARD = Path(__file__).with_name("speech_card.md")
ATTRIBUTION = [
    "Wake words by Picovoice (Apache-2.0)",
    "Community wake words by the Mycroft community (public domain waivers)",
    "ESC-50 clips marked CC0 or CC BY, as noise; their authors are named in ESC-50's own metadata",
    "Unicode CLDR names (Unicode license) and Debian word lists, spoken by espeak-ng and festival voices",
]

# What the card says of the text encoder, by whether training left out packs.
READING = {
    False: "the text encoder learned what all words of the lists would sound like to it, these among them",
    True: "the text encoder did not read them either",
}


def recordings_heard(left_out: Collection[str]) -> list[tuple[EvaluationPack, str]]:
    """The evaluation packs of which something was heard, and what."""
    heard = [(pack, pack.part if name in left_out else pack.whole) for name, pack in EVALUATION_PACKS.items()]
    return [(pack, what) for pack, what in heard if what]


def attribution(left_out: Collection[str]) -> list[str]:
    """The manifest's list of what the weights were made from."""
    return [*(pack.attribution(what) for pack, what in recordings_heard(left_out)), *ATTRIBUTION]


BANK_WORDS, BANK_RECORDINGS, BANK_NOISES = 950, 200, 250
CALIBRATION_CLIPS, HELD_OUT_CLIPS = 300, 200
# Recordings that a typed word counts as. Chosen on validation words said by flite, a synthesizer that training does not
# hear: of 0.5 to 3, one served words asked by the enrolled voice and by another. Voices of training would flatter text.
TEXT_WEIGHT = 1.0
GOLDEN_TEXTS = (
    ("maji", "grapheme", "sw"), ("ˈmadʒi", "ipa", None), ("water", "grapheme", None), ("two", "grapheme", None),
)  # fmt: skip


def export_speech(checkpoint: Checkpoint, corpus_path: Path, target: Path, report: Callable[[str], None]) -> Bundle:
    """Write the bundle at `target`: int8 and fp32 encoders, text encoder, background bank, decision and card.

    corpus_path   quantization samples, bank and validation words. One that was rendered anew will do: whether a word is
                  for validation is said by how it sounds, and of a recording by the packs' splits
    """
    check_target(target)
    checkpoint.refuse_teacher()
    corpus = Corpus(corpus_path)
    checkpoint.check(corpus)
    if checkpoint.corpus_sha256 != corpus.sha256:
        report(
            f"'{corpus_path}' is the corpus {corpus.sha256[:12]}, training heard {checkpoint.corpus_sha256[:12]}: "
            f"words for validation are the same in both"
        )
    config = checkpoint.encoders.config
    left_out = checkpoint.left_out
    batches = Batches(corpus, checkpoint.vocabulary, TrainConfig(encoders=config, left_out=left_out))
    clips = Clips(corpus, batches, seed=11)

    finished = checkpoint.finished or last_maps.finish(checkpoint.encoders, clips)
    speech = graph.ExportedSpeech(finished.encoders, finished.speech_center)
    text = graph.ExportedText(finished.encoders, finished.text_center)
    speech_fp32 = graph.speech_to_onnx(speech, config.n_mels)
    text_fp32 = graph.text_to_onnx(text, config.n_tokens)
    report("encoders exported, parity with torch holds")

    samples = clips.training_words(CALIBRATION_CLIPS + HELD_OUT_CLIPS)
    batched = [x[None] for x in samples]
    n_seen = len(samples) * CALIBRATION_CLIPS // (CALIBRATION_CLIPS + HELD_OUT_CLIPS)
    speech_int8, drift = quantize(speech_fp32, "log_mel", batched[:n_seen], batched[n_seen:])
    tokens = clips.token_rows(CALIBRATION_CLIPS + HELD_OUT_CLIPS)
    text_int8, text_drift = quantize(text_fp32, "tokens", tokens[:n_seen], tokens[n_seen:])
    speech_stored = graph.with_half_weights(speech_fp32)
    stored_drift = measure_drift(speech_fp32, speech_stored, "log_mel", batched[n_seen:])
    report(f"int8: speech {drift.snr_db:.1f} dB, text {text_drift.snr_db:.1f} dB")

    embed_tokens, embed_batches = embedder(text_int8, "tokens"), embedder(speech_int8, "log_mel")
    embed = lambda log_mels: embed_batches([x[None] for x in log_mels])  # noqa: E731
    bank = embed(clips.training_words(BANK_WORDS) + clips.recordings(BANK_RECORDINGS) + clips.noises(BANK_NOISES))
    bank = bank.astype(np.float16).astype(np.float32)
    calibration = fit_decision(clips, embed, embed_tokens, bank, report)

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        (source / "encoder.onnx").write_bytes(speech_int8)
        (source / "encoder.fp32.onnx").write_bytes(speech_stored)
        (source / "text_encoder.onnx").write_bytes(text_int8)
        (source / "filters.f32").write_bytes(mel_filters().astype("<f4").tobytes())
        (source / "bank.f16").write_bytes(bank.astype("<f2").tobytes())
        vocabulary = with_dictionary(checkpoint.vocabulary, checkpoint.dictionary)
        (source / "vocab.json").write_text(json.dumps(vocabulary, sort_keys=True, ensure_ascii=False))
        (source / "README.md").write_text(_card(left_out), encoding="utf-8")
        return write_bundle(
            target, source,
            golden_samples=golden_clips(), golden_texts=GOLDEN_TEXTS,
            name="speech", modality="speech", bundle_version=__version__, dim=config.dim,
            front_end=asdict(FRONT_END), windows=asdict(WINDOWS),
            encoder={"default": "int8", "variants": {
                "int8": {"file": "encoder.onnx", **asdict(drift)},
                "fp32": {"file": "encoder.fp32.onnx", **asdict(stored_drift)},
            }},
            text_encoder={"file": "text_encoder.onnx", "vocab": "vocab.json", "weight": TEXT_WEIGHT},
            bank={"file": "bank.f16", "rows": len(bank)},
            calibration=calibration,
            license="Apache-2.0", attribution=attribution(left_out),
        )  # fmt: skip


def fit_decision(
    clips: Clips, embed: decision.Embed, embed_tokens: decision.Embed, bank: np.ndarray, report: Callable[[str], None]
) -> dict[str, float]:
    """The `calibration` section of the manifest, fitted on the validation words of the corpus of `clips`."""
    noises = embed(Clips(clips.corpus, clips.batches, seed=12).noises(100))
    # A pool of one word has nothing that could be mistaken for it; a synthetic corpus has no recorded ones.
    kinds = [synthetic for synthetic in (True, False) if len(clips.corpus.select("val", synthetic)) > 1]
    pools = [pool_of(clips, embed, embed_tokens, synthetic) for synthetic in kinds]
    calibration = decision.fit(pools, noises, bank, TEXT_WEIGHT)
    for line in decision.report(calibration, pools, noises, bank, TEXT_WEIGHT):
        report(line)
    return calibration


def pool_of(clips: Clips, embed: decision.Embed, embed_tokens: decision.Embed, synthetic: bool) -> decision.Pool:
    """Embedded meta-validation words, half of the clips as they are and half under field conditions."""
    corpus, batches = clips.corpus, clips.batches
    labels = corpus.select("val", synthetic)
    rows = [int(clip) for label in labels for clip in corpus.clips_of[label]]
    rows = clips.rng.permutation(rows)[:2500].tolist()
    half = len(rows) // 2
    speech = np.concatenate([embed(clips.plain(rows[:half])), embed(clips.in_the_field(rows[half:]))])
    spelled = [i for i in labels if corpus.labels[i].text]
    kinds = clips.rng.permutation([i % 2 for i in range(len(spelled))])
    text = {
        label: embed_tokens([batches.tokens([label], ("grapheme", "ipa")[kind], None)[0].numpy()])[0]
        for label, kind in zip(spelled, kinds, strict=True)
    }
    return decision.Pool(speech, corpus.clips["label"][rows], corpus.clips["speaker"][rows], text)


def _card(left_out: Collection[str]) -> str:
    rows = "".join(f"| {pack.title}: {what} | {pack.license} |\n" for pack, what in recordings_heard(left_out))
    card = CARD.read_text(encoding="utf-8").replace("{recordings}\n", rows)
    return card.replace("{reading}", READING[bool(left_out)])


def golden_clips() -> list[np.ndarray]:
    folder = Path(demo.CLIPS, "ask")
    names = ("water_rms_15dB.ogg", "moon_awb_25dB.ogg", "river_awb_12dB.ogg", "noise_2.ogg")
    return [soundfile.read(folder / name, dtype="float32")[0] for name in names]
