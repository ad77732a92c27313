"""The front end that encoders are trained for. It travels to devices in the bundle; nothing there reads this file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FrontEnd:
    version: int = 1
    sample_rate_hz: int = 16_000
    window_samples: int = 400  # 25 ms
    hop_samples: int = 160  # 10 ms
    n_fft: int = 512
    n_mels: int = 48
    low_hz: float = 60.0
    high_hz: float = 7600.0
    energy_floor: float = 1e-10  # keeps log() finite on digital silence


@dataclass(frozen=True)
class Windows:
    """How the word is found in a clip: the arguments of `edgealign.kernels.sound_spans`, in frames of 10 ms."""

    version: int = 1
    min_frames: int = 18  # the encoder sees no less
    floor_quantile: float = 0.05
    above_floor_db: float = 6.0
    below_peak_db: float = 32.0
    merge_frames: int = 30  # a closure inside a word lasts up to 0.3 s
    min_span_frames: int = 6
    pad_frames: int = 10
    max_frames: int = 300


FRONT_END = FrontEnd()
WINDOWS = Windows()


# For sounds that are not speech: longer windows tell low bands apart, and slower frames cost half.
SOUND_FRONT_END = FrontEnd(window_samples=640, hop_samples=320, n_fft=1024, n_mels=64, low_hz=50.0, high_hz=7900.0)


def mel_filters(warp: float | np.ndarray = 1.0, f: FrontEnd = FRONT_END) -> np.ndarray:
    """Triangular filters, evenly spaced on the HTK mel scale, height 1: float32 [n_mels, n_fft // 2 + 1].

    warp   the spectrum is read at `warp` times each frequency, as if the vocal tract were shorter (> 1) or longer; an
           array has a factor for each of the n_mels + 2 edges of the filters
    """

    def mel(hz: np.ndarray) -> np.ndarray:
        return 2595 * np.log10(1 + hz / 700)

    edges_hz = 700 * (10 ** (np.linspace(mel(np.array(f.low_hz)), mel(np.array(f.high_hz)), f.n_mels + 2) / 2595) - 1)
    edges_hz = edges_hz * warp
    bins_hz = np.arange(f.n_fft // 2 + 1) * f.sample_rate_hz / f.n_fft
    rising = (bins_hz - edges_hz[:-2, None]) / np.diff(edges_hz[:-1])[:, None]
    falling = (edges_hz[2:, None] - bins_hz) / np.diff(edges_hz[1:])[:, None]
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
