"""A checkpoint of `edgealign train text-to-speech` -> the bundle `speech`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import soundfile
import torch

from edgealign import __version__, demo
from edgealign.bundle import Bundle, check_target, write_bundle
from edgealign.export import decision, graph, last_maps
from edgealign.export.last_maps import Pooled
from edgealign.export.quantize import measure_drift, quantize
from edgealign.train.batches import Batches
from edgealign.train.config import TrainConfig
from edgealign.train.corpus import EVALUATION_PACKS, STRETCHES, Corpus, EvaluationPack
from edgealign.train.encoders import AlignedEncoders
from edgealign.train.front_end import FRONT_END, WINDOWS, mel_filters

CARD = Path(__file__).with_name("speech_card.md")
ATTRIBUTION = [
    "Wake words by Picovoice (Apache-2.0)",
    "Community wake words by the Mycroft community (public domain waivers)",
    "ESC-50 clips marked CC0 or CC BY, as noise; their authors are named in ESC-50's own metadata",
    "Unicode CLDR names (Unicode license) and Debian word lists, spoken by espeak-ng and festival voices",
]


def recordings_heard(left_out: Collection[str]) -> list[tuple[EvaluationPack, str]]:
    """The evaluation packs of which something was heard, and what."""
    heard = [(pack, pack.part if name in left_out else pack.whole) for name, pack in EVALUATION_PACKS.items()]
    return [(pack, what) for pack, what in heard if what]


def attribution(left_out: Collection[str]) -> list[str]:
    """The manifest's list of what the weights were made from."""
    return [*(pack.attribution(what) for pack, what in recordings_heard(left_out)), *ATTRIBUTION]


BANK_WORDS, BANK_RECORDINGS, BANK_NOISES = 950, 200, 250
CALIBRATION_CLIPS, HELD_OUT_CLIPS = 300, 200
REFIT_WORDS, REFIT_CLIPS, REFIT_RECORDINGS = 6000, 3, 120  # clips of each synthetic word, and of each recorded one
# Recordings that a typed word counts as. Chosen on validation words said by flite, a synthesizer that training does not
# hear: of 0.125 to 3, three quarters served words asked by the enrolled voice and by another. Voices of training would
# flatter text.
TEXT_WEIGHT = 0.75
GOLDEN_TEXTS = (("maji", "grapheme", "sw"), ("ˈmadʒi", "ipa", None), ("water", "grapheme", None))


def export_speech(
    checkpoint: graph.Checkpoint, corpus_path: Path, target: Path, report: Callable[[str], None]
) -> Bundle:
    """Write the bundle at `target`: int8 and fp32 encoders, text encoder, background bank, decision and card.

    corpus_path   quantization samples, bank and validation words. One that was rendered anew will do: whether a word is
                  for validation is said by how it sounds, and of a recording by the packs' splits
    """
    check_target(target)
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

    encoders = refit(checkpoint.encoders, clips)
    centers = _centers(encoders, clips)
    speech = graph.ExportedSpeech(encoders, centers[0])
    text = graph.ExportedText(encoders, centers[1])
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

    embed, embed_tokens = runner_of(speech_int8, "log_mel"), runner_of(text_int8, "tokens")
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
        (source / "vocab.json").write_text(json.dumps(checkpoint.vocabulary, sort_keys=True, ensure_ascii=False))
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
    pools = [clips.pool(embed, embed_tokens, synthetic) for synthetic in kinds]
    calibration = decision.fit(pools, noises, bank, TEXT_WEIGHT)
    for line in decision.report(calibration, pools, noises, bank, TEXT_WEIGHT):
        report(line)
    return calibration


def _card(left_out: Collection[str]) -> str:
    rows = "".join(f"| {pack.title}: {what} | {pack.license} |\n" for pack, what in recordings_heard(left_out))
    return CARD.read_text(encoding="utf-8").replace("{recordings}\n", rows)


