"""The torch operators: gradients, registration, compilation. Their values are rows of tests/test_kernels.py.

Run: python -m pytest tests/test_torch_ops.py
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgealign import kernels
from edgealign.train import ops

LABELS = torch.tensor([0, 2, 0, 2, 2, 1])
DISTANCES = [ops.sq_l2, ops.cosine]


def rows(n_rows: int, dim: int = 7, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n_rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def weights(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([0.5, 1, 2, 0.25, 1, 3], dtype=dtype)


def sample_inputs() -> list:
    q, p = rows(5, seed=1, dtype=torch.float32), rows(4, seed=2, dtype=torch.float32)
    e = rows(6, seed=3, dtype=torch.float32)
    grad = [t.clone().requires_grad_() for t in (q, p, e, weights(torch.float32))]
    return [
        pytest.param("sq_l2", (grad[0], grad[1]), id="sq_l2"),
        pytest.param("cosine", (grad[0], grad[1]), id="cosine"),
        pytest.param("cosine", (q[:, ::2], p[:, ::2]), id="cosine, strided"),
        pytest.param("nearest", (q, p, 3, 0), id="nearest"),
        pytest.param("nearest", (q, p, 2, 1), id="nearest, sq_l2"),
        pytest.param("prototypes", (grad[2], LABELS, 4), id="prototypes"),
        pytest.param("prototypes", (grad[2], LABELS, 4, grad[3]), id="prototypes, weights"),
    ]


def test_every_operator_has_sample_inputs() -> None:
    assert {param.values[0] for param in sample_inputs()} == {schema.partition("(")[0] for schema in ops.SCHEMAS}


@pytest.mark.parametrize(("name", "arguments"), sample_inputs())
def test_registration(name: str, arguments: tuple) -> None:
    torch.library.opcheck(getattr(torch.ops.edgealign, name).default, arguments)


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_of_distances(distance: Callable) -> None:
    inputs = rows(5, seed=1).requires_grad_(), rows(4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(distance, inputs)
    assert torch.autograd.gradgradcheck(distance, inputs)


def test_gradients_of_prototypes() -> None:
    def made(embeddings: Tensor, given: Tensor | None = None) -> Tensor:
        return ops.prototypes(embeddings, LABELS, 4, given)

    embeddings = rows(6, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(made, (embeddings,))
    assert torch.autograd.gradcheck(made, (embeddings, weights().requires_grad_()))
    assert torch.autograd.gradgradcheck(made, (embeddings, weights().requires_grad_()))


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_match_plain_formulas_in_float32(distance: Callable) -> None:
    plain = {ops.sq_l2: lambda q, p: (q[:, None] - p).square().sum(2), ops.cosine: _plain_cosine}[distance]
    q, p = rows(9, 129, 1, torch.float32), rows(6, 129, 2, torch.float32)
    cotangent = rows(9, 6, 4, torch.float32)
    gradients = []
    for formula in (distance, plain):
        inputs = q.clone().requires_grad_(), p.clone().requires_grad_()
        formula(*inputs).backward(cotangent)
        gradients.append([t.grad for t in inputs])
    for have, want in zip(*gradients, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)


def _plain_cosine(q: Tensor, p: Tensor) -> Tensor:
    return 1 - torch.nn.functional.normalize(q) @ torch.nn.functional.normalize(p).T


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_at_zero_rows_are_zero(dtype: torch.dtype) -> None:
    q = rows(3, seed=1, dtype=dtype)
    q[1] = 0
    q.requires_grad_()
    ops.cosine(q, rows(2, seed=2, dtype=dtype)).sum().backward()
    assert q.grad[1].eq(0).all() and q.grad[0].any() and q.grad.isfinite().all()
    opposite = torch.stack([rows(1, dtype=dtype)[0], -rows(1, dtype=dtype)[0]]).requires_grad_()
    made = ops.prototypes(opposite, torch.zeros(2, dtype=torch.int64), 2)
    assert made.eq(0).all()
    made.sum().backward()
    assert opposite.grad.eq(0).all()


def test_a_prototype_loss_compiles_without_graph_breaks() -> None:
    def loss(embeddings: Tensor, queries: Tensor) -> Tensor:
        made = ops.prototypes(embeddings, LABELS, 3)
        return torch.nn.functional.cross_entropy(-10 * ops.cosine(queries, made), torch.tensor([0, 1, 2, 1]))

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    gradients = []
    for function in (loss, compiled):
        embeddings = rows(6, seed=3, dtype=torch.float32).requires_grad_()
        function(embeddings, rows(4, seed=4, dtype=torch.float32)).backward()
        gradients.append(embeddings.grad)
    torch.testing.assert_close(*gradients)


def test_training_and_device_compute_the_same_bits() -> None:
    q, p = rows(17, 192, 1, torch.float32), rows(11, 192, 2, torch.float32)
    labels = torch.arange(17) % 5
    for have, want in (
        (ops.sq_l2(q, p), kernels.sq_l2(q.numpy(), p.numpy())),
        (ops.cosine(q, p), kernels.cosine(q.numpy(), p.numpy())),
        (ops.nearest(q, p, 3)[0], kernels.nearest(q.numpy(), p.numpy(), 3)[0]),
        (ops.nearest(q, p, 3)[1], kernels.nearest(q.numpy(), p.numpy(), 3)[1]),
        (ops.prototypes(q, labels, 5), kernels.prototypes(q.numpy(), labels.numpy(), 5)),
    ):
        assert (have.numpy() == want).all()


FORMULAS = {"sq_l2": ops._torch_sq_l2, "cosine": ops._torch_cosine, "nearest": ops._torch_nearest}


@pytest.mark.parametrize("scale", [1.0, 1e-40, 5e37, 0.0])
@pytest.mark.parametrize("name", FORMULAS)
def test_torch_formulas_agree_with_the_core(name: str, scale: float) -> None:
    if name == "nearest" and scale != 1:
        scale = 1e-3  # beyond float32 there is no order left
    q, p = scale * rows(5, 33, 1, torch.float32), scale * rows(6, 33, 2, torch.float32)
    have, want = FORMULAS[name](q, p), getattr(ops, name)(q, p)
    torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-6)


def test_torch_formula_of_prototypes_agrees_with_the_core() -> None:
    e = rows(6, 33, 1, torch.float32)
    e[4] = 0
    for given in (None, weights(torch.float32)):
        have, want = ops._torch_prototypes(e, LABELS, 4, given), ops.prototypes(e, LABELS, 4, given)
        torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f["sq_l2"](rows(2) * torch.nan, rows(2)), "NaN or infinity"),
        (lambda f: f["cosine"](rows(2), rows(2) / 0), "NaN or infinity"),
        (lambda f: f["cosine"](rows(2, dtype=torch.float32), (rows(2) / 0).float()), "NaN or infinity"),
        (lambda f: f["nearest"](rows(2), rows(2), 3), "k must be 1 to the number of prototypes"),
        (lambda f: f["prototypes"](rows(6), LABELS, 2, None), r"label is not in \[0, n_labels\)"),
        (lambda f: f["prototypes"](rows(6), -LABELS, 3, None), r"label is not in \[0, n_labels\)"),
        (lambda f: f["prototypes"](rows(6), LABELS, 3, -weights()), "not negative|no sense"),
        (lambda f: f["prototypes"](rows(6), LABELS, 3, weights() * torch.nan), "NaN or infinity|finite"),
    ],
)
def test_wrong_inputs_are_refused(call: Callable, message: str, native: bool) -> None:
    formulas = FORMULAS | {"prototypes": ops._torch_prototypes}
    if native:
        formulas = {name: getattr(ops, name) for name in formulas}
    with pytest.raises(RuntimeError, match=message):
        call(formulas)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((rows(2), rows(2, 8)), "agree in width and type"),
        ((rows(2), rows(2, dtype=torch.float32)), "agree in width and type"),
        ((rows(2)[0], rows(2)), "queries must have 2 dimensions"),
        ((rows(2).half(), rows(2).half()), "queries must be float32 or float64"),
    ],
)
def test_the_core_refuses_tensors_that_do_not_fit(arguments: tuple, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.edgealign.cosine(*arguments)


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("pathlib.Path.is_file = lambda self: False", "operators of edgealign are missing"),
        ("torch.ops.load_library = refuse", "no such symbol"),
    ],
)
def test_without_the_compiled_operators_training_says_so_and_goes_on(trouble: str, said: str) -> None:
    """In a process of its own, where the library is not found or does not load."""
    program = (
        f"""
import pathlib, torch
def refuse(path):
    raise OSError("no such symbol")
{trouble}
SAID = {said!r}
"""
        + """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from edgealign.train import ops
assert ops.backend() == "torch"
said = [str(w.message) for w in caught if w.category is RuntimeWarning]
assert len(said) == 1 and SAID in said[0] and "pip install --force-reinstall" in said[0], said
x = torch.eye(3, dtype=torch.float64, requires_grad=True)
made = ops.prototypes(x, torch.tensor([0, 1, 1]), 2)
torch.testing.assert_close(ops.cosine(x, made).diagonal(), torch.tensor([0.0, 1 - 0.5**0.5], dtype=torch.float64))
assert torch.autograd.gradcheck(lambda y: ops.cosine(y, ops.prototypes(y, torch.tensor([0, 1, 1]), 2)), (x,))
print("fallback works")
"""
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "fallback works\n", done.stderr
