"""What overlapping parts of a recording share, so that a scan need not encode each of them alone.

An encoder of words has first layers that see bands, then a body of convolutions over time, then a pooling
(edgealign/train/encoders.py). Here the first layers run once over a stretch of a recording, leveled by the loudness
around each frame instead of that of a word, and all else is made of what they give:

    a first look   The body runs once over the stretch too, and candidates are pooled from that. What surrounds a
                   candidate reaches into it: the mean cosine to the candidate encoded alone is 0.7 to 0.8. It says
                   what is worth more than a look, never what is there.
    an embedding   The body runs over a candidate that is cut out of what the first layers gave: 0.95.

benchmarks/RESULTS.md has both. The parts are taken out of the encoder's own file when it is opened.

Rivals are candidates that share more than half of the shorter one. The two likeliest of them are embedded, and further
ones where these leave it open what is there (`FirstLook`). The numbers were chosen on words for validation:
benchmarks/LOG.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from edgealign import kernels
from edgealign.bundle import Bundle
from edgealign.inputs import LogMelInput
from edgealign.onnx_part import FLOAT, UINT8, names_of, part_of

# What nodes of an exported encoder give; a quantized one gives it once more, as it is after rounding.
LEVELED, SCALE = "/encoder/Mul_output_0", "/encoder/Constant_1_output_0"  # what the first layers are given
BANDS = "/encoder/Relu_3_output_0"  # what they give
VALUES, CONTENT = "/encoder/pooling/values/Conv_output_0", "/encoder/pooling/content/Conv_output_0"
POSITION = "/encoder/pooling/Mul_1_output_0"
WEIGHT, OFFSET, CENTER = "encoder.pooling.out.weight", "encoder.pooling.out.bias", "center"
ROUNDED, QUANTIZED = "_DequantizeLinear_Output", "_QuantizeLinear_Output"
CHANNELS_LAST = (0, 2, 3, 1)
STEP = 4  # frames of log-mel per column of what the first layers give
BATCH = 32
N_POSITIONS = 16  # at which a candidate's frames are looked at
MIN_DEVIATION = 0.01  # of PositionalPooling
AUDIBLE = 14.0  # nepers below the loudest, of `level` in edgealign/train/encoders.py
AROUND_S = 1.4  # on each side, by whose loudness a frame is leveled
LEAST_COSINE = 0.98  # to the encoder's embedding, of a stretch that is one candidate
FURTHEST = 0.8  # cosine distance of a first look to the nearest label, beyond which nothing is embedded
BEHIND = 0.15  # further than a rival that is embedded, nothing is embedded either
ROUNDS = (2, 3)  # so many rivals are embedded before it is seen what they are, and so many in all
OPEN, SETTLED = 0.05, 0.7  # probability of the likeliest rival, between which it is open what is there


class Sieve:
    """Approximate embeddings of many candidates. Any thread may use one."""

    def __init__(self, model: bytes, n_mels: int, frames_per_s: float):
        """Of an encoder that `Sieve.of` has found fit."""
        names = names_of(model)

        def as_given(name: str) -> str:
            return name + ROUNDED if name + ROUNDED in names else name

        log_mel = {"log_mel": (FLOAT, 3)}
        is_quantized = BANDS + QUANTIZED in names
        bands = BANDS + QUANTIZED if is_quantized else BANDS
        constants = [POSITION, SCALE, as_given(WEIGHT), OFFSET, CENTER]
        anything = {"log_mel": np.zeros((1, n_mels, N_POSITIONS * STEP), np.float32)}
        position, self._scale, weight, self._offset, self._center = _Part(model, log_mel, constants)(anything)
        self._weight = kernels.pack(weight)
        self._profile = np.exp(-position.reshape(-1, N_POSITIONS))
        self._first_layers = _Part(model, {LEVELED: (FLOAT, 3)}, [bands])
        given = {bands: (UINT8 if is_quantized else FLOAT, 4)}
        self._body = _Part(model, given, [as_given(VALUES), as_given(CONTENT)], CHANNELS_LAST)
        self._bands = bands
        self._around = round(AROUND_S * frames_per_s)

    @classmethod
    def of(cls, bundle: Bundle) -> Sieve | None:
        """The sieve of a bundle's encoder; None where that is built in another way, or does not run on the CPU."""
        if not isinstance(bundle.input, LogMelInput) or bundle.device == "cuda":
            return None
        model, front_end = bundle.read(bundle.encoder_file()), bundle.front_end
        stretch = np.random.default_rng(0).normal(-6, 3, (front_end.n_mels, 2 * N_POSITIONS * STEP)).astype(np.float32)
        alone = bundle.encode(stretch[None])  # also checks the file before it is used here
        names = names_of(model)
        needed = (LEVELED, SCALE, BANDS, VALUES, CONTENT, POSITION, WEIGHT, OFFSET, CENTER)
        if not all({name, name + ROUNDED} & names for name in needed):
            return None
        try:
            sieve = cls(model, front_end.n_mels, front_end.sample_rate_hz / front_end.hop_samples)
            heard, whole = sieve.hear(stretch), (0, stretch.shape[1])
            both = np.concatenate([sieve.look(heard, np.array([whole])), sieve.embed([(heard, whole)])])
        except Exception:  # of ONNX Runtime or numpy: what has these names is something else
            return None
        return sieve if (both @ alone[0]).min() >= LEAST_COSINE else None

    def hear(self, log_mels: np.ndarray) -> np.ndarray:
        """What the first layers make of a stretch: [1, channels, 1, ceil(n_frames / STEP)].

        log_mels  float32 [n_mels, n_frames], n_frames at least what the encoder takes
        """
        return self._first_layers({LEVELED: self._leveled(log_mels)[None]})[0]

    def look(self, heard: np.ndarray, spans: np.ndarray) -> np.ndarray:
        """A first look at parts of a stretch: float32 [n_spans, dim], unit rows.

        heard   what `hear` gave
        spans   int64 [n_spans, 2]: first frame and one past the last of each part
        """
        return self._pooled(heard, _places(spans, heard.shape[3]))

    def embed(self, parts: Sequence[tuple[np.ndarray, tuple[int, int]]]) -> np.ndarray:
        """Embeddings float32 [n, dim], unit rows, of parts of stretches: what `hear` gave, and a span of it."""
        by_length: dict[int, list[tuple[int, np.ndarray]]] = {}
        n = np.array([heard.shape[3] for heard, _ in parts])
        places = _places(np.array([span for _, span in parts]), n).tolist()
        for i, ((heard, _), (first, end)) in enumerate(zip(parts, places, strict=True)):
            by_length.setdefault(end - first, []).append((i, heard[0, :, :, first:end]))
        embeddings = np.empty((len(parts), len(self._center)), np.float32)
        for length, members in by_length.items():
            for at in range(0, len(members), BATCH):
                rows, bands = zip(*members[at : at + BATCH], strict=True)
                ends = length * np.arange(len(rows) + 1)
                embeddings[list(rows)] = self._pooled(np.stack(bands), np.stack([ends[:-1], ends[1:]], axis=1))
        return embeddings

    def _pooled(self, bands: np.ndarray, spans: np.ndarray) -> np.ndarray:
        """Embeddings of parts of what the body makes of bands [batch, channels, 1, n].

        spans   int64 [n_spans, 2]: first row and one past the last, of the batch with one item behind the other
        """
        values, content = (x.reshape(-1, x.shape[-1]) for x in self._body({self._bands: bands}))
        stats = kernels.span_stats(values, np.exp(content - content.max(axis=0)), self._profile, spans)
        deviations = stats[:, values.shape[1] :]
        np.maximum(deviations, MIN_DEVIATION, out=deviations)
        projected = kernels.inner_product(stats, self._weight) + self._offset
        return _unit(_unit(projected) - self._center)

    def _leveled(self, log_mels: np.ndarray) -> np.ndarray:
        """As `level` of edgealign/train/encoders.py, but by the loudest and the mean of what is around each frame."""
        n, reach = log_mels.shape[1], self._around
        audible = np.maximum(log_mels, _running_max(log_mels.max(axis=0), reach) - AUDIBLE)
        sums = np.cumsum(np.concatenate([[0.0], audible.mean(axis=0, dtype=np.float64)]))
        first, end = np.maximum(np.arange(n) - reach, 0), np.minimum(np.arange(n) + reach + 1, n)
        return (audible - ((sums[end] - sums[first]) / (end - first)).astype(np.float32)) * self._scale