class Clips:
    """Log-mels [n_mels, n_frames] of a corpus, each at its own length, drawn with a seed."""

    def __init__(self, corpus: Corpus, batches: Batches, seed: int) -> None:
        self.corpus, self.batches, self.seed = corpus, batches, seed
        self.rng = np.random.default_rng(seed)

    def training_words(self, n: int) -> list[np.ndarray]:
        """n synthetic words under field conditions, one clip a word; all where the corpus has fewer."""
        labels = self.rng.choice(self.batches.synthetic, min(n, len(self.batches.synthetic)), replace=False)
        return self.in_the_field([int(self.rng.choice(self.corpus.clips_of[i])) for i in labels])

    def recordings(self, n: int) -> list[np.ndarray]:
        """Words that people said, none of those that accuracy is measured on: a word that lies in the bank is taken for
        "anything else" sooner. None where the corpus is synthetic alone."""
        labels = self.corpus.select("train", synthetic=False)
        rows = [clip for label in labels for clip in self.corpus.clips_of[label]]
        rows = self.rng.choice(rows, min(n, len(rows)), replace=False) if rows else []
        return self.in_the_field([int(i) for i in rows])

    def noises(self, n: int) -> list[np.ndarray]:
        """Pieces of recorded noise, 0.3 to 1.5 s, and colored noise where none was recorded."""
        pieces = []
        for _ in range(n):
            frames = int(self.rng.integers(30, 150))
            if len(self.corpus.noise) > frames:
                start = int(self.rng.integers(len(self.corpus.noise) - frames))
                pieces.append(self.corpus.noise[start : start + frames])
            else:
                slope = np.linspace(0, float(self.rng.uniform(-60, 10)), self.corpus.spectra.shape[1])
                pieces.append((120 + slope + self.rng.normal(0, 8, (frames, len(slope)))).clip(1, 255).astype(np.uint8))
        return self._lengths(*self.batches.augmenter.clean(pieces))

    def several_of_each(self, n_words: int, n_clips: int) -> tuple[list[int], list[int]]:
        """Up to n_clips clips each of n_words synthetic words: the word of each, and its row in the corpus."""
        words = self.rng.choice(self.batches.synthetic, min(n_words, len(self.batches.synthetic)), replace=False)
        return self._drawn({int(word): self.corpus.clips_of[word] for word in words}, n_clips)

    def recorded_words(self, n_clips: int) -> tuple[list[int], list[int]]:
        """The same of every word that people said and training heard."""
        words = {
            word: rows for word, rows in self.batches.recorded.items()
            if not self.corpus.labels[word].source.startswith(f"{STRETCHES}:")
        }  # fmt: skip
        return self._drawn(words, n_clips)

    def _drawn(self, clips_of: Mapping[int, Sequence[int]], n_clips: int) -> tuple[list[int], list[int]]:
        drawn = [(word, int(row)) for word, rows in clips_of.items() for row in self.rng.permutation(rows)[:n_clips]]
        return [word for word, _ in drawn], [row for _, row in drawn]

    def token_rows(self, n: int) -> list[np.ndarray]:
        """Token ids int64 [1, n_tokens] of n words, or of all, spellings and IPA in turn."""
        n = min(n, len(self.batches.synthetic))
        return self.texts_of(self.rng.choice(self.batches.synthetic, n, replace=False).tolist())

    def texts_of(self, words: Sequence[int]) -> list[np.ndarray]:
        kinds = ("grapheme", "ipa")
        return [self.batches.tokens([i], kinds[at % 2], None)[0].numpy() for at, i in enumerate(words)]

    def pool(self, embed: decision.Embed, embed_tokens: decision.Embed, synthetic: bool) -> decision.Pool:
        """Embedded meta-validation words, half of the clips as they are and half under field conditions."""
        labels = self.corpus.select("val", synthetic)
        rows = [int(clip) for label in labels for clip in self.corpus.clips_of[label]]
        rows = self.rng.permutation(rows)[:2500].tolist()
        half = len(rows) // 2
        speech = np.concatenate([embed(self._plain(rows[:half])), embed(self.in_the_field(rows[half:]))])
        spelled = [i for i in labels if self.corpus.labels[i].text]
        kinds = self.rng.permutation([i % 2 for i in range(len(spelled))])
        text = {
            label: embed_tokens(self.batches.tokens([label], ("grapheme", "ipa")[kind], None)[0].numpy())[0]
            for label, kind in zip(spelled, kinds, strict=True)
        }
        return decision.Pool(speech, self.corpus.clips["label"][rows], self.corpus.clips["speaker"][rows], text)

    def _plain(self, rows: list[int]) -> list[np.ndarray]:
        parts = [rows[i : i + 64] for i in range(0, len(rows), 64)]
        cut = [[self.batches.cut(clip, None) for clip in part] for part in parts]
        return [x for part in cut for x in self._lengths(*self.batches.augmenter.clean(part))]

    def in_the_field(self, rows: list[int]) -> list[np.ndarray]:
        generator = torch.Generator().manual_seed(self.seed)
        parts = [rows[i : i + 64] for i in range(0, len(rows), 64)]
        cut = [[self.batches.cut(clip, None) for clip in part] for part in parts]
        return [x for part in cut for x in self._lengths(*self.batches.augmenter(part, generator))]

    @staticmethod
    def _lengths(log_mels: torch.Tensor, mask: torch.Tensor) -> list[np.ndarray]:
        return [x[:, : int(m.sum())].numpy() for x, m in zip(log_mels, mask, strict=True)]


