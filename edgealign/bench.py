"""Times the main path on this device: front end, encoder and matching, apart and together, after a warm-up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np

from edgealign import kernels, machine
from edgealign.bundle import Bundle
from edgealign.words import find_word, sound_spans

N_WINDOWS = 200
N_WARM_UP = 20
N_LABELS = 50
N_RECORDINGS = 5  # per label


def measure(bundle_path: str | os.PathLike | None = None, device: str = "auto") -> dict[str, object]:
    """Latency per stage for one second of sound and 50 labels of 5 recordings, with all that the numbers depend on.

    Sound and labels are made up from a fixed seed: time depends on their sizes alone. `pcm to label` is the whole path
    in process, from samples at the front end's rate.
    """
    bundle = Bundle.open(bundle_path, device=device)
    front_end, filters = bundle.front_end, bundle.filters
    samples = one_second(front_end.sample_rate_hz)
    matcher = _matcher(bundle)

    def front() -> np.ndarray:
        return kernels.log_mel(
            samples, filters, front_end.window_samples, front_end.hop_samples, front_end.energy_floor
        )

    def whole() -> None:
        word = find_word(iter([samples]), front_end, bundle.windows, filters)
        matcher.classify(bundle.encode(word.log_mels[None])[0], 2)

    log_mels = front()
    word = find_word(iter([samples]), front_end, bundle.windows, filters)
    embedding = bundle.encode(word.log_mels[None])[0]
    latency = {
        "front end": _time(front),
        "word finding": _time(lambda: sound_spans(log_mels, bundle.windows)),
        "encoder": _time(lambda: bundle.encode(word.log_mels[None])),
        "matching": _time(lambda: matcher.classify(embedding, 2)),
        "pcm to label": _time(whole),
    }
    files = bundle.manifest["files"]
    return {
        "latency": latency,
        "n_windows": N_WINDOWS,
        "clip_s": 1.0,
        "encoder_frames": word.log_mels.shape[1],
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
