"""What edgealign is compared with: openWakeWord's embedding, MFCC + DTW and log-mel statistics.

All of them get the same found word as edgealign (`edgealign.kernels.sound_spans`) unless their own docstring says that
they do better with something else. None of their weights or outputs are ever used in training.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from edgealign import reference

SAMPLE_RATE_HZ = 16_000
WINDOW_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms
N_FFT = 512
N_MELS = 48
LOW_HZ, HIGH_HZ = 60.0, 7600.0
ENERGY_FLOOR = 1e-10
N_CEPSTRA = 13
DELTA_FRAMES = 2  # the usual regression window, two frames to either side
# The window policy of the shipped bundle, so that the rivals hear the same words.
SPAN_POLICY = {
    "floor_quantile": 0.05,
    "above_floor_db": 6.0,
    "below_peak_db": 32.0,
    "merge_frames": 30,
    "min_frames": 6,
    "pad_frames": 10,
    "max_frames": 300,
}

OPENWAKEWORD = "openwakeword-0.5.1"  # the folder in the cache that pip put it into
# Its embedding reads 76 mel frames of 10 ms and steps by 8.
OWW_WINDOW_FRAMES = 76
OWW_STEP_FRAMES = 8
OWW_MIN_SAMPLES = 12_512  # gives exactly 76 of its frames (512-sample windows, hop 160)
INT16_SCALE = 32_767
# The best of forty ways of filling its window, on the fsdd split: much more silence before the word than after it.
OWW_BEFORE_SAMPLES = 14_400
OWW_AFTER_SAMPLES = 4_800


@functools.cache
def mel_filters() -> np.ndarray:
    """Triangular filters, equally spaced in mel = 2595 log10(1 + f / 700): float32 [N_MELS, N_FFT // 2 + 1]."""
    low, high = (2595 * np.log10(1 + f / 700) for f in (LOW_HZ, HIGH_HZ))
    edges_hz = 700 * (10 ** (np.linspace(low, high, N_MELS + 2) / 2595) - 1)
    bins_hz = np.arange(N_FFT // 2 + 1) * SAMPLE_RATE_HZ / N_FFT
    rising = (bins_hz - edges_hz[:-2, None]) / (edges_hz[1:-1] - edges_hz[:-2])[:, None]
    falling = (edges_hz[2:, None] - bins_hz) / (edges_hz[2:] - edges_hz[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def word_frames(samples: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Log-mels of a clip and its clearest span: float32 [N_MELS, n_frames], first frame, one past the last.

    The whole clip where nothing stands out of its noise floor.
    """
    log_mels = reference.log_mel(samples, mel_filters(), WINDOW_SAMPLES, HOP_SAMPLES, ENERGY_FLOOR)
    spans = reference.sound_spans(log_mels, **SPAN_POLICY)
    if not len(spans):
        return log_mels, 0, log_mels.shape[1]
    first, end, _ = spans[np.argmax(spans[:, 2])]
    return log_mels, int(first), int(end)


def log_mel_statistics(samples: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each band over the word, gain removed: float32 [2 * N_MELS]."""
    log_mels, first, end = word_frames(samples)
    word = log_mels[:, first:end]
    mean = word.mean(axis=1)
    return np.concatenate([mean - mean.mean(), word.std(axis=1)]).astype(np.float32)


def mfcc(samples: np.ndarray) -> np.ndarray:
    """13 cepstra and their deltas over the word, mean and variance normalized: float32 [n_frames, 26]."""
    log_mels, first, end = word_frames(samples)
    band = np.arange(N_MELS) + 0.5
    dct = np.cos(np.pi * np.arange(N_CEPSTRA)[:, None] * band / N_MELS)
    cepstra = (dct @ log_mels[:, first:end]).T
    padded = np.pad(cepstra, ((DELTA_FRAMES, DELTA_FRAMES), (0, 0)), mode="edge")
    n = len(cepstra)
    steps = range(1, DELTA_FRAMES + 1)
    deltas = sum(s * (padded[DELTA_FRAMES + s :][:n] - padded[DELTA_FRAMES - s :][:n]) for s in steps)
    features = np.hstack([cepstra, deltas / (2 * sum(s * s for s in steps))])
    return ((features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)).astype(np.float32)


def dtw_distances(query: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """Dynamic time warping of one sequence against many, all at once: float32 [len(others)].

    query   float32 [n_frames, n_features];   others: the same with frame counts of their own

    Euclidean frame distance, steps (1,0), (0,1) and (1,1) with weights 1, 1 and 2 (Sakoe and Chiba's symmetric form),
    divided by the sum of both lengths. All pairs move along one anti-diagonal together.
    """
    n_rows = len(query)
    lengths = np.array([len(other) for other in others])
    n_cols = int(lengths.max())
    columns = np.zeros((n_cols, len(others), query.shape[1]), dtype=np.float32)
    for i, other in enumerate(others):
        columns[: len(other), i] = other
    # skewed[d, a] holds the cost of cell (a, d - a), so that an anti-diagonal is one contiguous block.
    skewed = np.full((n_rows + n_cols - 1, n_rows, len(others)), np.inf, dtype=np.float32)
    squares = np.einsum("bij,bij->bi", columns, columns)
    for a, frame in enumerate(query):
        square = squares + frame @ frame - 2 * (columns @ frame)
        skewed[a : a + n_cols, a] = np.sqrt(np.maximum(square, 0))
    distances = np.empty(len(others), dtype=np.float32)
    previous = np.full((n_rows + 1, len(others)), np.inf, dtype=np.float32)  # row a + 1 holds cell a of the diagonal
    before = previous.copy()
    before[0] = 0  # the empty path; it precedes cell (0, 0) alone
    for d, cost in enumerate(skewed):
        current = np.full_like(previous, np.inf)
        straight = np.minimum(previous[:-1], previous[1:]) + cost
        current[1:] = np.minimum(straight, before[:-1] + 2 * cost)
        done = lengths + n_rows - 2 == d
        distances[done] = current[-1, done]
        before, previous = previous, current
    return distances / (n_rows + lengths)


def dtw_matrix(sequences: list[np.ndarray], batch_size: int = 256) -> np.ndarray:
    """All pairwise DTW distances: float32 [n, n], symmetric, zero diagonal."""
    n = len(sequences)
    order = np.argsort([len(sequence) for sequence in sequences])  # batches of like lengths waste no padding
    matrix = np.zeros((n, n), dtype=np.float32)
    for position, row in enumerate(order):
        later = order[position + 1 :]
        for start in range(0, len(later), batch_size):
            batch = later[start : start + batch_size]
            matrix[row, batch] = dtw_distances(sequences[row], [sequences[i] for i in batch])
    return matrix + matrix.T


class OpenWakeWord:
    """openWakeWord's speech embedding (Google's, 96 values per 76 frames), run from its own ONNX files.

    folder  where `pip install --no-deps --target FOLDER openwakeword==0.5.1` put it
    """

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        models = folder / "openwakeword" / "resources" / "models"
        if not models.is_dir():
            raise FileNotFoundError(
                f"no openWakeWord at '{folder}': pip install --no-deps --target '{folder}' openwakeword==0.5.1"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.mel, self.embedding = (
            onnxruntime.InferenceSession(str(models / name), options, providers=["CPUExecutionProvider"])
            for name in ("melspectrogram.onnx", "embedding_model.onnx")
        )
        self.model_bytes = sum(
            (models / name).stat().st_size for name in ("melspectrogram.onnx", "embedding_model.onnx")
        )

    def embed(self, samples: np.ndarray) -> np.ndarray:
        """Mean embedding of the found word between silences: float32 [96]."""
        _, first, end = word_frames(samples)
        word = samples[first * HOP_SAMPLES : (end - 1) * HOP_SAMPLES + WINDOW_SAMPLES]
        return self.embed_windows(np.pad(word, (OWW_BEFORE_SAMPLES, OWW_AFTER_SAMPLES))).mean(axis=0)

    def embed_windows(self, samples: np.ndarray) -> np.ndarray:
        """Embeddings of all windows of a clip of at least OWW_MIN_SAMPLES: float32 [n_windows, 96]."""
        return self.embed_every(samples, OWW_STEP_FRAMES)

    def embed_every(self, samples: np.ndarray, step_frames: int) -> np.ndarray:
        """The same with another step, in its frames of 10 ms."""
        mel = self.mel.run(None, {"input": np.round(samples * INT16_SCALE).astype(np.float32)[None]})[0].squeeze()
        mel = mel / 10 + 2  # its own adaptation to the network's training features
        starts = range(0, len(mel) - OWW_WINDOW_FRAMES + 1, step_frames)
        windows = np.stack([mel[start : start + OWW_WINDOW_FRAMES] for start in starts])[..., None]
        return self.embedding.run(None, {"input_1": windows.astype(np.float32)})[0].reshape(len(windows), -1)
