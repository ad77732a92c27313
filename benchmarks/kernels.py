"""Squared Euclidean distances to prototypes: the core, its rivals in the same run, and what the machine can do.

    python -m pip install faiss-cpu numkong simsimd usearch
    python -m benchmarks.kernels

A rival that is not installed is left out, and said so. Times are the least of many calls, so that other work on the
machine disturbs less; the error is the largest one, in shares of |q|^2 + |p|^2, against float64.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import edgealign
from benchmarks import rows
from edgealign import kernels, machine

SHAPES = ((1, 50, 128), (1, 1000, 256), (256, 50, 128), (4096, 1000, 256), (1, 100_000, 256))
PACKAGE = Path(edgealign.__file__).parent
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


def methods(queries: np.ndarray, prototypes: np.ndarray, threads: int, found: dict) -> Iterator[tuple[str, Call, bool]]:
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


def measure(seconds: float) -> Iterator[dict]:
    found = {}
    for name in RIVALS:
        try:
            found[name] = importlib.import_module(name)
        except ImportError:
            print(f"{name} is not installed: left out")
    generator = np.random.default_rng(0)
    for n_queries, n_prototypes, dim in SHAPES:
        queries = generator.normal(size=(n_queries, dim)).astype(np.float32)
        prototypes = generator.normal(size=(n_prototypes, dim)).astype(np.float32)
        few = queries[:64].astype(np.float64)
        squares = (few**2).sum(axis=1)[:, None] + (prototypes.astype(np.float64) ** 2).sum(axis=1)
        exact = squares - 2 * few @ prototypes.T.astype(np.float64)
        for threads in (1, 2):
            here = []
            for name, call, counted in methods(queries, prototypes, threads, found):
                made = np.array(call())[:64]
                error = None
                if made.shape == exact.shape:
                    error = float(np.abs((made - exact) / squares).max())
                here.append((name, least_us(call, seconds), error, counted))
            rivals = [us for name, us, _, counted in here if counted and not name.startswith("edgealign")]
            for name, us, error, counted in here:
                row = {
                    "what": "sq_l2", "stage": f"{n_queries}x{n_prototypes}x{dim}", "method": name, "threads": threads,
                    "value": round(us, 3), "unit": "us", "max_error": error,
                    "gflops": round(2e-3 * n_queries * n_prototypes * dim / us, 2), "counted": counted,
                }  # fmt: skip
                if name.startswith("edgealign"):
                    row["best_rival_over_this"] = round(min(rivals) / us, 3)
                yield row
    for what, value in limits().items():
        yield {"what": "limit or call from C", "stage": what, "method": "limits.c", "threads": 1, "value": value}
    samples = generator.normal(size=16_000 * 60).astype(np.float32) / 8
    filters = np.maximum(generator.random(size=(40, 257)).astype(np.float32) - 0.9, 0)
    filters[:, 64:] = 0
    for n_seconds in (1, 60):
        clip = samples[: 16_000 * n_seconds]
        us = least_us(lambda clip=clip: kernels.log_mel(clip, filters, 400, 160, 1e-10), seconds)
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
    arguments = parser.parse_args()
    common = {"machine": machine.describe(), "commit": rows.commit(), "command": rows.command("kernels")}
    made = []
    for row in measure(arguments.seconds):
        made.append(row | common)
        ratio = f"  {row['best_rival_over_this']} x" if "best_rival_over_this" in row else ""
        print(
            f"{row['stage']:24} {row['method']:32} {row['threads']}  {row['value']:12.3f} {row.get('unit', '')}{ratio}"
        )
    rows.replace(arguments.rows, made, ())


if __name__ == "__main__":
    main()
