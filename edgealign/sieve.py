"""A first look at overlapping stretches of a recording, at a fraction of the cost of encoding each alone.

The convolutions of an encoder run once over a stretch; every candidate in it is then pooled from what they give, as
the encoder pools a word (`PositionalPooling` in edgealign/train/encoders.py). What surrounds a candidate reaches into
such an embedding: its cosine to the embedding of the candidate alone is 0.6 to 0.9. So it says what is worth encoding,
never what is there. Both halves are taken out of the encoder's own file when it is opened.

Rivals are candidates that share more than half of the shorter one. The two likeliest of them are encoded, and further
ones where these leave it open what is there (`FirstLook`). The numbers were chosen on words for validation:
benchmarks/LOG.md.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from edgealign import kernels
from edgealign.bundle import Bundle
from edgealign.inputs import LogMelInput

# What nodes of an exported encoder give; a quantized one gives it once more, as it is after rounding.
VALUES, CONTENT = "/encoder/pooling/values/Conv_output_0", "/encoder/pooling/content/Conv_output_0"
POSITION = "/encoder/pooling/Mul_1_output_0"
WEIGHT, OFFSET, CENTER = "encoder.pooling.out.weight", "encoder.pooling.out.bias", "center"
ROUNDED = "_DequantizeLinear_Output"
STEP = 4  # frames of log-mel per frame of the convolutions
N_POSITIONS = 16  # at which a candidate's frames are looked at
MIN_DEVIATION = 0.01  # of PositionalPooling
LEAST_COSINE = 0.98  # to the encoder's embedding, of a stretch that is one candidate
FURTHEST = 0.8  # cosine distance of a first look to the nearest label, beyond which nothing is encoded
BEHIND = 0.2  # further than a rival that is encoded, nothing is encoded either
ROUNDS = (2, 4)  # so many rivals are encoded before it is seen what they are, and so many in all
OPEN, SETTLED = 0.05, 0.7  # probability of the likeliest rival, between which it is open what is there


class Sieve:
    """Approximate embeddings of many candidates. Any thread may use one."""

    def __init__(self, model: bytes, n_mels: int):
        """Of an encoder that `Sieve.of` has found fit."""
        trunk = [_as_given(model, VALUES), _as_given(model, CONTENT)]
        constants = [POSITION, _as_given(model, WEIGHT), OFFSET, CENTER]
        inside = _Inside(model, trunk + constants)
        anything = np.zeros((1, n_mels, N_POSITIONS * STEP), np.float32)
        position, weight, self._offset, self._center = inside.run(constants, anything)
        self._weight = kernels.pack(weight, "int8")
        self._profile = np.exp(-position.reshape(-1, N_POSITIONS))
        self._trunk = partial(inside.run, trunk)

    @classmethod
    def of(cls, bundle: Bundle) -> Sieve | None:
        """The sieve of a bundle's encoder; None where that is built in another way, or does not run on the CPU."""
        if not isinstance(bundle.input, LogMelInput):
            return None
        model = bundle.read(bundle.encoder_file())
        if bundle.device == "cuda" or not all(_names(model, n) for n in (VALUES, CONTENT, POSITION, WEIGHT, CENTER)):
            return None
        n_mels = bundle.front_end.n_mels
        stretch = np.random.default_rng(0).normal(-6, 3, (n_mels, 2 * N_POSITIONS * STEP)).astype(np.float32)
        alone = bundle.encode(stretch[None])  # also checks the file before it is used here
        sieve = cls(model, n_mels)
        cosine = float((sieve.embed(stretch, [(0, stretch.shape[1])]) @ alone.T)[0, 0])
        return sieve if cosine >= LEAST_COSINE else None

    def embed(self, log_mels: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
        """Approximate embeddings of parts of a stretch.

        log_mels  float32 [n_mels, n_frames], n_frames at least what the encoder takes
        spans     (first frame, one past the last) of each part
        returns   float32 [n_spans, dim], unit rows
        """
        values, content = (x[0, :, 0].T for x in self._trunk(np.ascontiguousarray(log_mels[None])))
        n_frames = len(content)
        ends = np.array(spans, dtype=np.int64)
        first = np.minimum(ends[:, 0] // STEP, n_frames - 1)
        length = np.minimum(np.maximum(1, -(-(ends[:, 1] - ends[:, 0]) // STEP)), n_frames - first)
        stats = kernels.span_stats(
            values, np.exp(content - content.max(axis=0)), self._profile, np.stack([first, first + length], axis=1)
        )
        deviations = stats[:, values.shape[1] :]
        np.maximum(deviations, MIN_DEVIATION, out=deviations)
        projected = kernels.inner_product(stats, self._weight) + self._offset
        return _unit(_unit(projected) - self._center)


_made: WeakKeyDictionary[Bundle, Sieve | None] = WeakKeyDictionary()


def sieve_of(bundle: Bundle) -> Sieve | None:
    """`Sieve.of` a bundle, made once for each that is open."""
    if bundle not in _made:
        _made[bundle] = Sieve.of(bundle)
    return _made[bundle]


class FirstLook:
    """What to encode of the candidates of a stretch, given what a first look said and what has been heard since."""

    def __init__(self, spans: Sequence[tuple[int, int]], distances: np.ndarray):
        """
        spans      (first frame, one past the last) of each candidate, in order
        distances  float32 [n], of each to the nearest label at a first look, and more for what costs more to encode
        """
        self.spans = spans
        self._distances = distances
        self._first, self._end = np.array(spans, dtype=np.int64).T
        self._length = self._end - self._first
        # What overlaps with a candidate lies among the rows [reach[i][0], reach[i][1]).
        starts = np.searchsorted(self._first, self._first - self._length.max())
        self._reach = list(zip(starts.tolist(), np.searchsorted(self._first, self._end).tolist(), strict=True))
        self._order = [i for i in np.argsort(distances, kind="stable").tolist() if distances[i] <= FURTHEST]
        self._rivals_of: dict[tuple[int, int], np.ndarray] = {}  # what was chosen -> rows of what overlaps with it
        self._n_rivals = np.zeros(len(spans), dtype=np.int64)  # that were chosen
        self._least = np.full(len(spans), np.inf)  # distance of these
        self._probability = np.zeros(len(spans))  # of the likeliest of these, once they have been heard

    @property
    def chosen(self) -> Set[tuple[int, int]]:
        """The spans that were chosen so far."""
        return self._rivals_of.keys()

    def choose(self, n_rivals: int) -> list[tuple[int, int]]:
        """What is to be encoded next, with at most n_rivals of any that overlap, earlier choices included."""
        # What has no rival yet is open; in this call, rivals are chosen before any of them is heard.
        is_open = (self._n_rivals == 0) | ((self._probability >= OPEN) & (self._probability < SETTLED))
        chosen, left = [], []
        for i in self._order:
            worth = is_open[i] and self._n_rivals[i] < n_rivals and self._distances[i] <= self._least[i] + BEHIND
            (chosen if worth else left).append(i)
            if worth:
                rivals = self._rivals_of[self.spans[i]] = self._rivals(i)
                self._n_rivals[rivals] += 1
                self._least[rivals] = np.minimum(self._least[rivals], self._distances[i])
        self._order = left
        return [self.spans[i] for i in chosen]

    def hear(self, span: tuple[int, int], probability: float) -> None:
        """How probable the likeliest label of a candidate that was chosen has turned out to be."""
        rivals = self._rivals_of[span]
        self._probability[rivals] = np.maximum(self._probability[rivals], probability)

    def _rivals(self, i: int) -> np.ndarray:
        """Rows of what overlaps with candidate i, itself included."""
        start, stop = self._reach[i]
        shared = np.minimum(self._end[start:stop], self._end[i]) - np.maximum(self._first[start:stop], self._first[i])
        return start + (2 * shared > np.minimum(self._length[start:stop], self._length[i])).nonzero()[0]


class _Inside:
    """Some tensors inside a model; what is computed is only what those that are asked for depend on."""

    def __init__(self, model: bytes, outputs: list[str]):
        import onnxruntime

        # A message that occurs twice in protobuf is merged: these are further outputs of the model's graph.
        added = b"".join(_field(12, _field(1, name.encode())) for name in outputs)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model + _field(7, added), options, ["CPUExecutionProvider"])
        self._run_options = onnxruntime.RunOptions()
        self._run_options.only_execute_path_to_fetches = True

    def run(self, outputs: list[str], log_mel: np.ndarray) -> list[Any]:
        return self._session.run(outputs, {"log_mel": log_mel}, self._run_options)


def _field(number: int, data: bytes) -> bytes:
    """A field of a protobuf message that holds bytes."""
    size, length = [], len(data)
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *size, length]) + data


def _names(model: bytes, name: str) -> bool:
    """Whether the model has something of that name, or the name after rounding."""
    return _field(1, name.encode())[1:] in model or _field(1, (name + ROUNDED).encode())[1:] in model


def _as_given(model: bytes, name: str) -> str:
    return name + ROUNDED if _field(1, (name + ROUNDED).encode())[1:] in model else name


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt((rows * rows).sum(axis=1, keepdims=True))