def refit(encoders: AlignedEncoders, clips: Clips) -> AlignedEncoders:
    """The encoders with last maps fitted on words of training, see `last_maps`."""

    @torch.inference_mode()
    def said(words: list[int], rows: list[int]) -> Pooled:
        frames = [encoders.speech.frames(torch.from_numpy(x)[None]) for x in clips.in_the_field(rows)]
        pooled = torch.cat([encoders.speech.pooling.statistics(*x) for x in frames])
        return Pooled(pooled.double().numpy(), np.array(words))

    @torch.inference_mode()
    def written(words: list[int]) -> Pooled:
        letters = [encoders.text.letters(torch.from_numpy(x)) for x in clips.texts_of(words)]
        pooled = torch.cat([encoders.text.pooling.statistics(*x) for x in letters])
        return Pooled(pooled.double().numpy(), np.array(words))

    words, rows = clips.several_of_each(REFIT_WORDS, REFIT_CLIPS)
    recorded = clips.recorded_words(REFIT_RECORDINGS)
    return last_maps.refitted(
        encoders, said(words, rows), said(*recorded) if recorded[0] else None, written(list(dict.fromkeys(words)))
    )


def _centers(encoders: AlignedEncoders, clips: Clips) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean unit embedding of training words in each modality: taken out, so that the two clouds lie on one another."""
    with torch.inference_mode():
        spoken = clips.training_words(600) + clips.recordings(200)
        speech = [encoders.embed_speech(torch.from_numpy(x)[None]) for x in spoken]
        text = [encoders.embed_text(torch.from_numpy(x)) for x in clips.token_rows(800)]
    return torch.cat(speech).mean(dim=0).clone(), torch.cat(text).mean(dim=0).clone()


def runner_of(data: bytes, name: str) -> Callable[[list[np.ndarray] | np.ndarray], np.ndarray]:
    session = graph.session_of(data)

    def run(inputs: list[np.ndarray] | np.ndarray) -> np.ndarray:
        rows = [x[None] for x in inputs] if isinstance(inputs, list) else [inputs]
        return np.concatenate([session.run(None, {name: x})[0] for x in rows])

    return run


def golden_clips() -> list[np.ndarray]:
    folder = Path(demo.CLIPS, "ask")
    names = ("water_rms_15dB.ogg", "moon_awb_25dB.ogg", "river_awb_12dB.ogg", "noise_2.ogg")
    return [soundfile.read(folder / name, dtype="float32")[0] for name in names]
