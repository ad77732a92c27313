"""What listening takes of a core, and how long after the end of a word its answer comes, in Python and in C.

    python -m benchmarks.listening

The words of the demo's recordings, five of them enrolled, cut out and put 1.5 s apart into steady noise 25 dB below.
The end of a word is the last frame of it that stands out; the delay is in time of the stream, and the processor time of
the slowest steps is added to it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import edgealign
from benchmarks import rows
from benchmarks.latency import prepare, run_cold
from edgealign import Recognizer, demo, machine
from edgealign.audio import AudioArray, AudioFile
from edgealign.listen import BLOCK_S, listen
from edgealign.words import find_word

RATE_HZ = 16_000
GAP_S = 1.5
WORD_RMS, NOISE_DB = 0.05, 25  # a speaking voice into a recorder; how far the noise lies below it
FADE_SAMPLES = 80  # 5 ms
BLOCK_SAMPLES = int(BLOCK_S * RATE_HZ)  # as from a microphone
WITHIN_S = 1.0  # of the end of a word: later, or none at all, is a word that was missed


class Blocks(AudioArray):
    """Samples in blocks as from a microphone that takes note of the processor time spent between them."""

    def __init__(self, samples: np.ndarray) -> None:
        super().__init__(samples, RATE_HZ)
        self.block_cpu_s: list[float] = []

    def native_blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self._samples), BLOCK_SAMPLES):
            since = time.process_time()
            yield self._samples[start : start + BLOCK_SAMPLES].astype(np.float32)
            self.block_cpu_s.append(time.process_time() - since)


def conversation(recognizer: Recognizer) -> tuple[np.ndarray, list[float]]:
    """Samples, and where each word ends in s."""
    bundle = recognizer.bundle
    front_end, windows = bundle.front_end, bundle.windows
    clips = Path(demo.CLIPS)
    fade = np.linspace(0, 1, FADE_SAMPLES, dtype=np.float32)
    pieces, ends_s, n_samples = [], [], 0
    for entry in json.loads((clips / "manifest.json").read_text(encoding="utf-8")):
        samples = np.concatenate(list(AudioFile(str(clips / entry["file"])).blocks(RATE_HZ)))
        word = find_word(iter([samples]), front_end, windows, bundle.filters)
        if entry["role"] != "query" or word is None:
            continue
        pad_s = front_end.seconds(windows.pad_frames)
        sound = samples[int((word.start_s + pad_s) * RATE_HZ) : int((word.end_s - pad_s) * RATE_HZ)].copy()
        sound[:FADE_SAMPLES] *= fade
        sound[-FADE_SAMPLES:] *= fade[::-1]
        pieces += [np.zeros(int(GAP_S * RATE_HZ), np.float32), sound * WORD_RMS / np.sqrt(np.mean(sound**2))]
        n_samples += len(pieces[-2]) + len(pieces[-1])
        ends_s.append(n_samples / RATE_HZ)
    samples = np.concatenate([*pieces, np.zeros(RATE_HZ, np.float32)])
    noise = WORD_RMS * 10 ** (-NOISE_DB / 20) * np.random.default_rng(0).normal(size=len(samples))
    return samples + noise.astype(np.float32), ends_s


def delays_ms(heard: list[tuple[float, bool]], ends_s: list[float]) -> tuple[list[float], list[float], int]:
    """Of known labels and of unknown sounds, and how many words had no answer: for each word the first answer after it.

    heard  when each answer came in s, and whether a label was known
    """
    known, unknown, n_missed = [], [], 0
    for end_s in ends_s:
        first = next(((at_s, label) for at_s, label in heard if 0 < at_s - end_s <= WITHIN_S), None)
        if first is None:
            n_missed += 1
        else:
            (known if first[1] else unknown).append(1e3 * (first[0] - end_s))
    return known, unknown, n_missed


def measure() -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder)
        store = Path(folder) / "speech.store"
        recognizer = Recognizer.open(store)
        samples, ends_s = conversation(recognizer)
        source = Blocks(samples)
        heard = []
        started = time.process_time()
        for event in listen(recognizer, source):
            heard.append((event.heard_s, event.answer.label is not None))
        taken_s = time.process_time() - started
        slowest_s = float(np.percentile(source.block_cpu_s, 99.9))
        known, unknown, n_missed = delays_ms([(at_s + slowest_s, label) for at_s, label in heard], ends_s)
        shares = {"Python": taken_s / (len(samples) / RATE_HZ)}
        in_c = _share_in_c(samples, store, Path(folder))
        if in_c is not None:
            shares["C"] = in_c
    made = [
        {"what": f"listening, {host}", "stage": "share of a core", "value": round(100 * share, 2), "unit": "%"}
        for host, share in shares.items()
    ]
    for name, delays in (("known word", known), ("unknown sound", unknown)):
        for measure_name, quantile in (("median", 50), ("95th percentile", 95)):
            value = round(float(np.percentile(delays, quantile)), 1)
            made.append({"what": f"listening, delay of a {name}", "stage": measure_name, "value": value, "unit": "ms",
                         "n": len(delays)})  # fmt: skip
    made.append(
        {"what": "listening, words without an answer", "stage": f"of {len(ends_s)}", "value": n_missed, "unit": ""}
    )
    common = {
        "bundle": recognizer.bundle.encoder_sha256,
        "machine": machine.describe(),
        "commit": rows.commit(),
        "command": rows.command("listening"),
    }
    return [row | common for row in made]


def _share_in_c(samples: np.ndarray, store: Path, folder: Path) -> float | None:
    """Processor time of `edgealign-rt listen` a second of sound: what a long recording takes more than a short one."""
    import onnxruntime

    rt = Path(edgealign.__file__).parent / "bin" / "edgealign-rt"
    runtimes = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if not rt.exists() or not runtimes or shutil.which("sh") is None:
        return None
    pcm = np.round(np.clip(samples, -1, 1) * 32767).astype("<i2")
    taken = []
    for n in (RATE_HZ, len(pcm)):
        path = folder / "pcm"
        path.write_bytes(pcm[:n].tobytes())
        words = f'exec "{rt}" listen --runtime "{runtimes[0]}" --store "{store}" < "{path}"'
        taken.append(min(run_cold(["sh", "-c", words])[1] for _ in range(5)))
    return (taken[1] - taken[0]) / ((len(pcm) - RATE_HZ) / RATE_HZ)


if __name__ == "__main__":
    rows.show(rows.remeasured("listening", __doc__, measure))
