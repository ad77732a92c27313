"""The bundle of a third-party encoder: its background bank and decision are made from the user's background samples."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgealign import kernels
from edgealign.bundle import Bundle, write_bundle
from edgealign.errors import InputUnreadable
from edgealign.inputs import ClipWindows, ImageInput, Input, Windows
from edgealign.samples import clip_values, embed, open_sample
from edgealign.sources import sample_files

MAX_BANK_ROWS = 4000

# The decision of an encoder of which nothing else is known. With a bank only scores that the bank normalizes count, so
# that the scale of an encoder's distances does not matter; the bias is then fitted to the bank, see fit_decision.
DECISION = {
    "w_bias": -2.0, "w_z": 0.5, "w_t": 0.5, "w_distance": 0.0, "w_margin": 0.0, "w_loo": 0.0, "w_shots": 0.0,
    "w_text": 0.0, "accept_logit": 0.0, "top": 40, "prior_loo": 0.15, "prior_weight": 2.0, "lone_margin": 0.25,
}  # fmt: skip
# Without one, a sample is accepted up to about twice the spread of the label's own.
DECISION_WITHOUT_BANK = DECISION | {
    "w_bias": 0.0,
    "w_z": 0.0,
    "w_t": 0.0,
    "w_distance": -20.0,
    "w_margin": 5.0,
    "w_loo": 40.0,
}
FALSE_ACCEPT_SHARE, FALSE_ACCEPT_LABELS = 0.05, 5
LEAST_FILES, EPISODES, QUESTIONS = 24, 200, 8


def write_foreign_bundle(
    target: str | os.PathLike,
    files: dict[str, bytes],
    manifest: dict[str, Any],
    card: Callable[[str], str],
    background: Path | None,
    report: Callable[[str], None],
    **golden: Any,
) -> Bundle:
    """Writes the bundle of a third-party encoder; its bank and decision are made from background samples.

    files        of the bundle by name, apart from bank and card
    manifest     without `bank` and `calibration`
    card         makes the model card, given a sentence about the background
    background   folder of clips or pictures of anything else, or None
    golden       see write_bundle
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.mkdir()
        for name, content in files.items():
            (source / name).write_bytes(content)
        (source / "bank.f16").write_bytes(b"")
        decision, rows, clips = DECISION_WITHOUT_BANK, (), []
        if background is not None:
            bare = write_bundle(
                Path(folder, "bare"), source, golden_samples=[], bank={"file": "bank.f16", "rows": 0},
                calibration=decision, **manifest,
            )  # fmt: skip
            rows, clips = background_rows(bare, background, report)
            decision = fit_decision(rows, clips)
            (source / "bank.f16").write_bytes(rows.astype("<f2").tobytes())
            report(f"background: {len(rows)} embeddings of {len(set(clips))} files")
        (source / "README.md").write_text(card(_background_text(len(rows), len(set(clips)))), encoding="utf-8")
        return write_bundle(
            target, source, bank={"file": "bank.f16", "rows": len(rows)}, calibration=decision, **golden, **manifest
        )


def check_background(folder: Path | None) -> None:
    """InputUnreadable, before anything else takes time, where there is no such folder."""
    if folder is not None and not folder.is_dir():
        raise InputUnreadable(
            f"'{folder}' is not a folder: --background names one with clips or pictures of anything else"
        )


