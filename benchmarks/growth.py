"""How time grows with labels, recordings per label, length of a clip and workers of a scan, with fitted exponents.

    python -m benchmarks.growth            rows/growth.jsonl; with matplotlib (extra `report`) also growth.svg

Processor time, which other processes disturb less; of workers, the clock.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks import rows
from benchmarks.latency import COMMAND, run_cold
from edgealign import Bundle, Recognizer, kernels, machine
from edgealign.bench import one_second
from edgealign.store import RECORDING, Store

PICTURE = Path(__file__).with_name("growth.svg")
LABELS = (10, 100, 1000, 10_000, 100_000)
SHOTS = (1, 10, 100, 1000)
N_LABELS_OF_SHOTS = 50
LENGTHS_S = (1, 10, 60, 600)
WORKERS = (1, 2, 4)
SCANNED_S, N_SCANNED = 120, 4
MOST_S, LEAST_RUNS, MOST_RUNS = 0.5, 3, 100
RATE_HZ = 16_000


def median_ms(run: Callable[[], object]) -> dict[str, float | int]:
    """Processor time of a call after a first one."""
    run()
    taken: list[float] = []
    while len(taken) < LEAST_RUNS or (sum(taken) < 1e3 * MOST_S and len(taken) < MOST_RUNS):
        started = time.process_time()
        run()
        taken.append(1e3 * (time.process_time() - started))
    return {"cpu_median_ms": round(float(np.median(taken)), 4), "n_runs": len(taken)}


def exponent(points: list[dict]) -> float:
    """Slope of log time over log size through the upper half of the points, where fixed costs matter least."""
    upper = points[len(points) // 2 :] if len(points) > 3 else points
    times = [row.get("cpu_median_ms", row.get("median_ms")) for row in upper]
    return float(np.polyfit(np.log([row["x"] for row in upper]), np.log(times), 1)[0])


def unit_rows(n: int, dim: int) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(n, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def store_rows(folder: Path, of: str, sizes: tuple[int, ...], n_labels: Callable[[int], int]) -> list[dict]:
    """Opening a store with what decides over it, and matching one embedding."""
    bundle = Bundle.open()
    made = []
    for size in sizes:
        labels = n_labels(size)
        n_shots = size if of == "recordings per label" else 1
        embeddings = unit_rows(labels * n_shots, bundle.dim)
        store = Store.create("speech", bundle.encoder_sha256, bundle.dim)
        with store.operation():
            for label in range(labels):
                shots = slice(label * n_shots, (label + 1) * n_shots)
                digests = [i.to_bytes(32, "little") for i in range(shots.start, shots.stop)]
                store.add(f"label {label}", embeddings[shots], RECORDING, digests, ["clip.wav"] * n_shots)
        path = folder / f"{of}-{size}.store"
        store.save(path)
        recognizer = Recognizer(bundle, path)
        matcher, _ = recognizer.current_matcher()
        for measured, run in (
            ("opening the store", lambda path=path: Recognizer(bundle, path).current_matcher()),
            ("matching", lambda matcher=matcher, query=embeddings[0]: matcher.classify(query, 2)),
        ):
            made.append({"what": "growth", "of": of, "stage": measured, "x": size, **median_ms(run)})
        path.unlink()
    return made


def length_rows(folder: Path) -> list[dict]:
    """PCM to label; beyond a minute the clip is searched in windows."""
    clip = one_second(RATE_HZ)
    recognizer = Recognizer(Bundle.open(), folder / "lengths.store")
    recognizer.enroll([clip], label="glide", sample_rate_hz=RATE_HZ)
    noise = 1e-4 * np.random.default_rng(1).normal(size=max(LENGTHS_S) * RATE_HZ).astype(np.float32)
    noise[:RATE_HZ] += clip
    return [
        {"what": "growth", "of": "length of a clip, s", "stage": "pcm to label", "x": seconds}
        | median_ms(lambda n=seconds * RATE_HZ: recognizer.classify(noise[:n], RATE_HZ))
        for seconds in LENGTHS_S
    ]


def worker_rows(folder: Path) -> list[dict]:
    """The clock of a whole `edgealign scan`, the start of Python included."""
    import soundfile

    clip = one_second(RATE_HZ)
    recognizer = Recognizer(Bundle.open(), folder / "workers.store")
    recognizer.enroll([clip * gain for gain in (0.9, 0.7, 0.5)], label="glide", sample_rate_hz=RATE_HZ)
    generator = np.random.default_rng(2)
    for i in range(N_SCANNED):
        tape = 1e-3 * generator.normal(size=SCANNED_S * RATE_HZ).astype(np.float32)
        for start in range(0, len(tape) - RATE_HZ, 5 * RATE_HZ):
            tape[start : start + RATE_HZ] += clip
        soundfile.write(folder / f"tape{i}.wav", tape, RATE_HZ, subtype="PCM_16")
    tapes = [str(folder / f"tape{i}.wav") for i in range(N_SCANNED)]
    made = []
    for n in WORKERS:
        taken = [
            run_cold(
                [sys.executable, "-c", COMMAND, "scan", *tapes, "-o", folder / f"out-{n}-{turn}",
                 "--store", folder / "workers.store", "--workers", n]
            )[0]
            for turn in range(3)
        ]  # fmt: skip
        made.append({"what": "growth", "of": "workers of a scan", "stage": f"{N_SCANNED} x {SCANNED_S} s", "x": n,
                     "median_ms": round(1e3 * float(np.median(taken)), 1), "n_runs": len(taken)})  # fmt: skip
    return made


def with_exponents(made: list[dict]) -> list[dict]:
    series = {(row["of"], row["stage"]): [] for row in made}
    for row in made:
        series[row["of"], row["stage"]].append(row)
    return made + [
        {"what": "growth exponent", "of": of, "stage": stage, "value": round(exponent(points), 2), "unit": ""}
        for (of, stage), points in series.items()
    ]


def draw(made: list[dict]) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    series: dict[str, dict[str, list[dict]]] = {}
    for row in made:
        if row["what"] == "growth":
            series.setdefault(row["of"], {}).setdefault(row["stage"], []).append(row)
    exponents = {(row["of"], row["stage"]): row["value"] for row in made if row["what"] == "growth exponent"}
    figure, axes = plt.subplots(1, len(series), figsize=(4 * len(series), 3.6))
    for axis, (of, stages) in zip(axes, series.items(), strict=True):
        for stage, points in stages.items():
            times = [row.get("cpu_median_ms", row.get("median_ms")) for row in points]
            label = f"{stage}: exponent {exponents[of, stage]}"
            axis.loglog([row["x"] for row in points], times, marker="o", label=label)
        axis.set(xlabel=of, ylabel="ms")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    matplotlib.rcParams["svg.hashsalt"] = "edgealign"  # the same rows draw the same file
    figure.savefig(PICTURE, metadata={"Date": None})


def measure() -> list[dict]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = store_rows(folder, "labels", LABELS, lambda size: size)
        made += store_rows(folder, "recordings per label", SHOTS, lambda _: N_LABELS_OF_SHOTS)
        made += length_rows(folder)
        made += worker_rows(folder)
    common = {
        "bundle": Bundle.open().encoder_sha256,
        "backend": kernels.backend(),
        "machine": machine.describe(),
        "commit": rows.commit(),
        "command": rows.command("growth"),
    }
    return [row | common for row in with_exponents(made)]


def main() -> None:
    made = rows.remeasured("growth", __doc__, measure)
    for row in made:
        size = f"{row['x']:>8}" if "x" in row else "exponent"
        value = next(row[key] for key in ("cpu_median_ms", "median_ms", "value") if key in row)
        print(f"{row['of']:22} {row['stage']:20} {size} {value}")
    if find_spec("matplotlib"):
        draw(made)


if __name__ == "__main__":
    main()
