"""The batched episodic step of training: forward and backward, beside torch in eager mode and torch.compile.

    python -m benchmarks.episodic_step
    python -m benchmarks.episodic_step --no-compile

256 episodes of 5 labels with 5 shots and 75 queries, embeddings of 128 elements, float32. All rivals compute the same
function (rows to unit length, prototypes, distances, log-softmax, mean loss, gradients of support and queries) and take
turns in one process, so that a busy machine hits all of them. A turn is some calls in a row: the first finds nothing of
its own in the caches ("cold", as in training, where encoders run in between), the others what the one before left
there, as in a loop of its own. The memory floor is a copy of as many bytes as inputs and gradients have: nothing that
reads the one and writes the other is faster. "error" is the largest difference of a gradient from float64, relative to
the largest element of the gradient.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import rows
from edgealign import kernels, machine
from edgealign.train import ops

N_EPISODES, N_WAY, N_SHOT, N_QUERY, DIM = 256, 5, 5, 75, 128
SCALE = 10.0
IN_A_ROW = 6  # calls of a turn


def plain_sq_l2(queries: Tensor, prototypes: Tensor) -> Tensor:
    return (queries[:, :, None] - prototypes[:, None]).square().sum(dim=3)


def expanded_sq_l2(queries: Tensor, prototypes: Tensor) -> Tensor:
    """By matrix products: faster in eager mode, and less exact for near rows."""
    norms = queries.square().sum(dim=2, keepdim=True) + prototypes.square().sum(dim=2)[:, None]
    return torch.baddbmm(norms, queries, prototypes.mT, alpha=-2)


def plain_cosine(queries: Tensor, prototypes: Tensor) -> Tensor:
    return 1 - F.normalize(queries, dim=2) @ prototypes.mT


def in_torch(distances: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def loss(support: Tensor, queries: Tensor, targets: Tensor) -> Tensor:
        prototypes = F.normalize(F.normalize(support, dim=3).mean(dim=2), dim=2)
        logits = -SCALE * distances(queries, prototypes)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    return loss


def ours(metric: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def loss(support: Tensor, queries: Tensor, targets: Tensor) -> Tensor:
        return ops.episodic_step(support, queries, targets, SCALE, metric).losses.mean()

    return loss


def embeddings(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))), dim=-1)


def measure(metric: str, n_rounds: int, with_compile: bool) -> list[dict]:
    plain = {"sq_l2": plain_sq_l2, "cosine": plain_cosine}[metric]
    rivals = {"edgealign": ours(metric), "torch eager": in_torch(plain)}
    if metric == "sq_l2":
        rivals["torch eager, baddbmm"] = in_torch(expanded_sq_l2)
    if with_compile:
        rivals["torch.compile"] = torch.compile(in_torch(plain), fullgraph=True)
        if metric == "sq_l2":
            rivals["torch.compile, baddbmm"] = torch.compile(in_torch(expanded_sq_l2), fullgraph=True)
    support = embeddings(N_EPISODES, N_WAY, N_SHOT, DIM)
    queries = embeddings(N_EPISODES, N_QUERY, DIM)
    targets = torch.arange(N_QUERY).remainder(N_WAY).expand(N_EPISODES, -1).contiguous()
    given = support.requires_grad_(), queries.requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in given]
    want = torch.autograd.grad(in_torch(plain)(*exact, targets), exact)
    errors = {}
    for name, loss in rivals.items():  # also warms up and compiles
        have = torch.autograd.grad(loss(*given, targets), given)
        errors[name] = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(have, want, strict=True))
    source = torch.cat([t.detach().flatten() for t in given])
    target = torch.empty_like(source)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in (*rivals, "memory floor")}
    for _ in range(n_rounds):
        for name, loss in rivals.items():
            for _ in range(IN_A_ROW):
                start = time.perf_counter()
                value = loss(*given, targets)
                middle = time.perf_counter()
                made = torch.autograd.grad(value, given)
                seconds[name].append((middle - start, time.perf_counter() - middle))
                del made
        for _ in range(IN_A_ROW):
            start = time.perf_counter()
            target.copy_(source)
            seconds["memory floor"].append((0.0, time.perf_counter() - start))
    return [row(metric, name, times, errors.get(name)) for name, times in seconds.items()]


def row(metric: str, name: str, seconds: list[tuple[float, float]], error: float | None) -> dict:
    totals = [1e3 * (forward + backward) for forward, backward in seconds]
    cold, in_a_row = totals[::IN_A_ROW], [total for i, total in enumerate(totals) if i % IN_A_ROW]
    made = {
        "what": f"episodic step, {metric}",
        "stage": name,
        "median_ms": round(statistics.median(in_a_row), 3),
        "min_ms": round(min(in_a_row), 3),
        "cold_median_ms": round(statistics.median(cold), 3),
        "n_runs": len(in_a_row),
    }
    if error is not None:
        made["forward_min_ms"] = round(1e3 * min(forward for forward, _ in seconds), 3)
        made["backward_min_ms"] = round(1e3 * min(backward for _, backward in seconds), 3)
        made["error"] = float(f"{error:.1e}")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which needs a C++ compiler")
    options = parser.parse_args()
    if ops.backend() != "native":
        parser.error("the compiled torch operators are missing: there is nothing to measure")
    torch.set_num_threads(options.threads)
    common = {
        "shape": f"{N_EPISODES} x {N_WAY} way x {N_SHOT} shot x {N_QUERY} queries x {DIM}",
        "threads": options.threads,
        "backend": ops.backend(),
        "instruction_set": kernels.instruction_set(),
        "torch": torch.__version__,
        "machine": machine.describe(),
        "commit": rows.commit(),
        "command": rows.command("episodic_step"),
    }
    made = []
    for metric in ops.METRICS:
        made += [row | common for row in measure(metric, options.rounds, not options.no_compile)]
    best = {}
    for row_ in made:
        of_best = best.setdefault(row_["what"], row_)  # edgealign comes first
        row_["ratio"], row_["ratio_to"] = round(row_["min_ms"] / of_best["min_ms"], 2), of_best["stage"]
    rows.replace(rows.FOLDER / "episodic_step.jsonl", made, ("what", "stage", "threads"))
    rows.show(made)


if __name__ == "__main__":
    main()
