"""The torch operators: gradients, registration, compilation. Their values are rows of tests/test_kernels.py.

Run: python -m pytest tests/test_torch_ops.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgealign import kernels
from edgealign.train import ops

CPP_EXT = Path(__file__).parents[1] / "cpp_ext"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
LABELS = torch.tensor([0, 2, 0, 2, 2, 1])
DISTANCES = [ops.sq_l2, ops.cosine]


def rows(n_rows: int, dim: int = 7, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n_rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def weights(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([0.5, 1, 2, 0.25, 1, 3], dtype=dtype)


def episodes(
    n_episodes: int = 2, n_way: int = 3, n_shot: int = 2, n_query: int = 5, dim: int = 7,
    dtype: torch.dtype = torch.float64, device: str = "cpu",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Support, queries, targets and scale; all but the targets require a gradient."""
    generator = torch.Generator().manual_seed(n_way * dim)
    support = torch.randn(n_episodes, n_way, n_shot, dim, generator=generator, dtype=torch.float64)
    queries = torch.randn(n_episodes, n_query, dim, generator=generator, dtype=torch.float64) / dim**0.5
    targets = torch.randint(n_way, (n_episodes, n_query), generator=generator)
    given = support, queries, targets, torch.tensor(3.0, dtype=torch.float64)
    return tuple(t.to(device, dtype).requires_grad_() if t.is_floating_point() else t.to(device) for t in given)


def cotangents_of(step: tuple[Tensor, ...]) -> list[Tensor]:
    return [torch.randn(t.shape, generator=torch.Generator().manual_seed(i)).to(t) for i, t in enumerate(step)]


def strided(given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    support, queries, targets, scale = (t.detach() for t in given)
    return support[..., ::2], queries[..., ::2], targets.T.contiguous().T, scale


def backward_arguments() -> tuple:
    given = tuple(t.detach() for t in episodes(dtype=torch.float32))
    losses, *made = torch.ops.edgealign.episodic_step(*given)
    return torch.ones_like(losses), None, torch.ones_like(made[1]), None, *given, 0, *made


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
        pytest.param("episodic_step", episodes(dtype=torch.float32), id="episodic_step"),
        pytest.param("episodic_step", (*episodes(dtype=torch.float32), 1), id="episodic_step, sq_l2"),
        pytest.param("episodic_step", strided(episodes(dtype=torch.float32)), id="episodic_step, strided"),
        pytest.param("episodic_step_backward", backward_arguments(), id="episodic_step_backward"),
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


def reference_step(
    support: Tensor, queries: Tensor, targets: Tensor, scale: Tensor, metric: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An episode at a time, out of torch's functions: nothing of it is shared with what is tested."""
    normalize = partial(torch.nn.functional.normalize, dim=-1)
    distances, prototypes = [], []
    for of_episode, mine in zip(support, queries, strict=True):
        prototypes.append(normalize(normalize(of_episode).mean(dim=1)))
        if metric == "cosine":
            distances.append(1 - normalize(mine) @ prototypes[-1].T)
        else:
            distances.append(torch.cdist(mine, prototypes[-1], compute_mode="donot_use_mm_for_euclid_dist").square())
    log_probabilities = (-scale * torch.stack(distances)).log_softmax(dim=2)
    losses = [
        torch.nn.functional.nll_loss(of_episode, mine)
        for of_episode, mine in zip(log_probabilities, targets, strict=True)
    ]
    return torch.stack(losses), log_probabilities, torch.stack(distances), torch.stack(prototypes)


# n_episodes, n_way, n_shot, n_query, dim: tails of every loop, one of each, more labels and shots than a tile holds
SHAPES = [
    (3, 5, 5, 75, 128),
    (2, 6, 1, 9, 7),
    (4, 1, 3, 1, 129),
    (1, 2, 1, 3, 1),
    (2, 23, 7, 18, 33),
    (1, 5, 5, 4, 127),
]
STEPS = {"native": torch.ops.edgealign.episodic_step, "torch": ops._torch_episodic_step}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("metric", ops.METRICS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 3e-6)])
@pytest.mark.parametrize("backend", STEPS)
def test_the_episodic_step_and_its_gradients_are_what_the_formulas_say(
    shape: tuple, metric: str, dtype: torch.dtype, tolerance: float, backend: str
) -> None:
    given = episodes(*shape, dtype=dtype)
    exact = [t.detach().double().requires_grad_() if t.is_floating_point() else t for t in given]
    have = STEPS[backend](*given, ops.METRICS[metric])
    want = reference_step(*exact, metric)
    cotangents = cotangents_of(want)
    differentiable = [i for i, t in enumerate(given) if t.is_floating_point()]
    for used in [(0,), (1,), (2,), (3,), (0, 1, 2, 3)]:
        gradients = []
        for made, inputs in ((have, given), (want, exact)):
            total = sum((made[i] * cotangents[i].to(made[i])).sum() for i in used)
            wrt = [inputs[i] for i in differentiable]
            gradients.append(torch.autograd.grad(total, wrt, retain_graph=True, materialize_grads=True))
        for mine, true in zip(*gradients, strict=True):
            torch.testing.assert_close(mine.double(), true, rtol=20 * tolerance, atol=20 * tolerance)
    for mine, true in zip(have, want, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=tolerance, atol=tolerance)