_made: WeakKeyDictionary[Bundle, Sieve | None] = WeakKeyDictionary()


def sieve_of(bundle: Bundle) -> Sieve | None:
    """`Sieve.of` a bundle, made once for each that is open."""
    if bundle not in _made:
        _made[bundle] = Sieve.of(bundle)
    return _made[bundle]


class FirstLook:
    """What to embed of the candidates of a stretch, given what a first look said and what has been heard since."""

    def __init__(
        self, spans: Sequence[tuple[int, int]], distances: np.ndarray, also: Sequence[tuple[int, int]],
        bands: np.ndarray, start: int,
    ):  # fmt: skip
        """
        spans      (first frame, one past the last) of each candidate, in order
        distances  float32 [n], of each to the nearest label at a first look, and more for what costs more to embed
        also       further ones, which are embedded whatever a look would say
        bands      of the stretch, see `Sieve.hear`;  start   its first frame
        """
        self.spans, self.also = spans, also
        self._bands, self._start = bands, start
        self._distances = distances
        self._first, self._end = np.array(spans, dtype=np.int64).T
        self._length = self._end - self._first
        # What overlaps with a candidate lies among the rows [reach[i][0], reach[i][1]).
        starts = np.searchsorted(self._first, self._first - self._length.max())
        self._reach = list(zip(starts.tolist(), np.searchsorted(self._first, self._end).tolist(), strict=True))
        order = np.argsort(distances, kind="stable")
        self._order = order[distances[order] <= FURTHEST]  # of what may still be chosen
        self._left = np.ones(len(spans), dtype=bool)
        self._rivals_of: dict[tuple[int, int], np.ndarray] = {}  # what was chosen -> rows of what overlaps with it
        self._n_rivals = np.zeros(len(spans), dtype=np.int64)  # that were chosen
        self._least = np.full(len(spans), np.inf)  # distance of these
        self._probability = np.zeros(len(spans))  # of the likeliest of these, once they have been heard

    @property
    def chosen(self) -> Set[tuple[int, int]]:
        """The spans that were chosen so far."""
        return self._rivals_of.keys()

    def choose(self, n_rivals: int) -> list[tuple[int, int]]:
        """What is to be embedded next, with at most n_rivals of any that overlap, earlier choices included."""
        # What has no rival yet is open; in this call, rivals are chosen before any of them is heard.
        is_open = (self._n_rivals == 0) | ((self._probability >= OPEN) & (self._probability < SETTLED))
        # With each choice of this call rivals become more and nearer: what is not worth it now will not be.
        worth = is_open & (self._n_rivals < n_rivals) & (self._distances <= self._least + BEHIND)
        chosen = []
        for i in self._order[worth[self._order]].tolist():
            distance = self._distances[i]
            if self._n_rivals[i] < n_rivals and distance <= self._least[i] + BEHIND:
                chosen.append(self.spans[i])
                rivals = self._rivals_of[self.spans[i]] = self._rivals(i)
                self._n_rivals[rivals] += 1
                self._least[rivals] = np.minimum(self._least[rivals], distance)
                self._left[i] = False
        self._order = self._order[self._left[self._order]]
        return chosen

    def hear(self, span: tuple[int, int], probability: float) -> None:
        """How probable the likeliest label of a candidate that was chosen has turned out to be."""
        if (rivals := self._rivals_of.get(span)) is not None:
            self._probability[rivals] = np.maximum(self._probability[rivals], probability)

    def part(self, span: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
        """A candidate as `Sieve.embed` takes it."""
        return self._bands, (span[0] - self._start, span[1] - self._start)

    def _rivals(self, i: int) -> np.ndarray:
        """Rows of what overlaps with candidate i, itself included."""
        start, stop = self._reach[i]
        shared = np.minimum(self._end[start:stop], self._end[i]) - np.maximum(self._first[start:stop], self._first[i])
        return start + (2 * shared > np.minimum(self._length[start:stop], self._length[i])).nonzero()[0]


class _Part:
    """A part of a model that can be run."""

    def __init__(
        self, model: bytes, inputs: Mapping[str, tuple[int, int]], outputs: Sequence[str],
        order: Sequence[int] | None = None,
    ):  # fmt: skip
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        part = part_of(model, inputs, outputs, order)
        self._session = onnxruntime.InferenceSession(part, options, ["CPUExecutionProvider"])

    def __call__(self, given: Mapping[str, np.ndarray]) -> list[Any]:
        return self._session.run(None, given)


def _places(spans: np.ndarray, n: np.ndarray | int) -> np.ndarray:
    """Of the n columns that the first layers made: the first that each span [n_spans, 2] has and one past its last."""
    first = np.minimum((spans[:, 0] + STEP // 2) // STEP, n - 1)
    return np.stack([first, np.minimum(first + np.maximum(-(-(spans[:, 1] - spans[:, 0]) // STEP), 1), n)], axis=1)


def _running_max(x: np.ndarray, reach: int) -> np.ndarray:
    """The largest of x [n] within `reach` on both sides, by the largest up to and from the edges of blocks
    (van Herk 1992)."""
    width = 2 * reach + 1
    blocks = np.pad(x, (reach, reach + -(len(x) + 2 * reach) % width), mode="edge").reshape(-1, width)
    before = np.maximum.accumulate(blocks, axis=1).ravel()
    after = np.maximum.accumulate(blocks[:, ::-1], axis=1)[:, ::-1].ravel()
    return np.maximum(after[: len(x)], before[width - 1 :][: len(x)])


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt((rows * rows).sum(axis=1, keepdims=True))
