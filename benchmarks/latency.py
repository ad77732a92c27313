"""How long a clip takes: in process by stage, from a file, and as a cold command; and what the process holds.

python -m benchmarks.latency --bundle edgealign/bundles/speech
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks import rivals, rows

N_COLD_RUNS = 15
N_WARM_UP = 20
N_RUNS = 200
SAMPLE_RATE_HZ = 16_000
COMMAND = "from edgealign.cli.app import main; main()"  # what the console script `edgealign` runs


def run_cold(words: Sequence[str], python: str | Path = sys.executable) -> tuple[float, float, float]:
    """Seconds on the clock, seconds of processor time and peak resident 10^6 bytes of one fresh Python process."""
    started = time.perf_counter()
    process = subprocess.Popen([str(python), *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.stderr.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}: {errors.decode().strip()}")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return seconds, cpu_seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def cold_rows(
    commands: dict[str, Sequence[str]], base: str, n_runs: int, python: str | Path = sys.executable
) -> list[dict]:
    """Rows of commands that are run in turn, so that a busy machine slows all of them; ratios are of medians.

    Processor time tells more than the clock where other processes want the same cores.
    commands  name -> words after `python`;   base  the name that the others are compared to
    """
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for turn in range(n_runs + 1):
        for name, words in commands.items():
            measured = run_cold(words, python)
            if turn:  # the first turn fills the file cache and writes the .pyc files
                taken[name].append(measured)
    columns = {name: np.array(values).T for name, values in taken.items()}
    base_s, base_cpu_s, _ = np.median(columns[base], axis=1)
    return [
        {
            "what": name,
            "stage": "cold process",
            **summary(1e3 * seconds),
            "cpu_median_ms": round(1e3 * float(np.median(cpu_seconds)), 4),
            "ratio": round(float(np.median(seconds) / base_s), 3),
            "cpu_ratio": round(float(np.median(cpu_seconds) / base_cpu_s), 3),
            "ratio_to": base,
            "peak_rss_mb": round(float(megabytes.max()), 1),
        }
        for name, (seconds, cpu_seconds, megabytes) in columns.items()
    ]


def summary(milliseconds: np.ndarray) -> dict[str, float | int]:
    median_ms, p95_ms = np.percentile(milliseconds, [50, 95])
    return {
        "median_ms": round(float(median_ms), 4), "p95_ms": round(float(p95_ms), 4), "n_runs": len(milliseconds),
        "threads": 1,
    }  # fmt: skip


def timed(run: Callable[[], object]) -> dict[str, float | int]:
    milliseconds = np.empty(N_RUNS)
    for turn in range(-N_WARM_UP, N_RUNS):
        started = time.perf_counter()
        run()
        if turn >= 0:
            milliseconds[turn] = 1e3 * (time.perf_counter() - started)
    return summary(milliseconds)


def prepare(folder: str, bundle_path: str | None = None) -> None:
    """Writes clip.wav, one second at 16 kHz, and speech.store, two labels of three recordings, into a folder."""
    import soundfile

    from edgealign import Recognizer
    from edgealign.bench import one_second

    samples = one_second(SAMPLE_RATE_HZ)
    soundfile.write(Path(folder) / "clip.wav", samples, SAMPLE_RATE_HZ, subtype="PCM_16")
    recognizer = Recognizer.open(Path(folder) / "speech.store", bundle_path)
    for label, clip in (("up", samples), ("down", samples[::-1].copy())):
        recognizer.enroll([clip * gain for gain in (0.9, 0.7, 0.5)], label=label, sample_rate_hz=SAMPLE_RATE_HZ)


def in_process_rows(bundle_path: str | None, folder: str, openwakeword: Path) -> list[dict]:
    """Stages of `edgealign.bench`, a whole file, and the rival's embedding of the same samples."""
    from edgealign import Recognizer, bench

    report = bench.measure(bundle_path)
    made = [
        {"what": "one second in process", "stage": stage, **latency,
         "n_runs": report["n_windows"], "threads": report["threads"]}
        for stage, latency in report["latency"].items()
    ]  # fmt: skip
    recognizer = Recognizer.open(Path(folder) / "speech.store", bundle_path)
    clip = str(Path(folder) / "clip.wav")
    made.append({"what": "file to label", "stage": "warm process", **timed(lambda: recognizer.classify(clip))})
    rival, samples = rivals.OpenWakeWord(openwakeword), bench.one_second(SAMPLE_RATE_HZ)
    ours = made[-2]["median_ms"]
    for what, run in (
        ("openWakeWord, one second as it is", lambda: rival.embed_windows(samples)),
        ("openWakeWord, as in the accuracy table", lambda: rival.embed(samples)),
    ):
        taken = timed(run)
        ratio = {"ratio": round(taken["median_ms"] / ours, 3), "ratio_to": "pcm to label"}
        made.append({"what": what, "stage": "pcm to embedding", **taken, **ratio})
    return made


