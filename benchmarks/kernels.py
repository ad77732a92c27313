"""Squared Euclidean distances to prototypes: the core, its rivals in the same run, and what the machine can do.

    python -m pip install faiss-cpu numkong simsimd usearch
    python -m benchmarks.kernels

A rival that is not installed is left out, and said so. Times are the least of many calls, so that other work on the
machine disturbs less. Two errors against float64 stand beside each: the largest one in shares of |q|^2 + |p|^2, and of
pairs of near rows in shares of their distance. Rows as they lie are compared with the rivals that keep the digits of
near pairs, as the core does: what is faster computes |q|^2 + |p|^2 - 2 q.p, which loses them. Packed prototypes are
compared with all of float32.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

import edgealign
from benchmarks import rows
from edgealign import kernels, machine

SHAPES = ((1, 50, 128), (1, 1000, 256), (256, 50, 128), (4096, 1000, 256), (1, 100_000, 256))
PACKAGE = Path(edgealign.__file__).parent
N_NEAR = 64  # rows: beyond 25 of them, as in all of SHAPES, torch.cdist goes by products, and loses the digits
EXACT = 1e-4  # of a near pair: what a sum of float32 differences stays below, by far
RIVALS = ("scipy", "torch", "faiss", "numkong", "simsimd", "usearch")
Call = Callable[[], np.ndarray]


def least_us(call: Call, seconds: float) -> float:
    """The least time of a call in microseconds; short calls are timed many together."""
    call()
    started = time.perf_counter()
    call()
    repeat = max(1, int(2e-4 / max(time.perf_counter() - started, 1e-7)))
    least, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or least == float("inf"):
        started = time.perf_counter()
        for _ in range(repeat):
            call()
        least = min(least, (time.perf_counter() - started) / repeat)
    return 1e6 * least


@functools.cache
def compiled(torch: ModuleType) -> tuple[Callable, Callable]:
    """By norms and products, and by differences."""

    def by_products(q: object, p_turned: object, p_norms: object) -> object:
        return torch.addmm(p_norms, q, p_turned, alpha=-2) + q.square().sum(dim=1, keepdim=True)

    def by_differences(q: object, p: object) -> object:
        return (q[:, None] - p).square().sum(dim=2)

    return torch.compile(by_products, dynamic=True), torch.compile(by_differences, dynamic=True)


def methods(
    queries: np.ndarray, prototypes: np.ndarray, threads: int, found: dict, with_compile: bool
) -> Iterator[tuple[str, Call, bool]]:
    """(name, call, whether it computes float32 squared distances, as the core does)."""
    out = np.empty((len(queries), len(prototypes)), np.float32)
    packed, packed_int8 = kernels.pack(prototypes), kernels.pack(prototypes, "int8")
    yield "edgealign packed", lambda: kernels.sq_l2(queries, packed, out, threads), True
    yield "edgealign packed int8", lambda: kernels.sq_l2(queries, packed_int8, out, threads), False
    if threads == 1:
        yield "edgealign unpacked", lambda: kernels.sq_l2(queries, prototypes, out), True
    norms, turned = (prototypes**2).sum(axis=1), prototypes.T

    def by_numpy() -> np.ndarray:
        np.matmul(queries, turned, out=out)
        np.multiply(out, -2, out=out)
        np.add(out, norms, out=out)
        return np.add(out, (queries**2).sum(axis=1)[:, None], out=out)

    yield "numpy, cached norms", by_numpy, True
    if threads == 1 and "scipy" in found:
        from scipy.spatial.distance import cdist

        yield "scipy cdist (float64)", lambda: cdist(queries, prototypes, "sqeuclidean"), True
    if "torch" in found:
        torch = found["torch"]
        torch.set_num_threads(threads)
        q, p = torch.from_numpy(queries), torch.from_numpy(prototypes)
        p_norms, p_turned = torch.from_numpy(norms), p.T
        yield "torch cdist, squared", lambda: torch.cdist(q, p).square_().numpy(), True

        def by_addmm(precision: str) -> Call:
            def call() -> np.ndarray:
                torch.set_float32_matmul_precision(precision)
                made = torch.addmm(p_norms, q, p_turned, alpha=-2)
                return made.add_(q.square().sum(dim=1, keepdim=True)).numpy()

            return call

        yield "torch addmm, cached norms", by_addmm("highest"), True
        yield "torch addmm, medium precision", by_addmm("medium"), True
        if with_compile:
            torch.set_float32_matmul_precision("highest")
            by_products, by_differences = compiled(torch)
            yield "torch.compile, products", lambda: by_products(q, p_turned, p_norms).numpy(), True
            if queries.size * len(prototypes) < 1e8:  # seconds a call beyond it
                yield "torch.compile, differences", lambda: by_differences(q, p).numpy(), True
    if "faiss" in found:
        found["faiss"].omp_set_num_threads(threads)
        yield "faiss pairwise_distances", lambda: found["faiss"].pairwise_distances(queries, prototypes), True
    if threads == 1 and "simsimd" in found:
        yield "simsimd cdist", lambda: np.asarray(found["simsimd"].cdist(queries, prototypes, "sqeuclidean")), True
    if threads == 1 and "numkong" in found:
        own = found["numkong"].dots_pack(prototypes)

        def by_numkong() -> np.ndarray:
            made = np.asarray(found["numkong"].euclideans_packed(queries, own))
            return np.square(made, out=made)

        yield "numkong euclideans_packed, squared", by_numkong, True
        yield "numkong cdist", lambda: np.asarray(found["numkong"].cdist(queries, prototypes, "sqeuclidean")), True
    if threads == 1 and "usearch" in found and len(queries) == 1:
        from usearch.index import MetricKind, search

        top = min(10, len(prototypes))
        yield (
            "usearch exact, 10 closest only",
            lambda: search(prototypes, queries, top, MetricKind.L2sq, exact=True).distances,
            False,
        )


def limits() -> dict[str, float]:
    """What benchmarks/limits.c measures, compiled for this processor."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "limits"
        lib = PACKAGE / "lib"
        flags = (f"-I{PACKAGE / 'include'}", f"-L{lib}", f"-Wl,-rpath,{lib}", "-ledgealign")
        source = Path(__file__).with_name("limits.c")
        subprocess.run(["gcc", "-O3", "-march=native", "-std=gnu11", source, "-o", program, *flags], check=True)
        return json.loads(subprocess.run([program], capture_output=True, text=True, check=True).stdout)


