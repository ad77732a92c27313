"""Golden vectors: the inputs and outputs of every stage, recorded at export and compared on the device that runs.

This is what proves that a device computes what the exporting machine computed. A stage is fed the recorded input, not
the output of the stage before, so that a difference is reported where it arises. docs/formats.md names the arrays.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgealign import kernels
from edgealign.errors import BundleUnreadable, InvalidInput
from edgealign.text import Tokens
from edgealign.words import sound_spans

if TYPE_CHECKING:
    from edgealign.bundle import Bundle

AUDIBLE_RANGE_DB = 70

# What is stated per stage, as the largest difference that passes, and the unit of the difference.
TOLERANCES = {
    "front end": (1e-3, "natural log of energy"),
    "word finding": (0.5, "frames and dB x frames"),
    "encoder fp32": (1e-4, "cosine distance"),
    # int8 kernels without VNNI may saturate their 16-bit sums, so processors differ more than in fp32.
    "encoder int8": (1e-2, "cosine distance"),
    "text encoder": (1e-2, "cosine distance"),
    "matching": (1e-3, "logit"),
}


@dataclass(frozen=True)
class StageParity:
    """stage, its largest difference to the golden vectors, the tolerance, and the unit of both."""

    stage: str
    max_difference: float
    tolerance: float
    unit: str

    @property
    def passed(self) -> bool:
        return self.max_difference <= self.tolerance  # False for NaN


def record(bundle: Bundle, clips: Sequence[np.ndarray], texts: Sequence[tuple[str, str, str | None]]) -> bytes:
    """The bytes of golden.npz.

    clips  float32 [n_samples] each, mono, at the front end's rate, with a sound in it
    texts  (text, kind, language) each; must be empty where the bundle has no text encoder
    """
    arrays: dict[str, np.ndarray] = {}
    for i, samples in enumerate(clips):
        arrays[f"clip{i}.samples"] = np.ascontiguousarray(samples, dtype=np.float32)
        arrays[f"clip{i}.log_mel"] = _log_mel(bundle, samples)
        arrays[f"clip{i}.spans"] = sound_spans(arrays[f"clip{i}.log_mel"], bundle.windows)
        if not len(arrays[f"clip{i}.spans"]):
            raise InvalidInput(f"golden clip {i} has no sound that stands out: its word finding would prove nothing")
        for variant in bundle.variants:
            arrays[f"clip{i}.embedding.{variant}"] = bundle.encode(arrays[f"clip{i}.log_mel"][None], variant)[0]
    for i, (text, kind, language) in enumerate(texts):
        tokens = bundle.tokenizer.encode(text, kind, language)
        arrays[f"text{i}.tokens"] = tokens.ids
        arrays[f"text{i}.embedding"] = bundle.encode_text(tokens)
    support = [value for name, value in arrays.items() if name.endswith(f".embedding.{bundle.variant}")]
    if support:
        arrays["match.support"] = np.stack(support)
        arrays["match.queries"] = _between(arrays["match.support"])
        arrays["match.logits"] = _match_logits(bundle, arrays["match.support"], arrays["match.queries"])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def compare(bundle: Bundle) -> list[StageParity]:
    """Runs every stage on the golden vectors of a bundle; BundleUnreadable where there are none for a stage."""
    golden = bundle.golden()
    worst: dict[str, float] = {}

    def note(stage: str, difference: float) -> None:
        worst[stage] = max(worst.get(stage, 0.0), float(difference)) if np.isfinite(difference) else float("inf")

    try:
        for i in range(_count(golden, "clip", "samples")):
            log_mels = golden[f"clip{i}.log_mel"]
            note("front end", _audible_difference(_log_mel(bundle, golden[f"clip{i}.samples"]), log_mels))
            note("word finding", _max_difference(sound_spans(log_mels, bundle.windows), golden[f"clip{i}.spans"]))
            for variant in bundle.variants:
                embedding = bundle.encode(log_mels[None], variant)[0]
                note(f"encoder {variant}", _cosine(embedding, golden[f"clip{i}.embedding.{variant}"]))
        for i in range(_count(golden, "text", "tokens")):
            tokens = Tokens(golden[f"text{i}.tokens"], (), 0.0, True)
            note("text encoder", _cosine(bundle.encode_text(tokens), golden[f"text{i}.embedding"]))
        if "match.support" in golden:
            logits = _match_logits(bundle, golden["match.support"], golden["match.queries"])
            note("matching", _max_difference(logits, golden["match.logits"]))
    except (KeyError, ValueError) as error:
        raise BundleUnreadable(f"the golden vectors of '{bundle.path}' do not fit it: {error}") from None
    if not worst:
        raise BundleUnreadable(f"bundle '{bundle.path}' has no golden vectors, so its parity cannot be proved")
    return [StageParity(stage, difference, *_tolerance(stage)) for stage, difference in worst.items()]


def _tolerance(stage: str) -> tuple[float, str]:
    return TOLERANCES.get(stage, TOLERANCES["encoder int8"])


def _count(golden: dict[str, np.ndarray], prefix: str, suffix: str) -> int:
    return sum(name.startswith(prefix) and name.endswith(f".{suffix}") for name in golden)


def _log_mel(bundle: Bundle, samples: np.ndarray) -> np.ndarray:
    front_end = bundle.front_end
    return kernels.log_mel(
        samples, bundle.filters, front_end.window_samples, front_end.hop_samples, front_end.energy_floor
    )


def _match_logits(bundle: Bundle, support: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """float64 [n_queries]: the decision's logit for each query, every support row a label of its own."""
    n_labels = len(support)
    kinds = np.full(n_labels, kernels.RECORDING, dtype=np.int32)
    labels = np.arange(n_labels, dtype=np.int32)
    matcher = kernels.Matcher(support, labels, kinds, n_labels, bundle.bank, bundle.calibration, bundle.text_weight)
    return np.array([matcher.classify(query)[0].logit for query in queries])


def _between(support: np.ndarray) -> np.ndarray:
    """Queries that lie between neighbors of the support, so that every term of the decision takes part."""
    mixed = 0.7 * support + 0.3 * np.roll(support, 1, axis=0)
    return (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)


def _audible_difference(have: np.ndarray, want: np.ndarray) -> float:
    """Largest difference of two log-mel matrices where `want` is within AUDIBLE_RANGE_DB of the peak of its frame.

    What lies deeper than that is rounding of a float32 FFT, which differs between processors and means nothing.
    """
    if have.shape != want.shape:
        return float("inf")
    audible = want >= want.max(axis=0) - AUDIBLE_RANGE_DB * np.log(10) / 10
    return float(np.abs(have - want)[audible].max(initial=0))


def _max_difference(have: np.ndarray, want: np.ndarray) -> float:
    return float("inf") if have.shape != want.shape else float(np.abs(have - want).max(initial=0))


def _cosine(have: np.ndarray, want: np.ndarray) -> float:
    return float(kernels.cosine(have[None], want[None])[0, 0])
