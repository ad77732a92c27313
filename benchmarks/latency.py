"""How long a clip takes, beside the field: cold commands, import, load, first and later clips by stage, memory.

    python -m benchmarks.latency

Every recognizer runs in a process of its own, the rivals in environments of their own (benchmarks/environments.py), all
on the same clips: five words of the demo, five recordings each, and a second of another recording of one of them. Rows
name the accuracy that a speed comes with where benchmarks/fewshot.py measured it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks import rows
from benchmarks.environments import REQUIREMENTS, Environment

HERE = Path(__file__).parent
N_COLD_RUNS, N_COLD_RUNS_OF_RIVALS = 7, 1
N_WARM_UP = 20
N_RUNS = 200
N_LOADS = 7
SAMPLE_RATE_HZ = 16_000
PARTS = ("edgealign", "C", "torch eager", "openWakeWord", "sherpa-onnx", "MFCC + kNN", "MFCC + DTW")
COMMAND = "from edgealign.cli.app import main; main()"  # what the console script `edgealign` runs


# The peak memory of a process counts what its parent held when it was started, so a small one starts what is measured.
_LAUNCHER = """
import json, os, sys, time
nowhere = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
started = time.perf_counter()
process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=nowhere)
_, status, usage = os.wait4(process, 0)
seconds = time.perf_counter() - started
print(json.dumps([os.waitstatus_to_exitcode(status), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""


def run_cold(words: Sequence[str | Path], **variables: str) -> tuple[float, float, float]:
    """Seconds on the clock, seconds of processor time and peak resident 10^6 bytes of one fresh process.

    words   the program and its arguments;  variables   of its environment, beside those of this process
    """
    # What a user has: packages are compiled when they are installed, and modules when they are first imported.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | variables
    launched = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *map(str, words)]
    done = subprocess.run(launched, capture_output=True, text=True, env=environment, check=True)
    exit_code, seconds, cpu_seconds, peak = json.loads(done.stdout)
    if exit_code:
        raise RuntimeError(f"{' '.join(map(str, words))} ended with {exit_code}: {done.stderr.strip()}")
    return seconds, cpu_seconds, peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def cold_rows(commands: dict[str, Sequence[str | Path]], base: str, n_runs: int) -> list[dict]:
    """Rows of commands that are run in turn, so that a busy machine slows all of them; ratios are of medians.

    Processor time tells more than the clock where other processes want the same cores.
    commands  name -> program and its arguments;   base  the name that the others are compared to
    """
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for turn in range(n_runs + 1):
        for name, words in commands.items():
            measured = run_cold(words)
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
    """By the clock and in processor time, which other processes disturb less."""
    milliseconds, cpu_milliseconds = np.empty(N_RUNS), np.empty(N_RUNS)
    for turn in range(-N_WARM_UP, N_RUNS):
        started, cpu_started = time.perf_counter(), time.process_time()
        run()
        if turn >= 0:
            milliseconds[turn] = 1e3 * (time.perf_counter() - started)
            cpu_milliseconds[turn] = 1e3 * (time.process_time() - cpu_started)
    return summary(milliseconds) | {"cpu_median_ms": round(float(np.median(cpu_milliseconds)), 4)}


def prepare(folder: str) -> None:
    """Writes samples/<label>/*.wav, clip.wav and clip.pcm, one second, all at 16 kHz, and edgealign's speech.store."""
    import soundfile
    import soxr

    from edgealign import Recognizer, demo

    root, clips = Path(folder), Path(demo.CLIPS)
    enrolled: dict[str, int] = {}

    def samples_of(file: str) -> np.ndarray:
        samples, rate_hz = soundfile.read(clips / file, dtype="float32")
        return soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ)

    entries = json.loads((clips / "manifest.json").read_text(encoding="utf-8"))
    for entry in entries:
        if entry["role"] == "enroll":
            path = root / "samples" / entry["label"] / f"{enrolled.setdefault(entry['label'], 0)}.wav"
            enrolled[entry["label"]] += 1
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, samples_of(entry["file"]), SAMPLE_RATE_HZ, subtype="PCM_16")
    query = samples_of(next(entry["file"] for entry in entries if entry["role"] == "query"))
    middle = len(query) // 2
    second = query[max(0, middle - SAMPLE_RATE_HZ // 2) :][:SAMPLE_RATE_HZ]
    soundfile.write(root / "clip.wav", second, SAMPLE_RATE_HZ, subtype="PCM_16")
    pcm, _ = soundfile.read(root / "clip.wav", dtype="int16")
    (root / "clip.pcm").write_bytes(pcm.tobytes())
    Recognizer.open(root / "speech.store").enroll(root / "samples")


class Contestant:
    """A recognizer in a process of its own.

    what     its name in the rows;   method: its name in the few-shot rows, None where it has none there
    command  program and arguments up to the task of benchmarks/rival_process.py;   options  what follows the folder
    """

    def __init__(
        self,
        what: str,
        python: Path | str,
        name: str,
        *options: str,
        method: str | None = None,
        threads: int = 1,
        note: str | None = None,
        installed_mb: float | None = None,
    ) -> None:
        self.what, self.method, self.threads, self.note, self.installed_mb = what, method, threads, note, installed_mb
        self.name, self.options = name, options
        self._program = [str(python), str(HERE / "rival_process.py"), name]

    def words(self, task: str, folder: str) -> list[str]:
        return [*self._program, task, folder, *self.options]

    def enroll(self, folder: str) -> None:
        run_cold(self.words("enroll", folder))

    def measure(self, folder: str) -> list[dict]:
        """Rows of the stages, the load and the first clip."""
        done = subprocess.run(self.words("measure", folder), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{self.what} ended with {done.returncode}: {done.stderr.strip()}")
        told = json.loads(done.stdout.splitlines()[-1])
        common = {"what": self.what, "threads": self.threads, "method": self.method}
        if self.note:
            common["note"] = self.note
        made = [common | {"stage": stage, **times, "n_runs": told["n_runs"]} for stage, times in told["stages"].items()]
        made[-1]["peak_rss_mb"] = told["peak_rss_mb"]
        made += [
            common | {"stage": stage, "value": told[key][0], "cpu_value": told[key][1], "unit": "ms"}
            for stage, key in (("import and load", "load_ms"), ("first clip", "first_ms"))
        ]
        if self.installed_mb is not None:
            made.append(common | {"stage": "installed", "value": round(self.installed_mb, 1), "unit": "MB"})
        return made


def contestants(cache: Path) -> list[Contestant]:
    """Everything that runs here: torch only where it is installed beside edgealign."""
    here = sys.executable
    found = [
        Contestant(f"edgealign {variant}, Python", here, "edgealign", variant, method=f"edgealign {variant}")
        for variant in ("int8", "fp32")
    ]
    if find_spec("torch"):
        found += [
            Contestant(f"torch eager, {n} thread{'s' * (n > 1)}", here, "torch eager", str(n), method="edgealign fp32",
                       threads=n)
            for n in (1, 2)
        ]  # fmt: skip
    made = {name: Environment(name, cache) for name in REQUIREMENTS}
    oww, sherpa, librosa = made["openwakeword"], made["sherpa-onnx"], made["librosa"]
    (vad,) = oww.python.parents[1].glob("lib/python*/site-packages/openwakeword/resources/models/silero_vad.onnx")
    return [
        *found,
        Contestant("openWakeWord, clip padded", oww.python, "openWakeWord", "padded", method="openWakeWord",
                   installed_mb=oww.installed_mb),
        Contestant("openWakeWord, clip as it is", oww.python, "openWakeWord"),
        Contestant("sherpa-onnx without models", sherpa.python, "sherpa-onnx", str(vad),
                   note="no encoder: its models have to be downloaded", installed_mb=sherpa.installed_mb),
        Contestant("librosa MFCC + kNN", librosa.python, "MFCC + kNN", installed_mb=librosa.installed_mb),
        Contestant("librosa MFCC + DTW", librosa.python, "MFCC + DTW", installed_mb=librosa.installed_mb),
    ]  # fmt: skip


def level2_rows(folder: str) -> tuple[list[dict], dict[str, list[str]]]:
    """Rows of the C library, and the cold command `edgealign-rt classify`.

    Nothing where a compiler or the shared library of ONNX Runtime is missing.
    """
    # Not imported: the commands are measured before this process holds more than numpy.
    home, onnxruntime = (Path(find_spec(name).origin).parent for name in ("edgealign", "onnxruntime"))
    runtimes = sorted(onnxruntime.glob("capi/libonnxruntime.so.*"))
    if shutil.which("gcc") is None or not runtimes:
        return [], {}
    bundle, store = str(home / "bundles" / "speech"), str(Path(folder) / "speech.store")
    program = Path(folder) / "level2_process"
    link = (f"-I{HERE.parent}/cpp_ext/include", f"-L{home}/lib", f"-Wl,-rpath,{home}/lib", "-ledgealign")
    subprocess.run(["gcc", "-O2", HERE / "level2_process.c", "-o", program, *link], check=True)
    pcm = (Path(folder) / "clip.pcm").read_bytes()
    words = [program, runtimes[0], bundle, store, str(N_RUNS)]
    tried = [
        json.loads(subprocess.run(words, input=pcm, capture_output=True, check=True).stdout) for _ in range(N_LOADS)
    ]
    best = min(tried, key=lambda told: told["cpu_median_ms"])
    common = {"what": "edgealign int8, C", "threads": 1, "method": "edgealign int8"}
    made = [
        common | {"stage": "pcm to label", "median_ms": best["median_ms"], "p95_ms": best["p95_ms"],
                  "cpu_median_ms": best["cpu_median_ms"], "n_runs": N_RUNS,
                  "peak_rss_mb": best["peak_rss_mb"]}
    ]  # fmt: skip
    for stage, key in (
        ("load ONNX Runtime", "runtime_ms"), ("load the bundle", "model_ms"), ("load the store", "store_ms"),
        ("first clip", "first_ms"),
    ):  # fmt: skip
        clock, cpu = (round(float(np.median([told[key][i] for told in tried])), 3) for i in (0, 1))
        made.append(common | {"stage": stage, "value": clock, "cpu_value": cpu, "unit": "ms"})
    rt = [str(home / "bin" / "edgealign-rt"), "classify", "--runtime", str(runtimes[0]), "--bundle", bundle]
    return made, {"edgealign-rt classify clip.wav": [*rt, "--store", store, str(Path(folder) / "clip.wav")]}


def thread_rows() -> list[dict]:
    """The encoder alone in ONNX Runtime, which edgealign gives one thread, with one and two."""
    import onnxruntime

    from edgealign import Bundle

    bundle = Bundle.open()
    log_mels = np.random.default_rng(0).normal(-5, 2, size=(1, bundle.front_end.n_mels, 80)).astype(np.float32)
    made = []
    for variant in bundle.variants:
        model = bundle.read(bundle.encoder_file(variant))
        for threads in (1, 2):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            taken = timed(lambda session=session: session.run(["embedding"], {"log_mel": log_mels}))
            made.append({"what": f"encoder {variant}, 0.8 s", "stage": "encoder", **taken, "threads": threads,
                         "method": f"edgealign {variant}"})  # fmt: skip
    return made


def in_process_rows(folder: str) -> list[dict]:
    """The public calls, in this process."""
    import soundfile

    from edgealign import Recognizer

    recognizer = Recognizer.open(Path(folder) / "speech.store")
    clip = str(Path(folder) / "clip.wav")
    samples, _ = soundfile.read(clip, dtype="float32")
    common = {"method": "edgealign int8"}
    return [
        {"what": "Recognizer.classify", "stage": stage, **timed(run), **common}
        for stage, run in (
            ("pcm to label", lambda: recognizer.classify(samples, SAMPLE_RATE_HZ)),
            ("file to label", lambda: recognizer.classify(clip)),
        )
    ]


def size_rows() -> list[dict]:
    """Bytes of the bundle."""
    from edgealign import Bundle

    manifest = Bundle.open().manifest
    sizes = {name: entry["bytes"] for name, entry in manifest["files"].items() if name.endswith((".onnx", ".f16"))}
    sizes["all files of the bundle"] = sum(entry["bytes"] for entry in manifest["files"].values())
    return [{"what": "size", "stage": name, "value": n / 1e6, "unit": "MB"} for name, n in sizes.items()]


def other_speaker_accuracy(fewshot: list[dict]) -> dict[str, float]:
    """Method -> mean over the packs of other speaker, k=5, in percent.

    Where what is shipped knows the words of a pack, its rows are of an encoder that does not (see README.md here).
    """
    shares: dict[str, list[float]] = {}
    for row in fewshot:
        if (row["what"], row["condition"], row["k"], row["measure"]) == ("fewshot", "other speaker", 5, "right"):
            shares.setdefault(row["method"], []).append(row["mean"])
    return {method: round(float(np.mean(means)), 2) for method, means in shares.items()}


def measure(cache: Path, fewshot_rows: Path, only: Sequence[str] = ()) -> list[dict]:
    """All rows, or those of some of `PARTS`; a speed comes with the accuracy that it buys, where that was measured."""
    parts = only or PARTS
    everyone = [contestant for contestant in contestants(cache) if contestant.name in parts]
    made = []
    with tempfile.TemporaryDirectory() as folder:
        store, clip = (str(Path(folder) / name) for name in ("speech.store", "clip.wav"))
        # A process of its own prepares, and commands run before this process loads more than numpy: the peak memory of
        # a child never comes out below what its parent held when it started it.
        python = [sys.executable, "-c"]
        run_cold([*python, "import sys; from benchmarks.latency import prepare; prepare(sys.argv[1])", folder])
        for contestant in everyone:
            contestant.enroll(folder)
        in_c, rt = level2_rows(folder) if "C" in parts else ([], {})
        base = {"import numpy": [*python, "import numpy"]}
        ours = {
            "import edgealign": [*python, "import edgealign"],
            "edgealign classify clip.wav": [*python, COMMAND, "classify", clip, "--store", store],
        }
        theirs = {
            f"{c.what}: names clip.wav": c.words("classify", folder)
            for c in everyone
            if c.name != "edgealign" and c.threads == 1
        }
        if "edgealign" in parts or rt:
            made += cold_rows(base | (ours if "edgealign" in parts else {}) | rt, "import numpy", N_COLD_RUNS)
        if theirs:
            made += cold_rows(base | theirs, "import numpy", N_COLD_RUNS_OF_RIVALS)[1:]
        made += in_c
        for contestant in everyone:
            made += contestant.measure(folder)
        if "edgealign" in parts:
            made += in_process_rows(folder) + thread_rows() + size_rows()

    from edgealign import Bundle, machine

    bundle = Bundle.open()
    common = {
        "bundle": bundle.encoder_sha256,
        "variant": bundle.variant,
        "machine": machine.describe(),
        "commit": rows.commit(),
        "command": rows.command("latency"),
    }
    accuracy = other_speaker_accuracy(rows.read(fewshot_rows))
    for row in made:
        row["accuracy_percent"] = accuracy.get(row.pop("method", None))
        row.update(common)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__.partition("\n")[0])
    parser.add_argument("--cache", type=Path, default=rows.default_cache(), help="where the rivals' environments lie")
    parser.add_argument("--rows", type=Path, default=rows.FOLDER / "latency.jsonl", help="JSONL file to write")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=(), help="keep the rows of all others")
    arguments = parser.parse_args()
    made = measure(arguments.cache, rows.FOLDER / "fewshot.jsonl", arguments.only)
    rows.replace(arguments.rows, made, ("what", "stage", "threads") if arguments.only else ())
    rows.show(made)


if __name__ == "__main__":
    main()
