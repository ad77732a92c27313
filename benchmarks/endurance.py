"""Scans that last: memory of recordings of any length, and what is left when a scan is killed again and again.

    python -m benchmarks.endurance --data FOLDER

Memory: `edgealign scan` in a process of its own, of RF64 files that repeat five minutes with a word every 40 s once an
hour; what lies between is a hole in the file and reads as silence. Kills: a scan is killed (SIGKILL) at random moments
and started again until it ends by itself; its tables are compared with those of a scan that was left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import soxr

from benchmarks import rows
from benchmarks.continuous import SAMPLE_RATE_HZ
from benchmarks.scan import Case, busy_and_idle
from edgealign import Bundle, machine

# hours, samples per second, channels, bits
RECORDINGS = ((0.5, 16_000, 1, 16), (24.0, 16_000, 1, 16), (3.3, 192_000, 1, 16), (0.75, 384_000, 2, 24))
KILL_WITHIN_S = 0.5, 6.0


def write_hollow(path: Path, samples: np.ndarray, hours: float, rate_hz: int, n_channels: int, bits: int) -> int:
    """An RF64 file, most of it a hole; returns its size in bytes."""
    samples = soxr.resample(samples, SAMPLE_RATE_HZ, rate_hz) if rate_hz != SAMPLE_RATE_HZ else samples
    whole = np.repeat((samples * (2**31 - 2**8)).astype("<i4")[:, None], n_channels, axis=1)
    loud = whole.view(np.uint8).reshape(len(samples), n_channels, 4)[:, :, 4 - bits // 8 :].tobytes()
    per_sample = n_channels * bits // 8
    n_samples = int(hours * 3600 * rate_hz)
    n_data = n_samples * per_sample
    shape = (1, n_channels, rate_hz, rate_hz * per_sample, per_sample, bits)
    with path.open("wb") as file:
        file.write(
            b"RF64\xff\xff\xff\xffWAVE" + struct.pack("<4sIQQQI", b"ds64", 28, 72 + n_data, n_data, n_samples, 0)
        )
        file.write(struct.pack("<4sIHHIIHH", b"fmt ", 16, *shape) + b"data\xff\xff\xff\xff")
        start = file.tell()
        for at in range(0, n_data, 3600 * rate_hz * per_sample):
            file.seek(start + at)
            file.write(loud[: n_data - at])
        file.truncate(start + n_data)
    return path.stat().st_size


def scan_command(case: Case, recordings: Path, output: Path) -> list[str]:
    options = ["--store", case.recognizer.store_path, "--bundle", case.recognizer.bundle.path, "--workers", "1", "-q"]
    return ["scan", str(recordings), *options, "-o", str(output)]


def memory(case: Case, folder: Path, shape: tuple[float, int, int, int], shared: dict) -> dict:
    hours, rate_hz, n_channels, bits = shape
    path = folder / "long.wav"
    n_bytes = write_hollow(path, case.recording.samples, hours, rate_hz, n_channels, bits)
    code = (
        "import sys; from edgealign.cli import app; from edgealign import machine\n"
        f"sys.argv = ['edgealign', *{scan_command(case, path, folder / str(n_bytes))!r}]\n"
        "try:\n    app.main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "print(machine.peak_rss_mb())"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    path.unlink()
    return {
        "what": "scan_memory", "stage": f"{hours:g} h, {rate_hz / 1000:g} kHz, {n_channels} x {bits} bits",
        "unit": "MB", "value": float(done.stdout.splitlines()[-1]), "file_gb": round(n_bytes / 1e9, 2),
        "seconds": round(time.perf_counter() - began, 1), **shared,
    }  # fmt: skip


def kills(case: Case, folder: Path, n_files: int, shared: dict) -> dict:
    card = folder / "card"
    card.mkdir()
    for i in range(n_files):
        at = i * 240 // n_files * SAMPLE_RATE_HZ
        soundfile.write(card / f"{i:02d}.wav", case.recording.samples[at : at + 60 * SAMPLE_RATE_HZ], SAMPLE_RATE_HZ)
    kinds = ["--rtype", "csv,jsonl,audacity,raven"]
    command = [sys.executable, "-m", "edgealign.cli.app"]
    subprocess.run([*command, *scan_command(case, card, folder / "whole"), *kinds], check=True, capture_output=True)
    journal = folder / "cut" / ".edgealign-scan" / "journal.jsonl"
    rng = random.Random(0)
    n_kills = n_lost = n_before = 0
    while True:
        process = subprocess.Popen(
            [*command, *scan_command(case, card, folder / "cut"), *kinds],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            if process.wait(rng.uniform(*KILL_WITHIN_S)) != 0:
                raise SystemExit("a scan that nobody killed failed")
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            n_kills += 1
            n_lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
            n_lost += n_lines < n_before
            n_before = n_lines
    entries = [json.loads(line)["key"] for line in journal.read_bytes().splitlines()[1:]]
    same = all(
        path.read_bytes() == (folder / "cut" / path.name).read_bytes()
        for path in (folder / "whole").iterdir()
        if path.is_file()
    )
    return {
        "what": "scan_kills", "stage": f"{n_files} recordings", "unit": "kills survived", "value": float(n_kills),
        "same_files_as_without": same, "repeated_recordings": len(entries) - len(set(entries)), "results_lost": n_lost,
        **shared,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("EDGEALIGN_DATA"), help="folder of recorded packs")
    parser.add_argument("--bundle", type=Path, default=None)
    parser.add_argument("--only", choices=("memory", "kills"), help="leave the other as it is")
    parser.add_argument("--files", type=int, default=30, help="recordings of a minute that a scan is killed in")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("--data or $EDGEALIGN_DATA: a folder with the packs")
    bundle = Bundle.open(arguments.bundle)
    shared = {
        "bundle": bundle.encoder_sha256, "variant": bundle.variant, "machine": machine.describe(),
        "commit": rows.commit(), "command": rows.command("endurance"),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ((_, case),) = busy_and_idle(arguments.data, bundle, folder, "idle")
        # Rows are written as they are made: all of it takes long.
        if arguments.only != "kills":
            for shape in RECORDINGS:
                _write(memory(case, folder, shape, shared))
        if arguments.only != "memory":
            _write(kills(case, folder, arguments.files, shared))


def _write(row: dict) -> None:
    rows.replace(rows.FOLDER / "scan.jsonl", [row], ("what", "stage"))
    rows.show([row])


if __name__ == "__main__":
    main()
