"""The front end that encoders are trained for. It travels to devices in the bundle; nothing there reads this file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgealign.inputs import FrontEnd, Windows

FRONT_END = FrontEnd(
    version=1,
    sample_rate_hz=16_000,
    window_samples=400,  # 25 ms
    hop_samples=160,  # 10 ms
    n_fft=512,
    n_mels=48,
    low_hz=60.0,
    high_hz=7600.0,
    energy_floor=1e-10,  # keeps log() finite on digital silence
)
# For sounds that are not speech: longer windows tell low bands apart, and slower frames cost half.
SOUND_FRONT_END = replace(
    FRONT_END, window_samples=640, hop_samples=320, n_fft=1024, n_mels=64, low_hz=50.0, high_hz=7900.0
)
WINDOWS = Windows(
    version=1,
    min_frames=18,  # the encoder sees no less
    floor_quantile=0.05,
    above_floor_db=6.0,
    below_peak_db=32.0,
    merge_frames=30,  # a closure inside a word lasts up to 0.3 s
    min_span_frames=6,
    pad_frames=10,
    max_frames=300,
)


def mel_filters(
    warp: float | np.ndarray = 1.0, f: FrontEnd = FRONT_END, scale: str = "htk", norm: str = "none"
) -> np.ndarray:
    """Triangles that are evenly spaced on a mel scale: float32 [n_mels, n_fft // 2 + 1].

    warp    the spectrum is read at `warp` times each frequency, as if the vocal tract were shorter (> 1) or longer; an
            array has a factor for each of the n_mels + 2 edges of the filters
    scale   "htk": 2595 log10(1 + f / 700); "slaney" (Auditory Toolbox): linear to 1 kHz, 27 steps per factor 6.4 above
    norm    "none": height 1; "slaney": area 1, in Hz
    """
    step, knee = 200 / 3, 1000.0

    def mel(hz: np.ndarray) -> np.ndarray:
        if scale == "htk":
            return 2595 * np.log10(1 + hz / 700)
        return np.where(hz < knee, hz / step, knee / step + np.log(np.maximum(hz, knee) / knee) * 27 / np.log(6.4))

    def hertz(mels: np.ndarray) -> np.ndarray:
        if scale == "htk":
            return 700 * (10 ** (mels / 2595) - 1)
        return np.where(mels < knee / step, mels * step, knee * np.exp((mels - knee / step) * np.log(6.4) / 27))

    low, high = mel(np.array(f.low_hz)), mel(np.array(f.high_hz))
    edges_hz = hertz(np.linspace(low, high, f.n_mels + 2)) * warp
    bins_hz = np.arange(f.n_fft // 2 + 1) * f.sample_rate_hz / f.n_fft
    rising = (bins_hz - edges_hz[:-2, None]) / np.diff(edges_hz[:-1])[:, None]
    falling = (edges_hz[2:, None] - bins_hz) / np.diff(edges_hz[1:])[:, None]
    filters = np.maximum(0, np.minimum(rising, falling))
    if norm == "slaney":
        filters *= 2 / (edges_hz[2:] - edges_hz[:-2])[:, None]
    return filters.astype(np.float32)
