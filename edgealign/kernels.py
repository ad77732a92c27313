"""The formulas that edgealign is made of. They are stated here and nowhere else.

The compiled core computes them (float32); `edgealign.reference` defines them in numpy (float64) and takes over,
visibly, where the core is not installed: `backend()` says which of the two runs. Arrays are converted to float32
(labels to int32) and C order where they are not; NaN or infinity in an input is a ValueError before anything is
returned.

Distances, between rows q and p of equal width; smaller is closer
    sq_l2       sum((q - p)^2), no square root                                       [0, 4] for unit vectors
    cosine      1 - q.p / (|q| |p|); to a zero vector it is 1, between two zero vectors 0             [0, 2]
    nearest     the k closest rows, closest first; of equals, the lowest row first
    label_distances  the distance to the closest prototype of each label
    log_softmax  of -distance / temperature over the prototypes
    inner_product   q.p; larger is closer, so it is no distance
    int8        where prototypes were packed so: every row is round(row * (127 / largest absolute value)) in float32,
                ties to even, times (largest / 127); so is every query; then the formulas above, of the rounded rows

Labels
    prototype   each row of the label scaled to unit length; their mean, weighted; scaled back to unit length.
                A zero row adds its weight only. A mean shorter than 1e-6 has no direction and becomes a zero row, as
                does the prototype of a label without rows.
    several_prototypes  k-means on the unit sphere, label by label. The first center is the row with the largest cosine
                distance to the label's prototype, each next one that with the largest to its closest center so far,
                while that is above 1e-6; of equals, the lowest row. Then rows go to their closest center (of equals,
                the first) and centers become the prototypes of their rows, until no row moves, 100 times at most. A
                center that loses its rows is dropped
    leave_one_out   cosine distance of a row to the prototype of its label made without that row; not valid where no
                other row of the label weighs anything, or what they leave has no direction
    cohort      the `top` rows of the background bank that are closest to a row: mean and standard deviation
                (population, at least 1e-4) of their cosine distances

Windows of a sequence of frames, one every hop_frames while they fit
    window_stats    mean and standard deviation (population) of every channel over the frames of a window. The weight of
                a frame is weights[frame, group] * profile[group, place in the window]; channels come in groups of
                neighbors. Both are 0 where no frame weighs anything
    span_stats  the same over spans of any length, each seen at n_places evenly spaced places: place k is the frame
                first + (2 k + 1) length / (2 n_places), rounded down, and weighs weights[frame, group] *
                profile[group, k]

Decision, for a query with cosine distances d[l] to the prototypes; the candidate is the closest label
    z           (cohort mean of prototype l - d[l]) / cohort deviation of prototype l     0 without a bank
    t           (cohort mean of the query - d[l]) / cohort deviation of the query         0 without a bank
    margin      distance of the closest other label - d[l]; lone_margin where there is no other
    loo         mean leave-one-out distance of the label's recordings among themselves, shrunk towards what is usual:
                (prior_loo prior_weight + sum) / (prior_weight + count)
    shots       log2(1 + number of recordings)
    text        1 for a label without any recording, else 0
    logit       w_bias + w_z z + w_t t + w_distance d[l] + w_margin margin + w_loo loo + w_shots shots + w_text text
    probability 1 / (1 + exp(-logit)); accepted where logit >= accept_logit, else unknown
    threshold   the d[l] at which the logit is accept_logit with all other distances and both cohorts held. The logit is
                linear in it, with the slope w_distance - w_margin - w_z / deviation - w_t / deviation, which is < 0:
                d[l] + (accept_logit - logit) / slope
    A recording weighs 1 in its prototype; a text or a picture weighs text_weight, so that text makes up
    text_weight / (text_weight + k) of a label with k recordings.

Sound
    log_mel     frames of window_samples every hop_samples, 1 + (n_samples - window_samples) // hop_samples of them; a
                shorter clip is zero-padded on the right to one. Periodic Hann window, zero-padded on the right to
                n_fft, power spectrum, filterbank, natural log of the energy, clamped from below at energy_floor
    sound_spans the level of a frame is 10 log10 of its mean mel energy; the floor is the level at rank
                int(floor_quantile (n_frames - 1)); a frame is on above max(floor + above_floor_db,
                peak - below_peak_db). Runs closer than merge_frames are joined, then those shorter than min_frames
                dropped, the rest padded by pad_frames within the clip and the middle of the gap to the next; a longer
                run keeps its loudest max_frames. Clearness is the sum of level - threshold over the frames that are
                on, in dB x frames
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from edgealign import reference
from edgealign.errors import InvalidInput

try:
    from edgealign import _core
except ImportError:
    _core = None
except ValueError as error:  # an instruction set that is not there was asked for
    raise InvalidInput(str(error)) from None

__all__ = [
    "Calibration",
    "LogMel",
    "Match",
    "Matcher",
    "Packed",
    "backend",
    "cohort_stats",
    "cosine",
    "inner_product",
    "instruction_set",
    "label_distances",
    "leave_one_out",
    "log_mel",
    "log_softmax",
    "nearest",
    "pack",
    "prototypes",
    "several_prototypes",
    "sound_spans",
    "span_stats",
    "sq_l2",
    "window_stats",
]

MAX_SAMPLE = 1e6  # louder than that is not audio; EA_MAX_SAMPLE in edgealign.h
MAX_PLACES = 64  # of a span; EA_MAX_PLACES in edgealign.h
METRICS = ("cosine", "sq_l2")  # in the order of ea_metric
STORAGES = ("float32", "int8")  # in the order of ea_storage
RECORDING, TEXT, PICTURE = KINDS = (1, 2, 3)  # ea_kind: what an embedding was made from


def backend() -> str:
    """What computes: "native" (the compiled core) or "numpy" (the reference, much slower)."""
    return "native" if _core else "numpy"


def instruction_set() -> str | None:
    """The processor's instructions that the core uses; None without the core.

    "avx512vnni", "avx512", "avx2" or "baseline" on x86-64, "neon" on arm64: the widest that is there, or the one that
    the environment variable EDGEALIGN_INSTRUCTION_SET names at import, which is a ValueError where it is not there.
    """
    return _core.instruction_set if _core else None


def _float32(values: np.ndarray, ndim: int, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype != np.float32:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            values = values.astype(np.float32)
    if not (values.flags.c_contiguous and values.flags.aligned):
        values = values.copy()
    if values.ndim != ndim:
        raise ValueError(f"{name} has {values.ndim} dimensions, expected {ndim}")
    if ndim == 2 and values.shape[1] == 0:
        raise ValueError(f"{name} has rows without elements")
    if _core is None and not np.isfinite(values).all():  # the core sees it in passing
        raise ValueError(f"NaN or infinity in {name}")
    return values


def _pair(queries: np.ndarray, prototypes: np.ndarray, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    queries, prototypes = _float32(queries, 2, names[0]), _float32(prototypes, 2, names[1])
    if queries.shape[1] != prototypes.shape[1]:
        raise ValueError(f"{names[0]} have {queries.shape[1]} elements a row, {names[1]} {prototypes.shape[1]}")
    return queries, prototypes


def _labels(labels: np.ndarray, n_rows: int, n_labels: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (n_rows,):
        raise ValueError(f"labels have the shape {labels.shape}, expected {(n_rows,)}")
    if n_rows and not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels have the type {labels.dtype}, expected integers")
    if n_rows and (labels.min() < 0 or labels.max() >= n_labels):
        raise ValueError(f"a label lies outside 0 to {n_labels - 1}")
    return np.require(labels, np.int32, "CA")  # after the look at the range: a cast wraps around


def _weights(weights: np.ndarray | None, n_rows: int) -> np.ndarray | None:
    if weights is None:
        return None
    weights = _float32(weights, 1, "weights")
    if not np.isfinite(weights).all():
        raise ValueError("NaN or infinity in weights")
    if weights.shape != (n_rows,) or (n_rows and weights.min() < 0):
        raise ValueError(f"weights must be {n_rows} numbers, none of them negative")
    return weights


def _not_negative(values: np.ndarray, name: str) -> np.ndarray:
    values = _float32(values, 2, name)
    if not np.isfinite(values).all():
        raise ValueError(f"NaN or infinity in {name}")
    if (values < 0).any():
        raise ValueError(f"{name} must be numbers, none of them negative")
    return values


class Packed:
    """Prototypes arranged for speed by `pack`; never changes, and any thread may use it.

    shape    (number of prototypes, elements a row)
    storage  "float32" or "int8"
    """

    __slots__ = ("_native", "_rows", "shape", "storage")

    def __init__(self, prototypes: np.ndarray, storage: str) -> None:
        self.shape, self.storage = prototypes.shape, storage
        self._native = self._rows = None
        if _core is None:
            self._rows = prototypes.copy() if storage == "float32" else reference.rounded_to_int8(prototypes)
        else:
            self._native = _core.pack(prototypes, STORAGES.index(storage))

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<Packed: {self.shape[0]} prototypes of {self.shape[1]} elements, {self.storage}>"


def pack(prototypes: np.ndarray, storage: str = "float32") -> Packed:
    """Prototypes [p, d] for many queries: made once, and taken in their place wherever the core compares.

    storage   "float32", or "int8" for a quarter of the memory, with queries rounded in the same way
    """
    if storage not in STORAGES:
        raise ValueError(f"unknown storage '{storage}', expected one of {', '.join(STORAGES)}")
    return Packed(_float32(prototypes, 2, "prototypes"), storage)


def _packed_queries(queries: np.ndarray, packed: Packed, threads: int) -> np.ndarray:
    queries = _float32(queries, 2, "queries")
    if queries.shape[1] != packed.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} elements a row, prototypes {packed.shape[1]}")
    if not 1 <= threads <= 256:
        raise ValueError(f"threads is {threads}, expected 1 to 256")
    return reference.rounded_to_int8(queries) if _core is None and packed.storage == "int8" else queries


def _comparable(
    queries: np.ndarray, prototypes: np.ndarray | Packed, threads: int
) -> tuple[np.ndarray, np.ndarray | Packed]:
    """Queries and prototypes of equal width, converted where they have to be."""
    if isinstance(prototypes, Packed):
        return _packed_queries(queries, prototypes, threads), prototypes
    queries, prototypes = _pair(queries, prototypes, ("queries", "prototypes"))
    if threads != 1:
        raise ValueError("threads can be given with packed prototypes only")
    return queries, prototypes


def _rows(prototypes: np.ndarray | Packed) -> np.ndarray:
    """Prototypes as the reference takes them."""
    return prototypes._rows if isinstance(prototypes, Packed) else prototypes


def _metric(metric: str) -> int:
    if metric not in METRICS:
        raise ValueError(f"unknown metric '{metric}', expected one of {', '.join(METRICS)}")
    return METRICS.index(metric)


def _output(out: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    if out is None:
        return np.empty(shape, np.float32)
    if not isinstance(out, np.ndarray) or out.dtype != np.float32 or out.shape != shape:
        found = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out is {found}, expected a float32 array of the shape {shape}")
    if not out.flags.carray:
        raise ValueError("out must be C-contiguous, aligned and writeable")
    return out


def _distances(
    op: str, queries: np.ndarray, prototypes: np.ndarray | Packed, out: np.ndarray | None, threads: int
) -> np.ndarray:
    """The core alone where it takes all as it is; else converts what can be converted, and says what is wrong."""
    if out is not None and _core is not None and getattr(_core, op)(queries, prototypes, out, threads):
        return out
    queries, prototypes = _comparable(queries, prototypes, threads)
    out = _output(out, (len(queries), len(prototypes)))
    if _core is None:
        out[...] = getattr(reference, op)(queries, _rows(prototypes))
    elif not getattr(_core, op)(queries, prototypes, out, threads):
        raise TypeError(f"threads is {threads!r}, expected a whole number")
    return out


def sq_l2(
    queries: np.ndarray, prototypes: np.ndarray | Packed, out: np.ndarray | None = None, threads: int = 1
) -> np.ndarray:
    """Squared Euclidean distances, float32 [q, p], of queries [q, d] to prototypes [p, d].

    out       float32 [q, p], C-contiguous, to be filled and returned
    threads   up to so many, which end with the call; only with packed prototypes

    A distance beyond the range of float32 is infinite.
    """
    return _distances("sq_l2", queries, prototypes, out, threads)


def cosine(
    queries: np.ndarray, prototypes: np.ndarray | Packed, out: np.ndarray | None = None, threads: int = 1
) -> np.ndarray:
    """Cosine distances, float32 [q, p] in [0, 2]; arguments as for `sq_l2`."""
    return _distances("cosine", queries, prototypes, out, threads)


def inner_product(
    queries: np.ndarray, prototypes: np.ndarray | Packed, out: np.ndarray | None = None, threads: int = 1
) -> np.ndarray:
    """Inner products, float32 [q, p], larger is closer; arguments as for `sq_l2`. Infinite beyond float32's range."""
    return _distances("inner_product", queries, prototypes, out, threads)


