"""Golden vectors: the inputs and outputs of every stage, recorded at export and compared on the device that runs.

This is what proves that a device computes what the exporting machine computed. A stage is fed the recorded input, not
the output of the stage before, so that a difference is reported where it arises. docs/formats.md names the arrays.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgealign import kernels
from edgealign.errors import BundleUnreadable, InvalidInput, MissingExtra
from edgealign.images import fit
from edgealign.inputs import ImageInput, LogMelInput, Windows
from edgealign.samples import clip_values, embed_clip, log_mel
from edgealign.text import Tokens
from edgealign.words import sound_spans

if TYPE_CHECKING:
    from edgealign.bundle import Bundle

AUDIBLE_RANGE_DB = 70

# What is stated per stage, as the largest difference that passes, and the unit of the difference.
TOLERANCES = {
    "front end": (1e-3, "natural log of energy"),
    "word finding": (0.5, "frames and dB x frames"),
    "picture fitting": (1e-2, "of full scale"),  # two or three steps of 8 bits: pillow rounds after each direction
    "encoder fp32": (1e-4, "cosine distance"),
    # int8 kernels without VNNI may saturate their 16-bit sums, so processors differ more than in fp32.
    "encoder int8": (1e-2, "cosine distance"),
    "tokenizer": (0.0, "tokens"),
    "text encoder": (1e-2, "cosine distance"),
    "picture encoder": (1e-2, "cosine distance"),
    "matching": (1e-3, "logit"),
}


@dataclass(frozen=True)
class StageParity:
    """stage, its largest difference to the golden vectors, the tolerance, and the unit of both.

    not_run   why there is no difference: a package is missing that only some uses of the bundle need
    """

    stage: str
    max_difference: float | None
    tolerance: float
    unit: str
    not_run: str | None = None

    @property
    def passed(self) -> bool:
        return self.max_difference is None or self.max_difference <= self.tolerance  # False for NaN


def record(
    bundle: Bundle,
    samples: Sequence[np.ndarray],
    texts: Sequence[tuple[str, str, str | None]] = (),
    pictures: Sequence[np.ndarray] = (),
) -> bytes:
    """The bytes of golden.npz.

    samples   what the encoder is recorded with: sounds float32 [n_samples], mono, at the encoder's rate, in which
              something stands out where words are found; or pictures uint8 [height, width, 3]
    texts     (text, kind, language) each; must be empty where the bundle has no text encoder
    pictures  uint8 [height, width, 3] each; must be empty where labels cannot start from a picture
    """
    arrays: dict[str, np.ndarray] = {}
    if isinstance(bundle.input, ImageInput):
        for i, pixels in enumerate(samples):
            arrays[f"image{i}.pixels"] = pixels
            arrays[f"image{i}.fitted"] = fitted = fit(pixels, bundle.input)
            for variant in bundle.variants:
                arrays[f"image{i}.embedding.{variant}"] = bundle.encode(fitted[None], variant)[0]
    else:
        for i, clip in enumerate(samples):
            arrays |= {f"clip{i}.{name}": value for name, value in _record_clip(bundle, i, clip).items()}
    for i, (text, kind, language) in enumerate(texts):
        tokens = bundle.tokenizer.encode(text, kind, language)
        arrays[f"text{i}.text"] = np.array([text, kind, language or ""])
        arrays |= {f"text{i}.{name}": ids[0] for name, ids in tokens.inputs.items()}
        arrays[f"text{i}.embedding"] = bundle.encode_text(tokens)
    for i, pixels in enumerate(pictures):
        arrays[f"picture{i}.pixels"] = pixels
        arrays[f"picture{i}.fitted"] = fitted = fit(pixels, bundle.source("image").input)
        arrays[f"picture{i}.embedding"] = bundle.encode_image_source(fitted)
    return _packed(bundle, arrays)


def with_variants(bundle: Bundle, arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of golden.npz for a bundle that differs only in its encoders from the one that recorded the arrays."""
    kept = {
        name: value
        for name, value in arrays.items()
        if not name.startswith("match.")
        and (".embedding." not in name or name.partition(".embedding.")[2] in bundle.variants)
    }
    for i in range(_count(arrays, "clip", "samples")):
        clip = _part(arrays, f"clip{i}.")
        for variant in bundle.variants:
            kept[f"clip{i}.embedding.{variant}"] = _clip_embedding(bundle, clip, variant)
    for i in range(_count(arrays, "image", "fitted")):
        for variant in bundle.variants:
            fitted = arrays[f"image{i}.fitted"]
            kept[f"image{i}.embedding.{variant}"] = bundle.encode(fitted[None], variant)[0]
    for i in range(_count(arrays, "text", "embedding")):
        kept[f"text{i}.embedding"] = bundle.encode_text(_tokens(_part(arrays, f"text{i}.")))
    for i in range(_count(arrays, "picture", "fitted")):
        kept[f"picture{i}.embedding"] = bundle.encode_image_source(arrays[f"picture{i}.fitted"])
    return _packed(bundle, kept)


