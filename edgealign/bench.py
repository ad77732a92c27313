"""Times the main path on this device: front end, encoder and matching, apart and together, after a warm-up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np

from edgealign import kernels, machine
from edgealign.bundle import Bundle
from edgealign.inputs import ImageInput, LogMelInput, Windows
from edgealign.samples import check_takes_samples, log_mel, word_values
from edgealign.words import find_word, sound_spans

N_WINDOWS = 200
N_WARM_UP = 20
N_LABELS = 50
N_RECORDINGS = 5  # per label


def measure(
    bundle_path: str | os.PathLike | None = None,
    device: str = "auto",
    modality: str | None = None,
    variant: str | None = None,
) -> dict[str, object]:
    """Latency per stage for one sample and 50 labels of 5 recordings, with all that the numbers depend on.

    The sample is a second of sound, a window of it where the encoder sees windows, or a picture. It and the labels are
    made up from a fixed seed: time depends on their sizes alone. `to label` is the whole path in process, from samples
    at the encoder's rate or from pixels.
    """
    bundle = Bundle.open(bundle_path, modality=modality, variant=variant, device=device)
    check_takes_samples(bundle)
    matcher = _matcher(bundle)
    prepare, stages = _preparation(bundle)
    values = prepare()
    embedding = bundle.encode(values)[0]
    latency = {name: _time(stage) for name, stage in stages.items()} | {
        "encoder": _time(lambda: bundle.encode(values)),
        "matching": _time(lambda: matcher.classify(embedding, 2)),
        "pixels to label" if isinstance(bundle.input, ImageInput) else "pcm to label": _time(
            lambda: matcher.classify(bundle.encode(prepare())[0], 2)
        ),
    }
    files = bundle.manifest["files"]
    return {
        "latency": latency,
        "n_windows": N_WINDOWS,
        "encoder_input": list(values.shape),
        "labels": N_LABELS,
        "bank_rows": len(bundle.bank),
        "threads": 1,
        "device": "cuda" if device == "cuda" else "cpu",
        "variant": bundle.variant,
        "encoder_bytes": files[bundle.encoder_file()]["bytes"],
        "bundle": f"{bundle.name} {bundle.bundle_version}",
        "encoder_sha256": bundle.encoder_sha256,
        "peak_rss_mb": round(machine.peak_rss_mb(), 1),
        **machine.describe(),
    }


def typical_input(bundle: Bundle) -> np.ndarray:
    """What the encoder takes of the made-up sample: `values` of Bundle.encode, with a batch of one."""
    check_takes_samples(bundle)
    prepare, _ = _preparation(bundle)
    return prepare()


def _preparation(bundle: Bundle) -> tuple[Callable[[], np.ndarray], dict[str, Callable[[], object]]]:
    """What makes the encoder's input of the made-up sample, and the stages that it consists of."""
    taken = bundle.input
    if isinstance(taken, ImageInput):
        from edgealign.images import fit

        pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        return lambda: fit(pixels, taken)[None], {"picture fitting": lambda: fit(pixels, taken)}
    if isinstance(taken.windows, Windows):
        samples = one_second(taken.sample_rate_hz)
        log_mels = log_mel(bundle, samples)
        needs_samples = not isinstance(taken, LogMelInput)

        def word_of() -> np.ndarray:
            found = find_word(
                iter([samples]), bundle.front_end, taken.windows, bundle.filters, with_samples=needs_samples
            )
            return word_values(bundle, found)

        return word_of, {
            "front end": lambda: log_mel(bundle, samples),
            "word finding": lambda: sound_spans(log_mels, taken.windows),
        }
    window_samples, _, _ = taken.windows.in_samples(taken.sample_rate_hz)
    window = np.resize(one_second(taken.sample_rate_hz), window_samples)
    if isinstance(taken, LogMelInput):
        return lambda: log_mel(bundle, window)[None], {"front end": lambda: log_mel(bundle, window)}
    return lambda: window[None], {}


def one_second(sample_rate_hz: int) -> np.ndarray:
    """A glide that fills most of a second, over faint noise: float32 [sample_rate_hz]."""
    t = np.arange(sample_rate_hz) / sample_rate_hz
    glide = np.sin(2 * np.pi * (300 * t + 400 * t**2)) * np.clip(np.minimum(t - 0.05, 0.95 - t) * 20, 0, 0.3)
    return (glide + 1e-4 * np.random.default_rng(0).normal(size=sample_rate_hz)).astype(np.float32)


def _matcher(bundle: Bundle) -> kernels.Matcher:
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(N_LABELS * N_RECORDINGS, bundle.dim)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    labels = np.repeat(np.arange(N_LABELS, dtype=np.int32), N_RECORDINGS)
    kinds = np.full(len(labels), kernels.RECORDING, dtype=np.int32)
    return kernels.Matcher(embeddings, labels, kinds, N_LABELS, bundle.bank, bundle.calibration, bundle.text_weight)


def _time(run: Callable[[], object]) -> dict[str, float]:
    for _ in range(N_WARM_UP):
        run()
    times_ms = np.empty(N_WINDOWS)
    for i in range(N_WINDOWS):
        start = time.perf_counter()
        run()
        times_ms[i] = (time.perf_counter() - start) * 1e3
    median_ms, p95_ms = np.percentile(times_ms, [50, 95])
    return {"median_ms": round(float(median_ms), 4), "p95_ms": round(float(p95_ms), 4)}