def nearest(
    queries: np.ndarray, prototypes: np.ndarray | Packed, k: int = 1, metric: str = "cosine", threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The k closest of prototypes [p, d] for each of queries [q, d]: distances float32 [q, k] and rows int32 [q, k].

    1 <= k <= p; metric is "cosine" or "sq_l2"; threads as for `sq_l2`.
    """
    queries, prototypes = _comparable(queries, prototypes, threads)
    number = _metric(metric)
    if not 1 <= k <= len(prototypes):
        raise ValueError(f"k is {k}, expected 1 to {len(prototypes)}, the number of prototypes")
    if _core is None:
        return reference.nearest(queries, _rows(prototypes), k, metric)
    distances = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int32)
    if isinstance(prototypes, Packed):
        _core.packed_nearest(prototypes._native, queries, k, number, threads, distances, indices)
    else:
        _core.nearest(queries, prototypes, k, number, distances, indices)
    return distances, indices


def label_distances(
    queries: np.ndarray,
    prototypes: np.ndarray | Packed,
    labels: np.ndarray,
    n_labels: int,
    metric: str = "cosine",
    threads: int = 1,
) -> np.ndarray:
    """Distances, float32 [q, n_labels], to the closest of the prototypes [p, d] of each label.

    labels   int32 [p] in [0, n_labels), whose prototype it is: a label may have several, and must have one
    """
    packed = prototypes if isinstance(prototypes, Packed) else pack(prototypes)
    queries = _packed_queries(queries, packed, threads)
    number, labels = _metric(metric), _labels(labels, len(packed), n_labels)
    empty = np.flatnonzero(np.bincount(labels, minlength=n_labels) == 0)
    if len(empty):
        raise ValueError(f"label {empty[0]} has no prototype: every label must have one")
    if _core is None:
        return reference.label_distances(queries, packed._rows, labels, n_labels, metric)
    distances = np.empty((len(queries), n_labels), np.float32)
    _core.packed_label_distances(packed._native, labels, queries, number, threads, distances)
    return distances


def log_softmax(
    queries: np.ndarray,
    prototypes: np.ndarray | Packed,
    metric: str = "sq_l2",
    temperature: float = 1.0,
    threads: int = 1,
) -> np.ndarray:
    """Logarithms of probabilities, float32 [q, p]: the softmax of -distance / temperature over prototypes [p, d].

    p >= 1, temperature > 0; metric is "cosine" or "sq_l2"; threads as for `sq_l2`.
    """
    packed = prototypes if isinstance(prototypes, Packed) else pack(prototypes)
    queries = _packed_queries(queries, packed, threads)
    number = _metric(metric)
    if len(packed) == 0:
        raise ValueError("there is no prototype to choose from")
    if not 1e-30 <= temperature <= 1e30:
        raise ValueError(f"temperature is {temperature}, expected 1e-30 to 1e30")
    if _core is None:
        return reference.log_softmax(queries, packed._rows, metric, temperature)
    out = np.empty((len(queries), len(packed)), np.float32)
    _core.packed_log_softmax(packed._native, queries, number, temperature, threads, out)
    return out


def prototypes(
    embeddings: np.ndarray, labels: np.ndarray, n_labels: int | None = None, weights: np.ndarray | None = None
) -> np.ndarray:
    """Prototypes, float32 [n_labels, d], of embeddings [n, d] with labels int32 [n] in [0, n_labels).

    n_labels  None for one more than the highest label
    weights   float32 [n], >= 0; only their ratios within a label matter; None for equal ones
    """
    embeddings = _float32(embeddings, 2, "embeddings")
    if n_labels is None:
        n_labels = int(np.max(labels)) + 1 if np.size(labels) else 0
    labels = _labels(labels, len(embeddings), n_labels)
    weights = _weights(weights, len(embeddings))
    if _core is None:
        return reference.prototypes(embeddings, labels, n_labels, weights)
    made = np.empty((n_labels, embeddings.shape[1]), np.float32)
    _core.prototypes(embeddings, labels, weights, made)
    return made


def several_prototypes(
    embeddings: np.ndarray, labels: np.ndarray, per_label: int, n_labels: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Up to per_label prototypes of each label: float32 [p, d], and int32 [p], whose they are, in rising order.

    embeddings   float32 [n, d], with labels int32 [n] in [0, n_labels), each of which has a row
    n_labels     None for one more than the highest label

    For labels that sound in more than one way; `label_distances` compares with the closest prototype of each. A label
    with one prototype has that of `prototypes`.
    """
    embeddings = _float32(embeddings, 2, "embeddings")
    single = prototypes(embeddings, labels, n_labels)
    labels = _labels(labels, len(embeddings), len(single))
    if per_label < 1:
        raise ValueError(f"per_label is {per_label}, expected at least 1")
    empty = np.flatnonzero(np.bincount(labels, minlength=len(single)) == 0)
    if len(empty):
        raise ValueError(f"label {empty[0]} has no row: every label must have one")
    found = [_centers(embeddings[labels == label], row, per_label) for label, row in enumerate(single)]
    owners = np.repeat(np.arange(len(found), dtype=np.int32), [len(centers) for centers in found])
    return np.concatenate([single[:0], *found]), owners


def _centers(rows: np.ndarray, prototype: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` prototypes of the rows of one label, float32 [c, d]."""
    if count == 1:
        return prototype[None]
    chosen = [int(cosine(rows, prototype[None])[:, 0].argmax())]
    distances = cosine(rows, rows[chosen])[:, 0]
    while len(chosen) < count and distances.max() > 1e-6:
        chosen.append(int(distances.argmax()))
        distances = np.minimum(distances, cosine(rows, rows[chosen[-1:]])[:, 0])
    centers, owners = rows[chosen], None
    for _ in range(100):
        closest = cosine(rows, centers).argmin(axis=1)
        if owners is not None and np.array_equal(closest, owners):
            break
        used, owners = np.unique(closest, return_inverse=True)
        centers = prototypes(rows, owners, len(used))
    return centers


def leave_one_out(
    embeddings: np.ndarray, labels: np.ndarray, n_labels: int, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """How far each of embeddings [n, d] is from the rest of its label: distances float32 [n] and valid bool [n].

    A distance that is not valid is 0 and means nothing.
    """
    embeddings = _float32(embeddings, 2, "embeddings")
    labels = _labels(labels, len(embeddings), n_labels)
    weights = _weights(weights, len(embeddings))
    if _core is None:
        return reference.leave_one_out(embeddings, labels, n_labels, weights)
    distances = np.empty(len(embeddings), np.float32)
    valid = np.empty(len(embeddings), np.uint8)
    _core.leave_one_out(embeddings, labels, n_labels, weights, distances, valid)
    return distances, valid.astype(bool)


def cohort_stats(rows: np.ndarray, bank: np.ndarray, top: int) -> np.ndarray:
    """Mean and standard deviation, float32 [n, 2], of the cosine distances of rows [n, d] to their cohorts.

    bank   float32 [b, d], b >= 1
    top    size of a cohort, at least 1; all of the bank where it is smaller
    """
    rows, bank = _pair(rows, bank, ("rows", "the bank"))
    if top < 1 or len(bank) < 1:
        raise ValueError(f"a cohort of {top} out of {len(bank)} rows: both must be at least 1")
    if _core is None:
        return reference.cohort_stats(rows, bank, top)
    stats = np.empty((len(rows), 2), np.float32)
    _core.cohort_stats(rows, bank, top, stats)
    return stats


def window_stats(
    frames: np.ndarray,
    window_frames: int,
    hop_frames: int,
    weights: np.ndarray | None = None,
    profile: np.ndarray | None = None,
) -> np.ndarray:
    """Mean and standard deviation over sliding windows: float32 [n_windows, 2 d], the d means first.

    frames    float32 [n_frames, d]; n_windows is 1 + (n_frames - window_frames) // hop_frames, or 0
    weights   float32 [n_frames, n_groups] >= 0, or None for equal ones; d is a multiple of n_groups, and group g has
              the channels from g d / n_groups on
    profile   float32 [n_groups, window_frames] >= 0, a second factor that moves with the window, or None

    Without a profile it is prefix sums (float64): the overlap of the windows costs nothing, and a window whose frames
    weigh next to nothing beside what went before is off by as much.
    """
    frames = _float32(frames, 2, "frames")
    if window_frames < 1 or hop_frames < 1:
        raise ValueError(f"windows of {window_frames} frames every {hop_frames}: both must be at least 1")
    n_groups = 1
    for name, given, n_rows, axis in (("weights", weights, len(frames), 1), ("profile", profile, window_frames, 0)):
        if given is None:
            continue
        n_groups = np.shape(given)[axis] if np.ndim(given) == 2 else 0
        if n_groups < 1 or frames.shape[1] % n_groups or np.shape(given)[1 - axis] != n_rows:
            raise ValueError(f"{name} have the shape {np.shape(given)}, which does not fit frames {frames.shape}")
    weights = None if weights is None else _not_negative(weights, "weights")
    profile = None if profile is None else _not_negative(profile, "profile")
    if weights is not None and profile is not None and weights.shape[1] != len(profile):
        raise ValueError(f"weights are for {weights.shape[1]} groups, the profile is for {len(profile)}")
    if _core is None:
        return reference.window_stats(frames, window_frames, hop_frames, weights, profile)
    n_windows = _core.n_windows(len(frames), window_frames, hop_frames)
    stats = np.empty((n_windows, 2 * frames.shape[1]), np.float32)
    _core.window_stats(frames, weights, profile, window_frames, hop_frames, stats)
    return stats


def span_stats(frames: np.ndarray, weights: np.ndarray, profile: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Mean and standard deviation over spans: float32 [n_spans, 2 d], the d means first.

    frames    float32 [n_frames, d]
    weights   float32 [n_frames, n_groups] >= 0; d is a multiple of n_groups, and group g has the channels from
              g d / n_groups on
    profile   float32 [n_groups, n_places] >= 0, n_places at most MAX_PLACES
    spans     int32 [n_spans, 2]: first frame and one past the last, 0 <= first < last <= n_frames
    """
    frames, spans = _float32(frames, 2, "frames"), np.asarray(spans)
    weights, profile = _not_negative(weights, "weights"), _not_negative(profile, "profile")
    if len(weights) != len(frames) or frames.shape[1] % weights.shape[1] or len(profile) != weights.shape[1]:
        raise ValueError(f"weights {weights.shape} and profile {profile.shape} do not fit frames {frames.shape}")
    if profile.shape[1] > MAX_PLACES:
        raise ValueError(f"a profile of {profile.shape[1]} places: at most {MAX_PLACES} are taken")
    if spans.ndim != 2 or spans.shape[1] != 2:
        raise ValueError(f"spans have the shape {spans.shape}, expected [n_spans, 2]")
    if len(spans) and not np.issubdtype(spans.dtype, np.integer):
        raise ValueError(f"spans have the type {spans.dtype}, expected integers")
    if len(spans) and not (spans[:, 0].min() >= 0 and (spans[:, 0] < spans[:, 1]).all() and spans.max() <= len(frames)):
        raise ValueError(f"a span does not lie within the {len(frames)} frames, or has none")
    if _core is None:
        return reference.span_stats(frames, weights, profile, spans)
    spans = np.require(spans, np.int32, "CA")
    stats = np.empty((len(spans), 2 * frames.shape[1]), np.float32)
    _core.span_stats(frames, weights, profile, spans, stats)
    return stats


class LogMel:
    """A front end made ready for `log_mel`: made once, never changes, and any thread may use it.

    filters   float32 [n_mels, n_fft // 2 + 1], from the bundle; n_fft is a power of two >= window_samples
    """

    __slots__ = ("_filters", "_made_of", "_native", "numbers")

    def __init__(self, filters: np.ndarray, window_samples: int, hop_samples: int, energy_floor: float) -> None:
        filters = _float32(filters, 2, "filters")
        n_fft = 2 * (filters.shape[1] - 1)
        fits = n_fft >= 4 and not n_fft & (n_fft - 1) and 1 <= window_samples <= n_fft
        if not fits or hop_samples < 1 or energy_floor < 1e-37:
            raise ValueError(
                f"a front end of {window_samples} window samples, {hop_samples} hop samples, n_fft {n_fft} and energy "
                f"floor {energy_floor}: n_fft must be a power of two from 4, the window 1 to n_fft, the floor 1e-37 or "
                f"more"
            )
        self.numbers = (window_samples, hop_samples, energy_floor)
        self._filters, self._made_of = filters.copy(), filters.tobytes()
        self._native = None if _core is None else _core.log_mel_plan(filters, *self.numbers)

    def _is_made_of(self, filters: np.ndarray, numbers: tuple[int, int, float]) -> bool:
        same = self.numbers == numbers and (self._native is None) == (_core is None)
        return same and self._filters.shape == filters.shape and self._made_of == filters.tobytes()


_latest: LogMel | None = None  # of filters and numbers: making it takes as long as half a second of audio


def log_mel(samples: np.ndarray, config: LogMel | np.ndarray, *numbers: float) -> np.ndarray:
    """Log-mel energies, float32 [n_mels, n_frames], of one clip.

    samples   float32 [n_samples], mono, meant to be in [-1, 1]; beyond +-1e6 it is a ValueError
    config    a LogMel, or what it is made of: filters, window_samples, hop_samples, energy_floor

    The core computes in float32; edgealign.h says how far that is off.
    """
    global _latest
    samples = _float32(samples, 1, "samples")
    if not isinstance(config, LogMel):
        filters = _float32(config, 2, "filters")
        config = _latest  # another thread may put its own there
        if config is None or not config._is_made_of(filters, numbers):
            config = _latest = LogMel(filters, *numbers)
    if _core is None:
        if len(samples) and np.abs(samples).max() > MAX_SAMPLE:
            raise ValueError(f"a sample is beyond +-{MAX_SAMPLE:.0e}: audio lies within +-1")
        return reference.log_mel(samples, config._filters, *config.numbers)
    log_mels = np.empty((len(config._filters), _core.log_mel_frames(config._native, len(samples))), np.float32)
    _core.log_mel(config._native, samples, log_mels)
    return log_mels


def sound_spans(
    log_mels: np.ndarray,
    floor_quantile: float,
    above_floor_db: float,
    below_peak_db: float,
    merge_frames: int,
    min_frames: int,
    pad_frames: int,
    max_frames: int,
) -> np.ndarray:
    """Where the sounds of log_mels float32 [n_mels, n_frames] are, n_frames >= 1.

    returns   float64 [n_spans, 3]: first frame, one past the last frame, clearness in dB x frames; in time order
    """
    log_mels = _float32(log_mels, 2, "log_mels")
    options = (floor_quantile, above_floor_db, below_peak_db, merge_frames, min_frames, pad_frames, max_frames)
    if len(log_mels) == 0 or not 0 <= floor_quantile <= 1 or min(options[3:6]) < 0 or max_frames < 1:
        raise ValueError(f"no mel bands, or span options that make no sense: {options}")
    if _core is None:
        return reference.sound_spans(log_mels, *options)
    spans = np.empty((log_mels.shape[1] // 2 + 1, 3))
    return spans[: _core.sound_spans(log_mels, *options, spans)]


@dataclass(frozen=True)
class Calibration:
    """The numbers of the decision. They are fitted when a bundle is made and travel in its manifest."""

    w_bias: float
    w_z: float
    w_t: float
    w_distance: float
    w_margin: float
    w_loo: float
    w_shots: float
    w_text: float
    accept_logit: float
    top: int
    prior_loo: float
    prior_weight: float
    lone_margin: float

    @classmethod
    def from_dict(cls, values: dict[str, float]) -> Calibration:
        """From the manifest of a bundle; ValueError for a key that is missing, unknown or not a number."""
        names = {field.name for field in fields(cls)}
        if values.keys() != names:
            missing, unknown = sorted(names - values.keys()), sorted(values.keys() - names)
            raise ValueError(f"calibration has missing keys {missing} and unknown keys {unknown}")
        for name, value in values.items():
            if type(value) not in (int, float):
                raise ValueError(f"calibration has {name} = {value!r}, expected a number")
        return cls(**values)

    def check(self, n_bank: int) -> None:
        """ValueError unless a larger distance always means a smaller logit, which the threshold rests on."""
        if not all(np.isfinite(getattr(self, field.name)) for field in fields(self)):
            raise ValueError("the calibration holds NaN or infinity")
        if min(self.w_z, self.w_t, self.w_margin) < 0 or self.w_distance > 0:
            raise ValueError("the calibration must have w_z, w_t, w_margin >= 0 and w_distance <= 0")
        if self.w_margin - self.w_distance + (self.w_z + self.w_t if n_bank else 0) <= 0:
            raise ValueError("no weight of the calibration looks at the distance")
        if self.prior_weight <= 0 or self.top != int(self.top) or self.top < 1:
            raise ValueError("the calibration must have prior_weight > 0 and a whole number top >= 1")


class Match(NamedTuple):
    """One candidate of a decision."""

    label: int  # row of the prototype
    accepted: bool
    distance: float  # cosine distance to the prototype
    threshold: float  # the largest distance that would have been accepted, all else equal
    probability: float
    logit: float


class Matcher:
    """Decides between the labels of a store and unknown. Made once per store and bundle; any thread may use it.

    embeddings    float32 [n, d], n >= 1
    labels        int32 [n] in [0, n_labels); every label has a row
    kinds         int32 [n] of KINDS
    bank          float32 [b, d]; b may be 0
    """

    def __init__(
        self,
        embeddings: np.ndarray,
        labels: np.ndarray,
        kinds: np.ndarray,
        n_labels: int,
        bank: np.ndarray,
        calibration: Calibration,
        text_weight: float = 1.0,
    ) -> None:
        embeddings, bank = _pair(embeddings, bank, ("embeddings", "the bank"))
        labels = _labels(labels, len(embeddings), n_labels)
        kinds = np.asarray(kinds)
        # Not np.unique: it imports numpy.ma, which is a tenth of the time that a cold `classify` may take.
        n_used = np.count_nonzero(np.bincount(labels, minlength=max(n_labels, 0)))
        if n_labels < 1 or n_used != n_labels:
            raise ValueError(f"{n_labels} labels, of which {n_used} have rows: every label must have one")
        if kinds.shape != labels.shape or not np.isin(kinds, KINDS).all():
            raise ValueError(f"kinds must be {len(labels)} of {KINDS}")
        kinds = np.require(kinds, np.int32, "CA")
        if not 0 < text_weight < np.inf:
            raise ValueError(f"text_weight is {text_weight}, expected a positive number")
        calibration.check(len(bank))
        self.n_labels, self.dim = n_labels, embeddings.shape[1]
        made_of = (embeddings, labels, kinds, n_labels, bank)
        if _core is None:
            self._native = None
            self._reference = reference.Matcher(*made_of, calibration, text_weight)
        else:
            numbers = [float(getattr(calibration, field.name)) for field in fields(calibration)]
            self._native = _core.matcher(*made_of, np.array(numbers), text_weight)

    def classify(self, embedding: np.ndarray, top_k: int = 1) -> list[Match]:
        """The top_k closest labels for an embedding [d], closest first; the first is the answer, or unknown."""
        embedding = _float32(embedding, 1, "embedding")
        if embedding.shape != (self.dim,):
            raise ValueError(f"embedding has {len(embedding)} elements, the matcher {self.dim}")
        return self._classify(embedding[None], top_k)[0]

    def classify_many(self, embeddings: np.ndarray, top_k: int = 1) -> list[list[Match]]:
        """The same for each of embeddings [n, d], which share passes over the bank."""
        embeddings = _float32(embeddings, 2, "embeddings")
        if embeddings.shape[1] != self.dim:
            raise ValueError(f"embeddings have {embeddings.shape[1]} elements a row, the matcher {self.dim}")
        return self._classify(embeddings, top_k)

    def _classify(self, embeddings: np.ndarray, top_k: int) -> list[list[Match]]:
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}, expected at least 1")
        if self._native is None:
            found = [self._reference.classify(embedding, top_k) for embedding in embeddings]
        else:
            found = _core.classify(self._native, embeddings, min(top_k, self.n_labels))
        return [[Match(*values) for values in matches] for matches in found]