def near_errors(dim: int, threads: int, found: dict, with_compile: bool) -> dict[str, float]:
    """Largest error of each method for pairs of rows that are a hundredth of their length apart, in shares of it."""
    generator = np.random.default_rng(1)
    queries = generator.normal(size=(N_NEAR, dim)).astype(np.float32)
    prototypes = (queries + generator.normal(size=queries.shape) / 100).astype(np.float32)
    exact = ((queries.astype(np.float64) - prototypes) ** 2).sum(axis=1)
    errors = {}
    for name, call, _ in methods(queries, prototypes, threads, found, with_compile):
        made = np.array(call(), np.float64)
        if made.shape == (N_NEAR, N_NEAR):
            errors[name] = float((np.abs(made.diagonal() - exact) / exact).max())
    return errors


def share_of_limit(row: dict, shape: tuple[int, int, int], limit: dict[str, float]) -> float | None:
    """Of what the machine can multiply or, where each value is used once, of what it can read."""
    n_queries, n_prototypes, dim = shape
    int8 = row["method"].endswith("int8")
    if n_queries > 1:
        return row["gflops"] / limit["int8_gops" if int8 else "fma_gflops"]
    kilobytes = n_prototypes * dim * (1 if int8 else 4) / 1000
    name = {102400: "read_gb_s", 25600: "read_int8_gb_s", 1024: "read_1024kb_gb_s", 256: "read_256kb_gb_s"}
    if kilobytes not in name:
        return None
    return kilobytes / row["value"] / limit[name[kilobytes]]


