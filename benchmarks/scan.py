"""Scanning: what is found in long recordings, how fast, and in how much memory.

    python -m benchmarks.scan --data FOLDER

Quality: held-back words (test role of the splits) are laid into recorded noise with gaps, or without, beside other
words and other sounds; every recording is searched as `scan` does, with every candidate encoded, and window by window
(1 s every 0.25 s, each encoded and decided alone, neighbors of one label joined), with the same store and thresholds.
yesno is read as it is: eight words in a row, whose order is known and whose times are not. Speed: recordings from disk,
decoding included, one thread, by processor time and by the clock, beside openWakeWord's embedding of as many windows.
First look: how embeddings differ from those of candidates alone, of a first look from one run over a stretch, and of
what shares the first layers. benchmarks/endurance.py measures memory, and what kills do.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from benchmarks import continuous, episodes, held_out, rivals, rows
from benchmarks.continuous import SAMPLE_RATE_HZ, Event, Recording
from edgealign import Bundle, Recognizer, kernels, machine
from edgealign.audio import AudioFile
from edgealign.intervals import rate_interval
from edgealign.samples import log_mel
from edgealign.scan import Scanner, ScanOptions, Searched
from edgealign.scan_runs import make_scanner
from edgealign.sieve import FirstLook
from edgealign.words import sound_spans

PACKS = (("arabic_sc", 5), ("fsdd", 5), ("dspspeech20", 5))
GAPS = {"gaps of 0.3 to 2 s": (0.3, 2.0), "no gaps": (0.0, 0.12)}
SNR_DB = (10.0, 25.0)
N_SHOT = 5
ACCEPT = (0.5, 0.3, 0.1)  # the shipped decision, and two laxer ones
LEAST = 0.05
WINDOW_S, HOP_S = 1.0, 0.25
MIN_SHARED = 0.5  # of the shorter of word and detection

Found = list[tuple[float, float, str, float]]  # start_s, end_s, label, probability


@dataclass(frozen=True)
class Case:
    """A recording on disk, a recognizer that learned its words, and where they are."""

    recording: Recording
    path: Path
    recognizer: Recognizer
    group: str


def cases(data: Path, bundle: Bundle, folder: Path, packs: Sequence[tuple[str, int]], n_seeds: int) -> Iterator[Case]:
    for pack, n_way in packs:
        clips = episodes.read_split(Path(__file__).parent / "splits" / f"{pack}.tsv", "test")
        for gap_name, gap_s in GAPS.items():
            for speaker in ("same", "other"):
                for seed in range(n_seeds):
                    made = continuous.compose(
                        data, clips, n_way=n_way, n_shot=N_SHOT, duration_s=120, gap_s=gap_s, snr_db=SNR_DB,
                        speaker_heard=speaker, seed=seed,
                    )  # fmt: skip
                    stem = f"{pack}-{speaker}-{seed}-{gap_s[1]}"
                    recognizer = Recognizer(bundle, folder / f"{stem}.store")
                    for label, paths in made.support.items():
                        recognizer.enroll(paths, label=label)
                    path = folder / f"{stem}.wav"
                    soundfile.write(path, made.samples, SAMPLE_RATE_HZ)
                    yield Case(made, path, recognizer, f"{pack}, {speaker} speaker, {gap_name}")


def finches(data: Path, bundle: Bundle, folder: Path) -> Iterator[Case]:
    """Songs of one Bengalese finch, whose syllables people have marked: N_SHOT of each of the five commonest, from the
    first songs, are enrolled and looked for in the others. The encoder was made for speech."""
    songs: dict[str, list[Event]] = {}
    with (data / "bioacoustics" / "finch_syllables.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            songs.setdefault(row["file"], []).append(Event(float(row["start"]), float(row["end"]), row["label"]))
    counts = Counter(event.label for events in songs.values() for event in events)
    labels = [label for label, _ in counts.most_common(5)]
    recognizer = Recognizer(bundle, folder / "finch.store")
    left = dict.fromkeys(labels, N_SHOT)
    for name in sorted(songs):
        path = data / "bioacoustics" / name
        samples, rate_hz = soundfile.read(path, dtype="float32")
        if any(left.values()):
            for event in songs[name]:
                if left.get(event.label, 0) > 0:
                    margin_s = bundle.front_end.seconds(bundle.windows.pad_frames)
                    clip = samples[
                        int(max(0, event.start_s - margin_s) * rate_hz) : int((event.end_s + margin_s) * rate_hz)
                    ]
                    recognizer.enroll([clip], label=event.label, sample_rate_hz=rate_hz)
                    left[event.label] -= 1
            continue
        events = [Event(e.start_s, e.end_s, e.label if e.label in labels else None) for e in songs[name]]
        yield Case(Recording(name, samples, events, {}), path, recognizer, "finch syllables, same bird")


def scanned(case: Case, sieve: bool = True) -> Found:
    scanner = make_scanner(case.recognizer, ScanOptions(min_probability=LEAST, sieve=sieve))
    return [(d.start_s, d.end_s, d.label, d.probability) for d in scanner.scan(AudioFile(case.path))]


def every_candidate(case: Case) -> Found:
    """As `scan`, but nothing is shared."""
    return scanned(case, sieve=False)


def window_by_window(case: Case) -> Found:
    """The plain way: every window is encoded and decided; neighbors that agree are one detection."""
    bundle = case.recognizer.bundle
    front_end = bundle.front_end
    samples = np.concatenate(list(AudioFile(case.path).blocks(front_end.sample_rate_hz)))
    matcher, labels = case.recognizer.current_matcher()
    window, hop = round(WINDOW_S * front_end.sample_rate_hz), round(HOP_S * front_end.sample_rate_hz)
    found: Found = []
    for start in range(0, len(samples) - window + 1, hop):
        best = matcher.classify(bundle.encode(log_mel(bundle, samples[start : start + window])[None])[0])[0]
        if best.probability < LEAST:
            continue
        start_s, label = start / front_end.sample_rate_hz, labels[best.label]
        if found and found[-1][2] == label and start_s < found[-1][1] and best.probability >= 0.5 <= found[-1][3]:
            found[-1] = (found[-1][0], start_s + WINDOW_S, label, max(found[-1][3], best.probability))
        else:
            found.append((start_s, start_s + WINDOW_S, label, best.probability))
    return found


WAYS: dict[str, Callable[[Case], Found]] = {
    "scan": scanned, "every candidate encoded": every_candidate, "window by window": window_by_window,
}  # fmt: skip


def compare(case: Case, found: Found, accept: float) -> tuple[int, int, int, list[float]]:
    """Words found, words there, false alarms, and how far beginnings and ends are off in s."""
    words = [event for event in case.recording.events if event.label is not None]
    free = set(range(len(words)))
    n_false, errors = 0, []
    for start_s, end_s, label, _ in sorted((d for d in found if d[3] >= accept), key=lambda d: -d[3]):
        hit = next(
            (
                i
                for i in sorted(free)
                if words[i].label == label
                and min(end_s, words[i].end_s) - max(start_s, words[i].start_s)
                > MIN_SHARED * min(end_s - start_s, words[i].end_s - words[i].start_s)
            ),
            None,
        )
        if hit is None:
            n_false += 1
        else:
            free.remove(hit)
            errors += [abs(start_s - words[hit].start_s), abs(end_s - words[hit].end_s)]
    return len(words) - len(free), len(words), n_false, errors


def quality(all_cases: list[Case], way: str, search: Callable[[Case], Found], shared: dict) -> list[dict]:
    by_group: dict[str, list[tuple[Case, Found]]] = {}
    for case in all_cases:
        by_group.setdefault(case.group, []).append((case, search(case)))
    made = []
    for group, members in by_group.items():
        hours = sum(len(case.recording.samples) for case, _ in members) / SAMPLE_RATE_HZ / 3600
        for accept in ACCEPT:
            counts = [compare(case, found, accept) for case, found in members]
            n_found, n_words, n_false = (sum(count[i] for count in counts) for i in range(3))
            errors = np.array([error for count in counts for error in count[3]]) * 1000
            alarms = rate_interval(n_false, hours)
            made.append(
                {
                    "what": "scan_quality", "stage": way, "group": group, "accept": accept,
                    "recall": round(n_found / n_words, 4),
                    "precision": round(n_found / max(1, n_found + n_false), 4),
                    "false_alarms_per_hour": round(alarms.value, 1),
                    "false_alarms_ci95": [round(alarms.low, 1), round(alarms.high, 1)],
                    "boundary_error_median_ms": round(float(np.median(errors)), 1) if len(errors) else None,
                    "boundary_error_p90_ms": round(float(np.percentile(errors, 90)), 1) if len(errors) else None,
                    "n_words": n_words, "hours": round(hours, 3), **shared,
                }
            )  # fmt: skip
    return made


def yesno(data: Path, bundle: Bundle, folder: Path, shared: dict) -> dict:
    """Eight words in a row, yes or no: taught with five of each from some recordings, asked about the others.

    Words of the recordings that teach are cut where the level says, and used only where that finds eight.
    """
    files = sorted((data / "yesno").glob("*.flac"))
    recognizer = Recognizer(bundle, folder / "yesno.store")
    front_end = bundle.front_end
    # The pauses of these recordings are shorter than those that part two clips' words.
    cuts = replace(bundle.windows, merge_frames=8, below_peak_db=20.0, above_floor_db=10.0, min_span_frames=12)
    taught: dict[str, int] = {"0": 0, "1": 0}
    teachers = set()
    for path in files:
        samples, rate_hz = soundfile.read(path, dtype="float32")
        spans = sound_spans(log_mel(bundle, samples), cuts)
        if len(spans) != 8 or min(taught.values()) >= N_SHOT:
            continue
        for (first, end, _), label in zip(spans.tolist(), path.stem.split("_"), strict=True):
            if taught[label] < N_SHOT:
                clip = samples[int(front_end.seconds(first) * rate_hz) : int(front_end.seconds(end) * rate_hz)]
                recognizer.enroll([clip], label=label, sample_rate_hz=rate_hz)
                taught[label] += 1
        teachers.add(path)
    scanner = make_scanner(recognizer, ScanOptions())
    edits = n_words = 0
    for path in sorted(set(files) - teachers):
        heard = [d.label for d in scanner.scan(AudioFile(path))]
        truth = path.stem.split("_")
        edits += _edits(truth, heard)
        n_words += len(truth)
    return {
        "what": "scan_yesno", "stage": "scan", "unit": "word error rate, %", "value": round(100 * edits / n_words, 2),
        "n_words": n_words, "taught": taught, **shared,
    }  # fmt: skip


def _edits(truth: list[str], heard: list[str]) -> int:
    """Words to insert, drop or replace (Levenshtein)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(truth, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


class WakeWordWindows:
    """openWakeWord's embedding of 1-s windows every 0.25 s, each compared with what was learned; its own front end."""

    def __init__(self, folder: Path, case: Case):
        self.network = rivals.OpenWakeWord(folder)
        learned = [
            self.network.embed(soundfile.read(path, dtype="float32")[0])
            for paths in case.recording.support.values()
            for path in paths
        ]
        self.center = np.mean(learned, axis=0)
        self.learned = np.stack(learned) - self.center

    def __call__(self, case: Case) -> Found:
        window, hop = round(WINDOW_S * SAMPLE_RATE_HZ), round(HOP_S * SAMPLE_RATE_HZ)
        found: Found = []
        with soundfile.SoundFile(case.path) as file:
            for block in file.blocks(60 * SAMPLE_RATE_HZ, window - hop, dtype="float32"):
                if len(block) < window:
                    continue
                embeddings = self.network.embed_every(block, round(HOP_S * 100))
                distances = kernels.cosine(embeddings - self.center, self.learned)
                found += [
                    (i * HOP_S, i * HOP_S + WINDOW_S, "", float(1 - d)) for i, d in enumerate(distances.min(axis=1))
                ]
        return found


def speed(name: str, case: Case, way: str, search: Callable[[Case], Found], repeats: int, shared: dict) -> dict:
    """Best of some repeats, by the time that the processor spent and by the clock."""
    search(case)
    clock, processor = [], []
    for _ in range(repeats):
        began = time.perf_counter(), time.process_time()
        search(case)
        clock.append(time.perf_counter() - began[0])
        processor.append(time.process_time() - began[1])
    duration_s = len(case.recording.samples) / SAMPLE_RATE_HZ
    return {
        "what": f"scan_speed: {name}", "stage": way, "unit": "x real time of a core",
        "value": round(duration_s / min(processor), 1), "by_the_clock": round(duration_s / min(clock), 1),
        "n_runs": repeats, "threads": 1, "seconds_of_sound": round(duration_s), **shared,
    }  # fmt: skip


def first_look(all_cases: list[Case], shared: dict) -> list[dict]:
    """Per group: cosines of first looks and of embeddings that share the first layers to those of the candidates alone,
    the share of candidates that get more than a look, and that of those which would be accepted alone."""
    by_group: dict[str, list[Comparison]] = {}
    for case in all_cases:
        scanner = Compared(case.recognizer)
        for _ in scanner.scan(AudioFile(case.path)):
            pass
        by_group.setdefault(case.group, []).extend(scanner.compared)
    made = []
    for group, compared in by_group.items():
        looks, embeddings, probabilities, kept = (np.array(column) for column in zip(*compared, strict=True))
        accepted = kept[probabilities >= ACCEPT[0]]
        made.append(
            {
                "what": "scan_first_look", "stage": group, "unit": "mean cosine to the candidate alone",
                "value": round(float(looks.mean()), 3), "p5": round(float(np.quantile(looks, 0.05)), 3),
                "embedding": round(float(embeddings.mean()), 3),
                "embedding_p5": round(float(np.quantile(embeddings, 0.05)), 3),
                "embedded_percent": round(100 * float(kept.mean()), 1),
                "embedded_of_accepted_percent": round(100 * float(accepted.mean()), 1) if len(accepted) else None,
                "n_candidates": len(looks), **shared,
            }
        )  # fmt: skip
    return made


class Comparison(NamedTuple):
    """A candidate: cosines of its first look and of its embedding to what it gets alone, its probability with the
    latter, and whether the scan embedded it."""

    look: float
    embedding: float
    probability: float
    kept: bool


class Compared(Scanner):
    """A scan that also encodes every candidate alone and remembers how that differs."""

    def __init__(self, recognizer: Recognizer):
        made = make_scanner(recognizer, ScanOptions())
        super().__init__(made.bundle, made.matcher, made.labels, made._prototypes, made.options)
        self._looks: list[tuple[FirstLook, np.ndarray]] = []

    @property
    def compared(self) -> list[Comparison]:
        return [
            Comparison(*numbers, kept=span in look.chosen)
            for look, of_spans in self._looks
            for span, numbers in zip(look.spans, of_spans.tolist(), strict=True)
        ]

    def _first_look(
        self, log_mels: np.ndarray, stretch: list[tuple[int, int]], also: list[tuple[int, int]]
    ) -> FirstLook:
        look = super()._first_look(log_mels, stretch, also)
        window = Searched(0, log_mels, None, np.zeros(0), 0.0, {}, [], [])
        alone = self._encode([(window, span) for span in stretch])
        parts = [look.part(span) for span in stretch]
        looks = self._sieve.look(parts[0][0], np.array([span for _, span in parts]))
        cosines = [(made * alone).sum(axis=1) for made in (looks, self._sieve.embed(parts))]
        probabilities = [self.matcher.classify(embedding)[0].probability for embedding in alone]
        self._looks.append((look, np.stack([*cosines, probabilities], axis=1)))
        return look


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("EDGEALIGN_DATA"), help="folder of recorded packs")
    parser.add_argument("--bundle", type=Path, default=held_out.KNOWS_NO_TEST_WORD)
    parser.add_argument("--seeds", type=int, default=3, help="recordings of each kind")
    parser.add_argument("--only", choices=("quality", "first look", "speed"), help="leave the others as they are")
    parser.add_argument("--way", choices=tuple(WAYS), help="measure the quality of this way alone")
    parser.add_argument("--repeats", type=int, default=3, help="of every measurement of speed")
    parser.add_argument("--recording", default="", help="measure speed only with those that have this in their name")
    parser.add_argument("--cache", type=Path, default=rows.default_cache(), help="folder that holds openWakeWord")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("--data or $EDGEALIGN_DATA: a folder with the packs")
    bundle = held_out.open_unheard(arguments.bundle, (pack for pack, _ in PACKS))
    shared = {
        "bundle": bundle.encoder_sha256,
        "variant": bundle.variant,
        "machine": machine.describe(),
        "commit": rows.commit(),
        "command": rows.command("scan"),
    }
    made: list[dict] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.only != "speed":
            all_cases = list(cases(arguments.data, bundle, folder, PACKS, arguments.seeds))
        if arguments.only in (None, "quality"):
            searched = [*all_cases, *finches(arguments.data, bundle, folder)]
            for way, search in WAYS.items() if arguments.way is None else ((arguments.way, WAYS[arguments.way]),):
                made += quality(searched, way, search, shared)
            made.append(yesno(arguments.data, bundle, folder, shared))
        if arguments.only in (None, "first look"):
            made += first_look(all_cases, shared)
        if arguments.only in (None, "speed"):
            for kind, case in busy_and_idle(arguments.data, bundle, folder, arguments.recording):
                rival = WakeWordWindows(arguments.cache / rivals.OPENWAKEWORD, case)
                for way, search in {**WAYS, "openWakeWord's windows": rival}.items():
                    made.append(speed(kind, case, way, search, arguments.repeats, shared))
    rows.replace(rows.FOLDER / "scan.jsonl", made, ("what", "stage", "group", "accept"))
    for row in made:
        if row["what"] == "scan_quality":
            print(
                f"{row['group']:52} {row['stage']:17} from {row['accept']:.1f}: recall {row['recall']:.2f} precision "
                f"{row['precision']:.2f} {row['false_alarms_per_hour']:6.1f} false/h, ends off by "
                f"{row['boundary_error_median_ms']} ms"
            )
    rows.show([row for row in made if row["what"] != "scan_quality"])