def _packed(bundle: Bundle, arrays: dict[str, np.ndarray]) -> bytes:
    support = [value for name, value in arrays.items() if name.endswith(f".embedding.{bundle.variant}")]
    if support:
        arrays["match.support"] = np.stack(support)
        arrays["match.queries"] = _between(arrays["match.support"])
        arrays["match.logits"] = _match_logits(bundle, arrays["match.support"], arrays["match.queries"])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _record_clip(bundle: Bundle, i: int, samples: np.ndarray) -> dict[str, np.ndarray]:
    arrays = {"samples": np.ascontiguousarray(samples, dtype=np.float32)}
    if not isinstance(bundle.input.windows, Windows):
        for variant in bundle.variants:
            arrays[f"embedding.{variant}"] = embed_clip(bundle, iter([arrays["samples"]]), variant)
        if isinstance(bundle.input, LogMelInput):
            arrays["log_mel"] = next(clip_values(bundle, iter([arrays["samples"]])))[0]
        return arrays
    arrays["log_mel"] = log_mel(bundle, samples)
    arrays["spans"] = sound_spans(arrays["log_mel"], bundle.windows)
    if not len(arrays["spans"]):
        raise InvalidInput(f"golden clip {i} has no sound that stands out: its word finding would prove nothing")
    for variant in bundle.variants:
        arrays[f"embedding.{variant}"] = bundle.encode(_whole(bundle, arrays), variant)[0]
    return arrays


def _whole(bundle: Bundle, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """What the encoder takes of a clip that is one word from end to end."""
    return arrays["log_mel" if isinstance(bundle.input, LogMelInput) else "samples"][None]


def compare(bundle: Bundle) -> list[StageParity]:
    """Runs every stage on the golden vectors of a bundle; BundleUnreadable where there are none for a stage."""
    golden = bundle.golden()
    worst: dict[str, float] = {}
    not_run: dict[str, str] = {}

    def note(stage: str, difference: float) -> None:
        worst[stage] = max(worst.get(stage, 0.0), float(difference)) if np.isfinite(difference) else float("inf")

    try:
        for i in range(_count(golden, "clip", "samples")):
            _compare_clip(bundle, _part(golden, f"clip{i}."), note)
        for i in range(_count(golden, "image", "pixels")):
            arrays = _part(golden, f"image{i}.")
            note("picture fitting", _max_difference(fit(arrays["pixels"], bundle.input), arrays["fitted"]))
            for variant in bundle.variants:
                embedding = bundle.encode(arrays["fitted"][None], variant)[0]
                note(f"encoder {variant}", _cosine(embedding, arrays[f"embedding.{variant}"]))
        for i in range(_count(golden, "text", "embedding")):
            arrays = _part(golden, f"text{i}.")
            tokens = _tokens(arrays)
            if "text" in arrays:  # bundles of edgealign 0.1 keep the tokens alone
                text, kind, language = arrays["text"].tolist()
                ids = bundle.tokenizer.encode(text, kind, language or None).inputs
                note("tokenizer", max(_max_difference(ids[name], tokens.inputs[name]) for name in tokens.inputs))
            note("text encoder", _cosine(bundle.encode_text(tokens), arrays["embedding"]))
        for i in range(_count(golden, "picture", "pixels")):
            arrays = _part(golden, f"picture{i}.")
            try:
                fitted = fit(arrays["pixels"], bundle.source("image").input)
                note("picture fitting", _max_difference(fitted, arrays["fitted"]))
            except MissingExtra as error:
                not_run["picture fitting"] = str(error)
            note("picture encoder", _cosine(bundle.encode_image_source(arrays["fitted"]), arrays["embedding"]))
        if "match.support" in golden:
            logits = _match_logits(bundle, golden["match.support"], golden["match.queries"])
            note("matching", _max_difference(logits, golden["match.logits"]))
    except MissingExtra:
        raise
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise BundleUnreadable(f"the golden vectors of '{bundle.path}' do not fit it: {error}") from None
    if not worst:
        raise BundleUnreadable(f"bundle '{bundle.path}' has no golden vectors, so its parity cannot be proved")
    run = [StageParity(stage, difference, *_tolerance(stage)) for stage, difference in worst.items()]
    return run + [StageParity(stage, None, *_tolerance(stage), reason) for stage, reason in not_run.items()]


def _compare_clip(bundle: Bundle, arrays: dict[str, np.ndarray], note: Callable[[str, float], None]) -> None:
    covered = not isinstance(bundle.input.windows, Windows)
    if "log_mel" in arrays:
        have = (
            next(clip_values(bundle, iter([arrays["samples"]])))[0] if covered else log_mel(bundle, arrays["samples"])
        )
        note("front end", _audible_difference(have, arrays["log_mel"]))
    if not covered:
        note("word finding", _max_difference(sound_spans(arrays["log_mel"], bundle.windows), arrays["spans"]))
    for variant in bundle.variants:
        note(f"encoder {variant}", _cosine(_clip_embedding(bundle, arrays, variant), arrays[f"embedding.{variant}"]))


def _clip_embedding(bundle: Bundle, arrays: Mapping[str, np.ndarray], variant: str) -> np.ndarray:
    if not isinstance(bundle.input.windows, Windows):
        return embed_clip(bundle, iter([arrays["samples"]]), variant)
    return bundle.encode(_whole(bundle, arrays), variant)[0]


def _tokens(text: Mapping[str, np.ndarray]) -> Tokens:
    """What a text encoder was given for a golden text."""
    inputs = {name: ids[None] for name, ids in text.items() if name not in ("text", "embedding")}
    return Tokens(inputs, (), 0.0, True)


def _part(golden: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}


def _tolerance(stage: str) -> tuple[float, str]:
    return TOLERANCES.get(stage, TOLERANCES["encoder int8"])


def _count(golden: Mapping[str, np.ndarray], prefix: str, suffix: str) -> int:
    return sum(name.startswith(prefix) and name.endswith(f".{suffix}") for name in golden)


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
