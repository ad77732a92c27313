"""The formulas of `edgealign.kernels` as torch operators: torch.ops.edgealign.sq_l2, cosine, nearest and prototypes.

On the CPU they run in the compiled core, so that training computes what the device will. Where the compiled operators
are missing, and for tensors on other devices, plain torch formulas take their place: same results within rounding, more
memory and time. `backend()` says which.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["backend", "cosine", "nearest", "prototypes", "sq_l2"]

LIBRARY = Path(__file__).parents[1] / "_torch_ops.so"
METRICS = {"cosine": 0, "sq_l2": 1}
NO_DIRECTION = 1e-6
SCHEMAS = (
    "sq_l2(Tensor queries, Tensor prototypes) -> Tensor",
    "cosine(Tensor queries, Tensor prototypes) -> Tensor",
    "nearest(Tensor queries, Tensor prototypes, int k=1, int metric=0) -> (Tensor, Tensor)",
    "prototypes(Tensor embeddings, Tensor labels, SymInt n_labels, Tensor? weights=None) -> Tensor",
)


def backend() -> str:
    """What computes on the CPU: "native" (the compiled core) or "torch" (formulas out of torch's own operators)."""
    return "native" if _native else "torch"


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


# ---- shapes, for torch.compile ----


def _fake_distances(queries: Tensor, prototypes: Tensor) -> Tensor:
    torch._check(queries.shape[1] == prototypes.shape[1])
    return queries.new_empty(queries.shape[0], prototypes.shape[0])


def _fake_nearest(queries: Tensor, prototypes: Tensor, k: int = 1, metric: int = 0) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], k)
    return queries.new_empty(shape), queries.new_empty(shape, dtype=torch.int64)


def _fake_prototypes(embeddings: Tensor, labels: Tensor, n_labels: int, weights: Tensor | None = None) -> Tensor:
    return embeddings.new_empty(n_labels, embeddings.shape[1])


def _load() -> bool:
    """Loads the compiled operators, or else declares them; either way completes them from this file."""
    native, reason = False, "are missing"
    if LIBRARY.is_file():
        try:
            torch.ops.load_library(LIBRARY)
            native = True
        except OSError as error:
            reason = f"do not fit torch {torch.__version__} ({error})"
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
    }
    for schema in SCHEMAS:
        name = schema.partition("(")[0]
        if not native:
            torch.library.define(f"edgealign::{name}", schema.removeprefix(name))
            torch.library.impl(f"edgealign::{name}", "cpu", formulas[name])
        torch.library.impl(f"edgealign::{name}", "cuda", formulas[name])
    for name, fake in (
        ("sq_l2", _fake_distances),
        ("cosine", _fake_distances),
        ("nearest", _fake_nearest),
        ("prototypes", _fake_prototypes),
    ):
        torch.library.register_fake(f"edgealign::{name}", fake)
    torch.library.register_autograd("edgealign::sq_l2", _sq_l2_backward, setup_context=_keep_pair)
    torch.library.register_autograd("edgealign::cosine", _cosine_backward, setup_context=_keep_pair)
    torch.library.register_autograd("edgealign::prototypes", _prototypes_backward, setup_context=_keep_labels)
    return native


_native = _load()