def measure(seconds: float, with_compile: bool) -> Iterator[dict]:
    found = {}
    for name in RIVALS:
        try:
            found[name] = importlib.import_module(name)
        except ImportError:
            print(f"{name} is not installed: left out")
    with_compile = with_compile and "torch" in found
    generator = np.random.default_rng(0)
    limit = limits()
    for n_queries, n_prototypes, dim in SHAPES:
        queries = generator.normal(size=(n_queries, dim)).astype(np.float32)
        prototypes = generator.normal(size=(n_prototypes, dim)).astype(np.float32)
        few = queries[:64].astype(np.float64)
        squares = (few**2).sum(axis=1)[:, None] + (prototypes.astype(np.float64) ** 2).sum(axis=1)
        exact = squares - 2 * few @ prototypes.T.astype(np.float64)
        for threads in (1, 2):
            near = near_errors(dim, threads, found, with_compile)
            here = []
            for name, call, counted in methods(queries, prototypes, threads, found, with_compile):
                made = np.array(call())[:64]
                error = None
                if made.shape == exact.shape:
                    error = float(np.abs((made - exact) / squares).max())
                us = least_us(call, seconds)
                here.append({
                    "what": "sq_l2", "stage": f"{n_queries}x{n_prototypes}x{dim}", "method": name, "threads": threads,
                    "value": round(us, 3), "unit": "us", "max_error": error, "near_error": near.get(name),
                    "gflops": round(2e-3 * n_queries * n_prototypes * dim / us, 2), "counted": counted,
                })  # fmt: skip
            for row in here:
                if row["method"].startswith("edgealign"):
                    exactly = "unpacked" in row["method"]
                    best = min(
                        (
                            rival for rival in here
                            if rival["counted"] and not rival["method"].startswith("edgealign")
                            and (not exactly or (rival["near_error"] or 1) < EXACT)
                        ),
                        key=lambda rival: rival["value"],
                    )  # fmt: skip
                    row["best_rival"], row["best_rival_over_this"] = (
                        best["method"],
                        round(best["value"] / row["value"], 3),
                    )
                    share = share_of_limit(row, (n_queries, n_prototypes, dim), limit)
                    if threads == 1 and share:
                        row["share_of_limit"] = round(share, 3)
                yield row
    for what, value in limit.items():
        yield {"what": "limit or call from C", "stage": what, "method": "limits.c", "threads": 1, "value": value}
    samples = generator.normal(size=16_000 * 60).astype(np.float32) / 8
    filters = np.maximum(generator.random(size=(40, 257)).astype(np.float32) - 0.9, 0)
    filters[:, 64:] = 0
    front_end = kernels.LogMel(filters, 400, 160, 1e-10)
    for n_seconds in (1, 60):
        clip = samples[: 16_000 * n_seconds]
        us = least_us(lambda clip=clip: kernels.log_mel(clip, front_end), seconds)
        yield {"what": "log_mel", "stage": f"{n_seconds} s of audio", "method": "edgealign", "threads": 1,
               "value": round(us, 1), "unit": "us"}  # fmt: skip
    with tempfile.NamedTemporaryFile() as stripped:
        subprocess.run(["strip", "-o", stripped.name, PACKAGE / "lib" / "libedgealign.so"], check=True)
        size = Path(stripped.name).stat().st_size
    yield {"what": "size", "stage": "libedgealign.so, stripped", "method": "edgealign", "threads": 1,
           "value": round(size / 1e3, 1), "unit": "KB"}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=Path, default=rows.FOLDER / "kernels.jsonl", help="JSONL file to write")
    parser.add_argument("--seconds", type=float, default=0.3, help="time for each method and shape")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which needs a C++ compiler")
    arguments = parser.parse_args()
    common = {"machine": machine.describe(), "commit": rows.commit(), "command": rows.command("kernels")}
    made = []
    for row in measure(arguments.seconds, not arguments.no_compile):
        made.append(row | common)
        ratio = f"  {row['best_rival_over_this']} x {row['best_rival']}" if "best_rival" in row else ""
        ratio += f"  {100 * row['share_of_limit']:.0f} % of the limit" if "share_of_limit" in row else ""
        print(
            f"{row['stage']:24} {row['method']:32} {row['threads']}  {row['value']:12.3f} {row.get('unit', '')}{ratio}"
        )
    rows.replace(arguments.rows, made, ())


if __name__ == "__main__":
    main()