def busy_and_idle(data: Path, bundle: Bundle, folder: Path, named: str = "") -> Iterator[tuple[str, Case]]:
    """Recordings of five minutes: words without gaps; a word every 40 s in what was recorded outdoors and in machines;
    the same words over the faint steady noise of an idle recorder, which most field hours are."""
    clips = episodes.read_split(Path(__file__).parent / "splits" / "arabic_sc.tsv", "test")
    for name, gap_s, idle in (
        ("words without gaps", (0.0, 0.12), False),
        ("a word every 40 s in noise", (20.0, 60.0), False),
        ("a word every 40 s over an idle recorder", (20.0, 60.0), True),
    ):
        if named not in name:
            continue
        made = continuous.compose(
            data, clips, n_way=5, n_shot=N_SHOT, duration_s=300, gap_s=gap_s, snr_db=SNR_DB,
            speaker_heard="same", seed=9, idle=idle,
        )  # fmt: skip
        recognizer = Recognizer(bundle, folder / f"{name}.store")
        for label, paths in made.support.items():
            recognizer.enroll(paths, label=label)
        path = folder / f"{name}.wav"
        soundfile.write(path, made.samples, SAMPLE_RATE_HZ)
        yield name, Case(made, path, recognizer, name)


if __name__ == "__main__":
    main()