def background_rows(bundle: Bundle, folder: Path, report: Callable[[str], None]) -> tuple[np.ndarray, list[int]]:
    """Embeddings float32 [n, dim] of the samples in a folder, to any depth, and of which file each is.

    A long recording gives one for each window, of all windows as many as share MAX_BANK_ROWS evenly between the files.
    """
    check_background(folder)
    files = [file for path, _, _ in sorted(os.walk(folder)) for file in sample_files(path, bundle.modality)]
    if not files:
        what = "pictures" if bundle.modality == "image" else "audio files"
        raise InputUnreadable(f"'{folder}' holds no {what}: --background names a folder with samples of anything else")
    rows: list[np.ndarray] = []
    clips: list[int] = []
    at_most = max(1, MAX_BANK_ROWS // len(files))
    for i, file in enumerate(files[:: max(1, len(files) // MAX_BANK_ROWS)]):
        try:
            found = list(_rows_of(bundle, file, at_most))
        except InputUnreadable as error:
            report(f"passed over: {error}")
            continue
        rows += found
        clips += [i] * len(found)
    if not rows:
        raise InputUnreadable(f"nothing in '{folder}' can be used as background: see above")
    return np.stack(rows).astype(np.float16).astype(np.float32), clips


def _rows_of(bundle: Bundle, file: str, at_most: int) -> Iterator[np.ndarray]:
    source = open_sample(bundle, file)
    taken = bundle.input
    if isinstance(taken, ImageInput) or isinstance(taken.windows, Windows):
        found = embed(bundle, source)
        if found is not None:
            yield found.embedding
        return
    windows = taken.windows
    n_windows = max(1, int(source.n_expected / source.sample_rate_hz / windows.window_s))
    apart = ClipWindows(2, windows.window_s, windows.window_s, windows.min_s)
    every = -(-n_windows // at_most)
    for at, values in enumerate(clip_values(bundle, source.blocks(taken.sample_rate_hz, hashed=False), apart)):
        if at % every == 0:
            yield bundle.encode(values)[0]


def fit_decision(rows: np.ndarray, clips: Sequence[int], seed: int = 0) -> dict[str, float]:
    """The numbers of the decision for a bank of background rows.

    The weights are those of DECISION. The bias is set so that of background samples that are asked of so many labels as
    FALSE_ACCEPT_LABELS, each enrolled from another background file, FALSE_ACCEPT_SHARE are accepted; half of the files
    play the bank, the others ask and are asked. With fewer than LEAST_FILES the bias stays as it is.
    """
    files = np.unique(clips)
    distances = kernels.cosine(rows, rows)
    others = np.where(np.asarray(clips)[:, None] == np.asarray(clips)[None, :], np.inf, distances)
    decision = dict(DECISION)
    if len(files) > 1:
        decision["prior_loo"] = float(np.clip(others.min(axis=1).mean() / 2, 1e-3, 1.0))
    if len(files) < LEAST_FILES:
        return decision
    generator = np.random.default_rng(seed)
    unbiased = kernels.Calibration.from_dict(decision | {"w_bias": 0.0})
    logits = []
    kinds = np.full(FALSE_ACCEPT_LABELS, kernels.RECORDING, np.int32)
    own = np.arange(FALSE_ACCEPT_LABELS, dtype=np.int32)
    for _ in range(EPISODES):
        shuffled = generator.permutation(files)
        half = len(files) // 2
        bank = rows[np.isin(clips, shuffled[:half])]
        playing = [int(generator.choice(np.flatnonzero(np.asarray(clips) == clip))) for clip in shuffled[half:]]
        support, queries = playing[:FALSE_ACCEPT_LABELS], playing[FALSE_ACCEPT_LABELS:][:QUESTIONS]
        matcher = kernels.Matcher(rows[support], own, kinds, FALSE_ACCEPT_LABELS, bank, unbiased)
        logits += [matcher.classify(rows[query])[0].logit for query in queries]
    decision["w_bias"] = -float(np.quantile(logits, 1 - FALSE_ACCEPT_SHARE))
    return decision


def _background_text(n_bank: int, n_files: int) -> str:
    if not n_files:
        return "There are no background samples: the decision has documented defaults and a label's own samples alone."
    fitted = "was fitted to them" if n_files >= LEAST_FILES else "has documented defaults: they are too few to fit it"
    return f"{n_bank} embeddings of {n_files} files stand for anything else; the decision {fitted}."


def made_up_sound(n_samples: int, sample_rate_hz: int, seed: int) -> np.ndarray:
    """Gliding tones that stand out of faint noise, silent at the ends: float32 [n_samples]."""
    generator = np.random.default_rng(seed)
    t = np.arange(n_samples) / n_samples
    seconds = n_samples / sample_rate_hz
    sound = np.zeros(n_samples)
    for _ in range(3):
        start_hz, end_hz = generator.uniform(150, min(3500, 0.4 * sample_rate_hz), 2)
        sound += np.sin(2 * np.pi * seconds * (start_hz * t + (end_hz - start_hz) * t**2 / 2))
    envelope = np.clip(np.minimum(t - 0.15, 0.85 - t) * 20, 0, 0.1)
    return (sound * envelope + 1e-4 * generator.normal(size=n_samples)).astype(np.float32)


def made_up_samples(taken: Input) -> list[np.ndarray]:
    """Samples for the golden vectors: sounds of one window and of a shorter clip, or pictures."""
    if isinstance(taken, ImageInput):
        pictures = []
        for seed, (height, width) in enumerate(((96, 128), (150, 90))):
            generator = np.random.default_rng(seed)
            y, x = np.mgrid[0:height, 0:width] / max(height, width)
            waves = [np.sin(generator.uniform(4, 20) * x + generator.uniform(4, 20) * y) for _ in range(3)]
            pictures.append(np.clip(128 + 100 * np.stack(waves, axis=2), 0, 255).astype(np.uint8))
        return pictures
    n_samples = taken.sample_rate_hz
    if isinstance(taken.windows, ClipWindows):
        n_samples = taken.windows.in_samples(taken.sample_rate_hz)[0]
    return [made_up_sound(n, taken.sample_rate_hz, seed) for seed, n in enumerate((n_samples, n_samples * 3 // 4))]