def size_rows(bundle_path: str | None, openwakeword: Path) -> list[dict]:
    """Bytes of the models."""
    from edgealign import Bundle

    manifest = Bundle.open(bundle_path).manifest
    sizes = {name: entry["bytes"] for name, entry in manifest["files"].items() if name.endswith((".onnx", ".f16"))}
    sizes["all files of the bundle"] = sum(entry["bytes"] for entry in manifest["files"].values())
    sizes["openWakeWord, both models"] = rivals.OpenWakeWord(openwakeword).model_bytes
    return [{"what": "size", "stage": name, "value": n / 1e6, "unit": "MB"} for name, n in sizes.items()]


def other_speaker_accuracy(fewshot: list[dict], bundle_sha256: str) -> dict[str, float]:
    """Method -> mean over the packs of other speaker, k=5, in percent; of this bundle only."""
    shares: dict[str, list[float]] = {}
    for row in fewshot:
        cell = row["what"], row["condition"], row["k"], row["measure"], row["bundle"]
        if cell == ("fewshot", "other speaker", 5, "right", bundle_sha256):
            shares.setdefault(row["method"], []).append(row["mean"])
    return {method: round(float(np.mean(means)), 2) for method, means in shares.items()}


def measure(bundle_path: str | None, openwakeword: Path, fewshot_rows: Path) -> list[dict]:
    """All rows; a speed comes with the accuracy that it buys, where that was measured."""
    with tempfile.TemporaryDirectory() as folder:
        given = [] if bundle_path is None else [bundle_path]
        store, clip = (str(Path(folder) / name) for name in ("speech.store", "clip.wav"))
        # A process of its own prepares, and commands run before this process loads more than numpy: the peak memory of
        # a child never comes out below what its parent held when it started it.
        run_cold(["-c", "import sys; from benchmarks.latency import prepare; prepare(*sys.argv[1:])", folder, *given])
        classify = ["-c", COMMAND, "classify", clip, "--store", store, *(["--bundle", *given] if given else [])]
        made = cold_rows(
            {
                "import numpy": ["-c", "import numpy"],
                "import edgealign": ["-c", "import edgealign"],
                "edgealign classify clip.wav": classify,
            },
            "import numpy",
            N_COLD_RUNS,
        )
        made += in_process_rows(bundle_path, folder, openwakeword)
        made += size_rows(bundle_path, openwakeword)

    from edgealign import Bundle, machine

    bundle = Bundle.open(bundle_path)
    common = {
        "bundle": bundle.encoder_sha256,
        "variant": bundle.variant,
        "machine": machine.describe(),
        "commit": rows.commit(),
        "command": rows.command("latency"),
    }
    accuracy = other_speaker_accuracy(rows.read(fewshot_rows), bundle.encoder_sha256)
    for row in made:
        row["accuracy_percent"] = accuracy.get(
            "openWakeWord" if row["what"].startswith("openWakeWord") else f"edgealign {bundle.variant}"
        )
        row.update(common)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", help="folder of a bundle; the shipped one without it")
    parser.add_argument("--cache", type=Path, default=rows.default_cache(), help="where the rival lies")
    parser.add_argument("--rows", type=Path, default=rows.FOLDER / "latency.jsonl", help="JSONL file to write")
    arguments = parser.parse_args()
    made = measure(arguments.bundle, arguments.cache / rivals.OPENWAKEWORD, rows.FOLDER / "fewshot.jsonl")
    rows.replace(arguments.rows, made, ())
    rows.show(made)


if __name__ == "__main__":
    main()
