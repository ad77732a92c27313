"""The formulas of `edgealign.kernels` as torch operators: torch.ops.edgealign.sq_l2, cosine, nearest and prototypes,
and the batched episodic step made of them.

On the CPU they run in the compiled core, so that training computes what the device will; the episodic step has CUDA
kernels of its own, built where a CUDA toolkit is. Where the compiled operators are missing, and for the others on CUDA,
plain torch formulas take their place: same results within rounding, more memory and time. `backend()` says which.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["EpisodicStep", "backend", "cosine", "episodic_step", "nearest", "prototypes", "sq_l2"]

LIBRARY = Path(__file__).parents[1] / "_torch_ops.so"
CUDA_LIBRARY = LIBRARY.with_name("_torch_ops_cuda.so")  # there only where it was built with a CUDA toolkit
METRICS = {"cosine": 0, "sq_l2": 1}
NO_DIRECTION = 1e-6
SCHEMAS = (
    "sq_l2(Tensor queries, Tensor prototypes) -> Tensor",
    "cosine(Tensor queries, Tensor prototypes) -> Tensor",
    "nearest(Tensor queries, Tensor prototypes, int k=1, int metric=0) -> (Tensor, Tensor)",
    "prototypes(Tensor embeddings, Tensor labels, SymInt n_labels, Tensor? weights=None) -> Tensor",
    "episodic_step(Tensor support, Tensor queries, Tensor targets, Tensor scale, int metric=0) -> (Tensor, Tensor, "
    "Tensor, Tensor)",
    "episodic_step_backward(Tensor? of_losses, Tensor? of_log_probabilities, Tensor? of_distances, Tensor? "
    "of_prototypes, Tensor support, Tensor queries, Tensor targets, Tensor scale, int metric, Tensor "
    "log_probabilities, Tensor distances, Tensor prototypes) -> (Tensor, Tensor, Tensor)",
)


def backend(device: str = "cpu") -> str:
    """What computes: "native" (compiled operators; on "cuda", of the episodic step) or "torch" (torch's own)."""
    return "native" if _native[device] else "torch"


def sq_l2(queries: Tensor, prototypes: Tensor) -> Tensor:
    """Squared Euclidean distances [q, p] of queries [q, d] to prototypes [p, d]; float32, or float64 for gradcheck."""
    return torch.ops.edgealign.sq_l2(queries, prototypes)


def cosine(queries: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine distances [q, p] in [0, 2] of queries [q, d] to prototypes [p, d].

    The gradient of a zero row is zero.
    """
    return torch.ops.edgealign.cosine(queries, prototypes)


def nearest(queries: Tensor, prototypes: Tensor, k: int = 1, metric: str = "cosine") -> tuple[Tensor, Tensor]:
    """The k closest prototypes: distances [q, k] and rows int64 [q, k], closest first. Not differentiable."""
    return torch.ops.edgealign.nearest(queries, prototypes, k, METRICS[metric])


def prototypes(embeddings: Tensor, labels: Tensor, n_labels: int, weights: Tensor | None = None) -> Tensor:
    """Prototypes [n_labels, d] of embeddings [n, d] with labels int64 [n] and weights [n], finite and >= 0.

    Differentiable in embeddings and weights; a zero row, and a label without direction, have gradient zero.
    """
    return torch.ops.edgealign.prototypes(embeddings, labels, n_labels, weights)


class EpisodicStep(NamedTuple):
    """What `episodic_step` makes of n_episodes episodes; every part is differentiable."""

    losses: Tensor  # [n_episodes], mean over the queries of minus the log-probability of the target
    log_probabilities: Tensor  # [n_episodes, n_query, n_way], log-softmax of -scale * distance
    distances: Tensor  # [n_episodes, n_query, n_way]
    prototypes: Tensor  # [n_episodes, n_way, dim]


def episodic_step(
    support: Tensor, queries: Tensor, targets: Tensor, scale: Tensor | float = 1.0, metric: str = "cosine"
) -> EpisodicStep:
    """The loss of prototypical networks (Snell et al. 2017) for a batch of episodes, in one pass over the embeddings.

    support   float32 [n_episodes, n_way, n_shot, dim], or float64 for gradcheck; n_shot rows of each label
    queries   like support, [n_episodes, n_query, dim]
    targets   int64 [n_episodes, n_query] in [0, n_way): the label of each query
    scale     one over the temperature, >= 0, a number or a tensor of no dimensions that may be learned
    metric    "cosine" or "sq_l2"

    Prototypes and distances are those of `edgealign.kernels`: sq_l2 takes queries as they are, only the support is
    scaled to unit length. The gradient of a zero row, and through a prototype without direction, is zero. Both
    directions repeat to the bit, with any number of threads; second derivatives are computed by torch's own operators.
    A target out of range, NaN and infinity are a RuntimeError; on CUDA, finding them waits for the device.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric '{metric}', expected one of {', '.join(METRICS)}")
    if not isinstance(scale, Tensor):
        scale = queries.new_full((), scale)
    return EpisodicStep(*torch.ops.edgealign.episodic_step(support, queries, targets, scale, METRICS[metric]))


# ---- formulas out of torch's operators: gradients, and what runs where the core does not ----


def _unit_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows scaled to unit length, zero rows kept, and one over their lengths [n, 1], 0 for zero rows."""
    # By the largest element first, so that squares neither overflow nor vanish.
    largest = rows.abs().amax(dim=1, keepdim=True)
    scaled = rows / torch.where(largest > 0, largest, 1)
    lengths = scaled.square().sum(dim=1, keepdim=True).sqrt()
    inverse = torch.where(largest > 0, 1 / torch.where(lengths > 0, lengths, 1), 0)
    return scaled * inverse, torch.where(largest > 0, inverse / torch.where(largest > 0, largest, 1), 0)


def _expect_finite(*tensors: Tensor | None) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in tensors if tensor is not None):
        raise RuntimeError("edgealign: NaN or infinity in an input")


def _torch_sq_l2(queries: Tensor, prototypes: Tensor) -> Tensor:
    _expect_finite(queries, prototypes)
    return (queries[:, None] - prototypes).square().sum(dim=2)


def _torch_cosine(queries: Tensor, prototypes: Tensor) -> Tensor:
    _expect_finite(queries, prototypes)
    q, p = _unit_rows(queries)[0], _unit_rows(prototypes)[0]
    both_zero = ~(queries != 0).any(dim=1)[:, None] & ~(prototypes != 0).any(dim=1)
    return torch.where(both_zero, 0, (1 - q @ p.T).clamp(0, 2))


def _torch_nearest(queries: Tensor, prototypes: Tensor, k: int = 1, metric: int = 0) -> tuple[Tensor, Tensor]:
    if not 1 <= k <= len(prototypes):
        raise RuntimeError("edgealign: k must be 1 to the number of prototypes")
    distances = (_torch_cosine if metric == METRICS["cosine"] else _torch_sq_l2)(queries, prototypes)
    ordered, rows = distances.sort(dim=1, stable=True)
    return ordered[:, :k].contiguous(), rows[:, :k].contiguous()


def _label_sums(unit: Tensor, labels: Tensor, n_labels: int, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weighted sums of unit rows scaled to unit length [n_labels, d], and one over their lengths [n_labels, 1]."""
    weights = torch.ones_like(unit[:, 0]) if weights is None else weights
    sums = unit.new_zeros(n_labels, unit.shape[1]).index_add(0, labels, unit * weights[:, None])
    totals = unit.new_zeros(n_labels, 1).index_add(0, labels, weights[:, None])
    lengths = sums.square().sum(dim=1, keepdim=True).sqrt()
    has_direction = lengths > NO_DIRECTION * totals
    inverse = torch.where(has_direction, 1 / torch.where(has_direction, lengths, 1), 0)
    return sums * inverse, inverse


def _torch_prototypes(embeddings: Tensor, labels: Tensor, n_labels: int, weights: Tensor | None = None) -> Tensor:
    _expect_finite(embeddings, weights)
    if len(labels) and (bool(labels.min() < 0) or bool(labels.max() >= n_labels)):
        raise RuntimeError("edgealign: a label is not in [0, n_labels)")
    if weights is not None and bool((weights < 0).any()):
        raise RuntimeError("edgealign: weights must be finite and not negative")
    return _label_sums(_unit_rows(embeddings)[0], labels, n_labels, weights)[0]


def _unit(rows: Tensor) -> Tensor:
    """Rows of the last dimension scaled to unit length, with gradient zero at zero rows."""
    largest = rows.detach().abs().amax(dim=-1, keepdim=True)
    scaled = rows / torch.where(largest > 0, largest, 1)
    lengths = torch.where(largest > 0, scaled.square().sum(dim=-1, keepdim=True), 1).sqrt()
    return torch.where(largest > 0, scaled / lengths, 0)


def _torch_episodic_step(
    support: Tensor, queries: Tensor, targets: Tensor, scale: Tensor, metric: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_episodes(support, queries, targets, scale, metric)
    _expect_finite(support, queries, scale)
    if bool((targets < 0).any()) or bool((targets >= support.shape[1]).any()) or bool(scale < 0):
        raise RuntimeError("edgealign: a target is not in [0, n_way), or the scale is negative or not finite")
    return _episodic_formula(support, queries, targets, scale, metric)


def _episodic_formula(
    support: Tensor, queries: Tensor, targets: Tensor, scale: Tensor, metric: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums = _unit(support).sum(dim=2)
    lengths = sums.square().sum(dim=2, keepdim=True)
    has_direction = lengths > (NO_DIRECTION * support.shape[2]) ** 2
    prototypes = torch.where(has_direction, sums / torch.where(has_direction, lengths, 1).sqrt(), 0)
    if metric == METRICS["cosine"]:
        neither = ~(queries != 0).any(dim=2)[:, :, None] & ~has_direction[:, None, :, 0]
        distances = torch.where(neither, 0, (1 - _unit(queries) @ prototypes.mT).clamp(0, 2))
    else:
        distances = (queries[:, :, None] - prototypes[:, None]).square().sum(dim=3)
    log_probabilities = (-scale * distances).log_softmax(dim=2)
    losses = -log_probabilities.gather(2, targets[:, :, None]).mean(dim=(1, 2))
    return losses, log_probabilities, distances, prototypes


def _torch_episodic_step_backward(
    of_losses: Tensor | None,
    of_log_probabilities: Tensor | None,
    of_distances: Tensor | None,
    of_prototypes: Tensor | None,
    support: Tensor,
    queries: Tensor,
    targets: Tensor,
    scale: Tensor,
    metric: int,
    log_probabilities: Tensor,
    distances: Tensor,
    prototypes: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of support, queries and, a part for each episode, scale; differentiable where gradients are enabled."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        scales = scale.expand(len(support))
        inputs = [
            t if create_graph and t.requires_grad else t.detach().requires_grad_() for t in (support, queries, scales)
        ]
        made = _episodic_formula(*inputs[:2], targets, inputs[2][:, None, None], metric)
    given = [(t, g) for t, g in zip(made, (of_losses, of_log_probabilities, of_distances, of_prototypes), strict=True)]
    return torch.autograd.grad(
        [t for t, g in given if g is not None],
        inputs,
        [g for _, g in given if g is not None],
        create_graph=create_graph,
        materialize_grads=True,
    )


# ---- gradients ----


def _keep_pair(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _sq_l2_backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
    queries, prototypes = ctx.saved_tensors
    of_queries = 2 * (grad.sum(dim=1)[:, None] * queries - grad @ prototypes)
    of_prototypes = 2 * (grad.sum(dim=0)[:, None] * prototypes - grad.T @ queries)
    return of_queries, of_prototypes


def _cosine_backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
    (q, q_inverse), (p, p_inverse) = (_unit_rows(rows) for rows in ctx.saved_tensors)
    along = grad * (q @ p.T)  # the part of the gradient that only stretches a row
    of_queries = (along.sum(dim=1)[:, None] * q - grad @ p) * q_inverse
    of_prototypes = (along.sum(dim=0)[:, None] * p - grad.T @ q) * p_inverse
    return of_queries, of_prototypes


def _keep_labels(ctx, inputs: tuple, output: Tensor) -> None:
    embeddings, labels, ctx.n_labels, weights = inputs
    ctx.save_for_backward(embeddings, labels, weights)


def _prototypes_backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, Tensor | None]:
    embeddings, labels, weights = ctx.saved_tensors
    unit, inverse = _unit_rows(embeddings)
    made, sum_inverse = _label_sums(unit, labels, ctx.n_labels, weights)
    of_sums = ((grad - (grad * made).sum(dim=1, keepdim=True) * made) * sum_inverse)[labels]
    of_unit = of_sums if weights is None else of_sums * weights[:, None]
    of_embeddings = (of_unit - (of_unit * unit).sum(dim=1, keepdim=True) * unit) * inverse
    return of_embeddings, None, None, None if weights is None else (of_sums * unit).sum(dim=1)


def _keep_episodes(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    support, queries, targets, scale, ctx.metric = inputs
    ctx.save_for_backward(support, queries, targets, scale, *output[1:])
    ctx.set_materialize_grads(False)


def _episodic_step_backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    support, queries, targets, scale, *made = ctx.saved_tensors
    if all(grad is None for grad in grads):
        return None, None, None, None, None
    # The compiled operator has no derivative of its own.
    backward = _torch_episodic_step_backward if torch.is_grad_enabled() else torch.ops.edgealign.episodic_step_backward
    of_support, of_queries, of_scale = backward(*grads, support, queries, targets, scale, ctx.metric, *made)
    return of_support, of_queries, None, of_scale.sum(), None


# ---- shapes, for torch.compile ----


def _check_episodes(support: Tensor, queries: Tensor, targets: Tensor, scale: Tensor, metric: int) -> None:
    """What the compiled operators check too, each in its own words."""
    expected = (
        (support.dim() == 4, "support must be [n_episodes, n_way, n_shot, dim]"),
        (support.dtype in (torch.float32, torch.float64), "support must be float32 or float64"),
        (0 not in support.shape[1:] and 0 not in queries.shape[1:], "an episode needs a label, a shot, a query"),
        (queries.dim() == 3 and queries.shape[::2] == support.shape[::3], "queries must be [n_episodes, n_query, dim]"),
        (queries.dtype == support.dtype, "queries must have the type of support"),
        (scale.dim() == 0 and scale.dtype == support.dtype, "scale must be a tensor of no dimensions like support"),
        (targets.dtype == torch.int64 and targets.shape == queries.shape[:2], "targets must be int64, one for a query"),
        (all(t.device == support.device for t in (queries, targets, scale)), "all must be on the device of support"),
        (metric in METRICS.values(), "metric must be 0 (cosine) or 1 (sq_l2)"),
    )
    for holds, message in expected:
        if not holds:
            raise RuntimeError(f"edgealign: {message}")


def _fake_episodic_step(
    support: Tensor, queries: Tensor, targets: Tensor, scale: Tensor, metric: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_episodes(support, queries, targets, scale, metric)
    n_episodes, n_way, _, dim = support.shape
    pairs = (n_episodes, queries.shape[1], n_way)
    shapes = ((n_episodes,), pairs, pairs, (n_episodes, n_way, dim))
    return tuple(support.new_empty(shape) for shape in shapes)


def _fake_episodic_step_backward(*arguments: Tensor | int | None) -> tuple[Tensor, Tensor, Tensor]:
    support, queries = arguments[4:6]
    return support.new_empty(support.shape), queries.new_empty(queries.shape), support.new_empty(support.shape[0])


def _fake_distances(queries: Tensor, prototypes: Tensor) -> Tensor:
    torch._check(queries.shape[1] == prototypes.shape[1])
    return queries.new_empty(queries.shape[0], prototypes.shape[0])


def _fake_nearest(queries: Tensor, prototypes: Tensor, k: int = 1, metric: int = 0) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], k)
    return queries.new_empty(shape), queries.new_empty(shape, dtype=torch.int64)


def _fake_prototypes(embeddings: Tensor, labels: Tensor, n_labels: int, weights: Tensor | None = None) -> Tensor:
    return embeddings.new_empty(n_labels, embeddings.shape[1])


def _loaded(library: Path) -> tuple[bool, str]:
    """Whether a library of operators could be loaded, and why not."""
    if not library.is_file():
        return False, "are missing"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return False, f"do not fit torch {torch.__version__} ({error})"
    return True, ""


def _load() -> dict[str, bool]:
    """Loads the compiled operators, or else declares them; either way completes them from this file."""
    native, reason = _loaded(LIBRARY)
    native_cuda = native and torch.version.cuda is not None and _loaded(CUDA_LIBRARY)[0]
    if not native:
        warnings.warn(
            f"the compiled torch operators of edgealign {reason}, so training computes with torch's own: slower, and "
            "equal to the device only within rounding. They are built where torch 2.10 or later is installed first: "
            "pip install --force-reinstall --no-deps edgealign (or the path of its sources)",
            RuntimeWarning,
            stacklevel=2,
        )
    formulas = {
        "sq_l2": _torch_sq_l2,
        "cosine": _torch_cosine,
        "nearest": _torch_nearest,
        "prototypes": _torch_prototypes,
        "episodic_step": _torch_episodic_step,
        "episodic_step_backward": _torch_episodic_step_backward,
    }
    for schema in SCHEMAS:
        name = schema.partition("(")[0]
        if not native:
            torch.library.define(f"edgealign::{name}", schema.removeprefix(name))
            torch.library.impl(f"edgealign::{name}", "cpu", formulas[name])
        if not (native_cuda and name.startswith("episodic_step")):
            torch.library.impl(f"edgealign::{name}", "cuda", formulas[name])
    for name, fake in (
        ("sq_l2", _fake_distances),
        ("cosine", _fake_distances),
        ("nearest", _fake_nearest),
        ("prototypes", _fake_prototypes),
        ("episodic_step", _fake_episodic_step),
        ("episodic_step_backward", _fake_episodic_step_backward),
    ):
        torch.library.register_fake(f"edgealign::{name}", fake)
    torch.library.register_autograd("edgealign::sq_l2", _sq_l2_backward, setup_context=_keep_pair)
    torch.library.register_autograd("edgealign::cosine", _cosine_backward, setup_context=_keep_pair)
    torch.library.register_autograd("edgealign::prototypes", _prototypes_backward, setup_context=_keep_labels)
    torch.library.register_autograd("edgealign::episodic_step", _episodic_step_backward, setup_context=_keep_episodes)
    return {"cpu": native, "cuda": native_cuda}


_native = _load()