def test_the_episodic_step_agrees_with_its_parts() -> None:
    support, queries, targets, _ = episodes(2, 5, 3, 11, 96, dtype=torch.float32)
    step = ops.episodic_step(support, queries, targets, 7.0)
    labels = torch.arange(5).repeat_interleave(3)
    for e in range(2):
        made = ops.prototypes(support[e].flatten(0, 1), labels, 5)
        torch.testing.assert_close(step.prototypes[e], made, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(step.distances[e], ops.cosine(queries[e], made), rtol=1e-6, atol=1e-6)
        loss = torch.nn.functional.cross_entropy(-7 * ops.cosine(queries[e], made), targets[e])
        torch.testing.assert_close(step.losses[e], loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", ops.METRICS)
def test_first_and_second_derivatives_of_the_episodic_step(metric: str) -> None:
    def step(support: Tensor, queries: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        return tuple(ops.episodic_step(support, queries, targets, scale, metric))

    support, queries, targets, scale = episodes(2, 3, 2, 3, 4)
    assert torch.autograd.gradcheck(step, (support, queries, scale))
    support, queries, targets, scale = episodes(1, 2, 2, 2, 3)
    assert torch.autograd.gradgradcheck(step, (support, queries, scale))


def gradients(given: tuple[Tensor, ...], metric: int = 0) -> list[Tensor]:
    losses = torch.ops.edgealign.episodic_step(*given, metric)[0]
    return [losses, *torch.autograd.grad(losses.sum(), [t for t in given if t.requires_grad])]


@pytest.mark.parametrize("metric", ops.METRICS.values())
def test_the_episodic_step_repeats_to_the_bit_with_any_number_of_threads(metric: int) -> None:
    given = episodes(37, 5, 5, 15, 65, dtype=torch.float32)
    n_threads, made = torch.get_num_threads(), []
    try:
        for n in (1, 1, 2, 3):
            torch.set_num_threads(n)
            made.append(gradients(given, metric))
    finally:
        torch.set_num_threads(n_threads)
    for again in made[1:]:
        assert all(torch.equal(a, b) for a, b in zip(made[0], again, strict=True))


@pytest.mark.parametrize("instruction_set", ["avx512", "avx2", "baseline"])
def test_the_episodic_step_is_right_on_every_instruction_set(instruction_set: str) -> None:
    environ = os.environ | {"EDGEALIGN_INSTRUCTION_SET": instruction_set}
    ask = "from edgealign import kernels; print(kernels.instruction_set())"
    asked = subprocess.run([sys.executable, "-c", ask], env=environ, capture_output=True, text=True, check=False)
    if asked.stdout != f"{instruction_set}\n":
        pytest.skip(f"this processor or this build has no {instruction_set}")
    tests = "what_the_formulas_say and native or repeats or beyond_what"
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", tests]
    done = subprocess.run([sys.executable, *words], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_an_episode_does_not_depend_on_its_batch() -> None:
    given = episodes(4, 5, 2, 6, 40, dtype=torch.float32)
    support, queries, targets, scale = given
    together = ops.episodic_step(*given)
    alone = ops.episodic_step(support[2:3], queries[2:3], targets[2:3], scale)
    assert all(torch.equal(a[2:3], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("n_way", [3, 7])
@pytest.mark.parametrize("metric", ops.METRICS.values())
def test_a_batch_beyond_the_caches_has_the_gradients_of_its_episodes(metric: int, n_way: int) -> None:
    # 40 episodes have 4.2 MB of gradients or more, which are written past the caches; those of 20 are not.
    given = episodes(40, n_way, 2, 200, 128, dtype=torch.float32)
    support, queries, targets, scale = given
    together = gradients(given, metric)[:3]
    halves = [gradients((support[at], queries[at], targets[at], scale), metric) for at in (slice(20), slice(20, 40))]
    for whole, *parts in zip(together, *halves, strict=False):
        assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("n_episodes", [0, 1])
def test_a_batch_may_be_empty(n_episodes: int) -> None:
    given = episodes(n_episodes, dtype=torch.float32)
    assert [len(t) for t in ops.episodic_step(*given)] == [n_episodes] * 4
    assert [len(t) for t in gradients(given)[:3]] == [n_episodes] * 3


@pytest.mark.parametrize("metric", ops.METRICS)
@pytest.mark.parametrize("factor", [1e-30, 1e-5, 1e16, 1e30])
def test_rows_beyond_what_float32_can_square_are_computed_all_the_same(metric: str, factor: float) -> None:
    """A support row of any length has the same direction, and its gradient is that much smaller or larger."""
    given = episodes(2, 3, 1, 5, 8, dtype=torch.float32)
    scaled = given[0].detach() * factor
    queries = given[1].detach() * (factor if metric == "cosine" else 1)
    inputs = scaled.requires_grad_(), queries.requires_grad_(), *given[2:]
    want, have = gradients(given, ops.METRICS[metric]), gradients(inputs, ops.METRICS[metric])
    have[1] = have[1] * factor
    have[2] = have[2] * (factor if metric == "cosine" else 1)
    for mine, true in zip(have, want, strict=True):
        torch.testing.assert_close(mine, true, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("backend", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", ops.METRICS)
def test_zero_rows_and_prototypes_without_direction_have_gradient_zero(
    metric: str, dtype: torch.dtype, backend: str
) -> None:
    support, queries, targets, scale = (t.detach() for t in episodes(2, 3, 2, 5, 8, dtype=dtype))
    support[0, 0, 0] = 0  # adds its weight only
    support[0, 1, 1] = -support[0, 1, 0]  # no direction
    support[1, 2] = 0
    queries[0, 3] = 0
    inputs = support.requires_grad_(), queries.requires_grad_(), targets, scale.requires_grad_()
    step = STEPS[backend](*inputs, ops.METRICS[metric])
    assert step[3][0, 1].eq(0).all() and step[3][1, 2].eq(0).all()
    if metric == "cosine":
        assert step[2][0, 3, 1] == 0 and step[2][0, 3, 0] == 1 and step[2][0, 2, 1] == 1
    of_support, of_queries, _ = torch.autograd.grad(step[0].sum(), (inputs[0], inputs[1], inputs[3]))
    for zero in (of_support[0, 0, 0], of_support[0, 1], of_support[1, 2]):
        assert zero.eq(0).all()
    assert of_support[0, 0, 1].any() and of_support.isfinite().all() and of_queries.isfinite().all()
    if metric == "cosine":
        assert of_queries[0, 3].eq(0).all()


@pytest.mark.parametrize("metric", ops.METRICS)
def test_an_episodic_loss_compiles_without_graph_breaks(metric: str) -> None:
    def loss(support: Tensor, queries: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
        step = ops.episodic_step(2 * support, queries, targets, scale.exp(), metric)
        return step.losses.mean() + 0.1 * step.prototypes.square().sum() + ops.episodic_step(
            support, queries, targets, 2.0, metric
        ).log_probabilities.mean()  # fmt: skip

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=False)
    made = []
    for function in (loss, compiled):
        given = episodes(dtype=torch.float32)
        function(*given).backward()
        made.append([t.grad for t in given if t.requires_grad])
    for have, want in zip(*made, strict=True):
        torch.testing.assert_close(have, want)


def _spoiled(index: int, value: float) -> Callable:
    def spoil(given: list[Tensor]) -> None:
        given[index].view(-1)[-1] = value

    return spoil


BAD_EPISODES = {
    "a NaN in the support": (_spoiled(0, torch.nan), "NaN or infinity"),
    "an infinity in the support": (_spoiled(0, torch.inf), "NaN or infinity"),
    "a NaN in the queries": (_spoiled(1, torch.nan), "NaN or infinity"),
    "an infinity in the queries": (_spoiled(1, -torch.inf), "NaN or infinity"),
    "a target beyond the labels": (_spoiled(2, 3), r"target is not in \[0, n_way\)"),
    "a negative target": (_spoiled(2, -1), r"target is not in \[0, n_way\)"),
    "a negative scale": (_spoiled(3, -1), "scale is negative"),
    "a scale that is not a number": (_spoiled(3, torch.nan), "scale is negative or not finite|NaN"),
}
MISFITS = {
    "flat support": (lambda s, q, t, c: (s[0], q, t, c, 0), r"support must be \[n_episodes, n_way, n_shot, dim\]"),
    "no shots": (lambda s, q, t, c: (s[:, :, :0], q, t, c, 0), "needs a label, a shot, a query"),
    "no queries": (lambda s, q, t, c: (s, q[:, :0], t[:, :0], c, 0), "needs a label, a shot, a query"),
    "other width": (lambda s, q, t, c: (s, q[..., 1:], t, c, 0), "queries must be"),
    "other batch": (lambda s, q, t, c: (s, q[1:], t[1:], c, 0), "queries must be"),
    "half precision": (lambda s, q, t, c: (s.half(), q.half(), t, c.half(), 0), "support must be float32 or float64"),
    "mixed types": (lambda s, q, t, c: (s, q.float(), t, c, 0), "queries must have the type of support"),
    "float targets": (lambda s, q, t, c: (s, q, t.double(), c, 0), "targets must be int64"),
    "int32 targets": (lambda s, q, t, c: (s, q, t.int(), c, 0), "targets must be int64"),
    "too few targets": (lambda s, q, t, c: (s, q, t[:, 1:], c, 0), "targets must be int64"),
    "several scales": (lambda s, q, t, c: (s, q, t, c.expand(2), 0), "scale must be"),
    "unknown metric": (lambda s, q, t, c: (s, q, t, c, 2), "metric must be 0"),
}


@pytest.mark.parametrize("backend", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", ops.METRICS.values())
@pytest.mark.parametrize("name", BAD_EPISODES)
def test_values_that_make_no_sense_are_refused(name: str, metric: int, dtype: torch.dtype, backend: str) -> None:
    spoil, message = BAD_EPISODES[name]
    given = [t.detach() for t in episodes(dtype=dtype)]
    spoil(given)
    with pytest.raises(RuntimeError, match=message):
        STEPS[backend](*given, metric)


@pytest.mark.parametrize("backend", STEPS)
@pytest.mark.parametrize("name", MISFITS)
def test_episodes_that_do_not_fit_together_are_refused(name: str, backend: str) -> None:
    misfit, message = MISFITS[name]
    with pytest.raises(RuntimeError, match=message):
        STEPS[backend](*misfit(*(t.detach() for t in episodes())))


def test_a_wrong_metric_is_named() -> None:
    with pytest.raises(ValueError, match="unknown metric 'dot', expected one of cosine, sq_l2"):
        ops.episodic_step(*episodes(), "dot")


def test_the_backward_operator_checks_what_it_is_given() -> None:
    arguments = list(backward_arguments())
    arguments[6] = arguments[6] + 3
    with pytest.raises(RuntimeError, match="target is not in"):
        torch.ops.edgealign.episodic_step_backward(*arguments)
    arguments = list(backward_arguments())
    arguments[0] = arguments[0][:1]
    with pytest.raises(RuntimeError, match=r"of_losses must be \[2\], not \[1\]"):
        torch.ops.edgealign.episodic_step_backward(*arguments)


@pytest.fixture(scope="module")
def cuda_on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CUDA kernels, compiled for the processor."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    source, made = Path(__file__).with_name("cuda_on_cpu.cpp"), tmp_path_factory.mktemp("cuda") / "cuda_on_cpu"
    options = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{CPP_EXT / 'include'}"]
    subprocess.run(["g++", *options, source, "-o", made], check=True)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", ops.METRICS.values())
@pytest.mark.parametrize("trouble", [0, 1, 2])
def test_the_cuda_kernels_compute_the_episodic_step(
    cuda_on_cpu: Path, metric: int, dtype: torch.dtype, trouble: int
) -> None:
    """What a GPU would run, on threads of the processor: no GPU is needed, and no speed is shown."""
    shape = (2, 3, 2, 5, 37)
    given = episodes(*shape, dtype=dtype)
    with torch.no_grad():
        given[0][0, 0, 0] = 0
        given[0][0, 1, 1] = -given[0][0, 1, 0]  # no direction
        given[1][0, 3] = 0
    want = torch.ops.edgealign.episodic_step(*given, metric)
    cotangents = cotangents_of(want)
    of_inputs = torch.autograd.grad(want, (given[0], given[1]), cotangents, retain_graph=True)
    arrays = [t.detach().clone() for t in (*given, *cotangents)]
    if trouble == 1:
        arrays[1].view(-1)[-1] = torch.nan
    elif trouble == 2:
        arrays[2].view(-1)[-1] = shape[1]
    done = subprocess.run(
        [cuda_on_cpu, {torch.float32: "f32", torch.float64: "f64"}[dtype], *map(str, (*shape, metric))],
        input=b"".join(t.numpy().tobytes() for t in arrays),
        capture_output=True,
        check=True,
    ).stdout
    assert int.from_bytes(done[:4], sys.byteorder) == trouble
    if trouble:
        return
    made = torch.frombuffer(bytearray(done[4:]), dtype=dtype)
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-12}[dtype]
    for part in (*want, *of_inputs):
        have, made = made[: part.numel()].view(part.shape), made[part.numel() :]
        torch.testing.assert_close(have, part.detach(), rtol=tolerance, atol=tolerance)
    of_scale = torch.autograd.grad(want, given[3], cotangents)[0]
    torch.testing.assert_close(made.sum(), of_scale, rtol=10 * tolerance, atol=10 * tolerance)


@needs_gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("metric", ops.METRICS.values())
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_cuda_and_cpu_agree(shape: tuple, metric: int, dtype: torch.dtype, tolerance: float) -> None:
    made = []
    for device in ("cpu", "cuda"):
        given = episodes(*shape, dtype=dtype, device=device)
        step = torch.ops.edgealign.episodic_step(*given, metric)
        wrt = [t for t in given if t.requires_grad]
        cotangents = [t.to(device) for t in cotangents_of([t.cpu() for t in step])]
        made.append([t.cpu() for t in (*step, *torch.autograd.grad(step, wrt, cotangents))])
    for cpu, cuda in zip(*made, strict=True):
        torch.testing.assert_close(cuda, cpu, rtol=tolerance, atol=tolerance)


@needs_gpu
@pytest.mark.parametrize("metric", ops.METRICS.values())
def test_cuda_repeats_to_the_bit_and_is_registered(metric: int) -> None:
    assert ops.backend("cuda") == "native"
    given = episodes(37, 5, 5, 15, 65, dtype=torch.float32, device="cuda")
    first, again = gradients(given, metric), gradients(given, metric)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    torch.library.opcheck(torch.ops.edgealign.episodic_step.default, (*episodes(device="cuda"), metric))


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BAD_EPISODES)
def test_cuda_refuses_values_that_make_no_sense(name: str, dtype: torch.dtype) -> None:
    spoil, message = BAD_EPISODES[name]
    given = [t.detach() for t in episodes(dtype=dtype)]
    spoil(given)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.edgealign.episodic_step(*(t.cuda() for t in given))
    with pytest.raises(RuntimeError, match="queries must be on the device of support"):
        torch.ops.edgealign.episodic_step(given[0].cuda(), *given[1:])


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
