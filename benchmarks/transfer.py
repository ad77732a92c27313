"""Do thresholds carry over: calibrated on recordings of one pack, measured on those of others.

    python -m benchmarks.transfer --data FOLDER

Five words of a pack are enrolled, five clips each of one speaker. `calibrate` raises their thresholds on a recording
made of another pack's words in recorded noise, none of which was enrolled, until a label has at most one false alarm
per hour. False alarms are then counted in recordings of packs that calibration never heard, and in yesno and the songs
of a Bengalese finch as they are. Found: share of the enrolled words that the same speaker says in other recordings.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import soundfile

from benchmarks import continuous, episodes, held_out, rows
from benchmarks.continuous import SAMPLE_RATE_HZ
from benchmarks.scan import N_SHOT, PACKS, SNR_DB
from edgealign import Recognizer, machine
from edgealign.annotations import Annotation
from edgealign.audio import AudioFile
from edgealign.intervals import rate_interval, share_interval
from edgealign.scan import Scanner, ScanOptions
from edgealign.scan_runs import make_scanner
from edgealign.thresholds import LEAST_LISTENED, Heard, calibrate, leave_one_out_probabilities, sort_out

PER_HOUR = 1.0
GAP_S = (0.3, 2.0)
RECALLS = (0.5, 0.8)  # at which false alarms are stated, whatever the threshold is then
NOT_CALIBRATED = "as shipped"


def heard_in(scanner: Scanner, paths: list[Path], truth: tuple[Annotation, ...] = ()) -> list[Heard]:
    found = []
    for path in paths:
        source = AudioFile(path)
        detections = [(d.start_s, d.end_s, d.label, d.probability) for d in scanner.scan(source)]
        found.append(Heard(source.duration_s, detections, truth))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("EDGEALIGN_DATA"), help="folder of recorded packs")
    parser.add_argument("--bundle", type=Path, default=held_out.KNOWS_NO_TEST_WORD)
    parser.add_argument("--minutes", type=int, default=30, help="of each pack's recording")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("--data or $EDGEALIGN_DATA: a folder with the packs")
    data, bundle = arguments.data, held_out.open_unheard(arguments.bundle, (pack for pack, _ in PACKS))
    shared = {
        "bundle": bundle.encoder_sha256, "variant": bundle.variant, "machine": machine.describe(),
        "commit": rows.commit(), "command": rows.command("transfer"),
    }  # fmt: skip
    made: list[dict] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        others = {
            "yesno": sorted((data / "yesno").glob("*.flac")),
            "finch songs": sorted((data / "bioacoustics").glob("finch/*")),
        }
        recordings, scanners = {}, {}
        for pack, n_way in PACKS:
            clips = episodes.read_split(Path(__file__).parent / "splits" / f"{pack}.tsv", "test")
            composed = continuous.compose(
                data, clips, n_way=n_way, n_shot=N_SHOT, duration_s=60 * arguments.minutes, gap_s=GAP_S, snr_db=SNR_DB,
                speaker_heard="same", seed=20,
            )  # fmt: skip
            others[pack] = [folder / f"{pack}.wav"]
            soundfile.write(others[pack][0], composed.samples, SAMPLE_RATE_HZ)
            recognizer = Recognizer(bundle, folder / f"{pack}.store")
            for label, paths in composed.support.items():
                recognizer.enroll(paths, label=label)
            recordings[pack] = composed
            scanners[pack] = recognizer, make_scanner(recognizer, ScanOptions(min_probability=LEAST_LISTENED))
        for pack, (recognizer, scanner) in scanners.items():
            made += measured(pack, recognizer, scanner, recordings[pack], others, shared)
    rows.replace(rows.FOLDER / "scan.jsonl", made, ("what", "stage", "group", "on"))
    for row in made:
        print(row["group"], "|", row["stage"], "|", row["on"], row["value"], row["ci95"], "found", row["found"])


def measured(
    pack: str,
    recognizer: Recognizer,
    scanner: Scanner,
    own: continuous.Recording,
    others: dict[str, list[Path]],
    shared: dict,
) -> list[dict]:
    """Rows of one pack's labels."""
    labels = recognizer.store.labels()
    words = tuple(Annotation(e.start_s, e.end_s, e.label) for e in own.events if e.label is not None)
    heard = {name: heard_in(scanner, paths) for name, paths in others.items() if name != pack}
    _, hits, _ = sort_out(heard_in(scanner, others[pack], words))
    own_clips = leave_one_out_probabilities(recognizer.store, recognizer.bundle)
    accept = recognizer.accept_probability
    thresholds = {NOT_CALIBRATED: dict.fromkeys(labels, accept)}
    for name in (other for other, _ in PACKS if other != pack):
        found, _ = calibrate(heard[name], labels, own_clips, accept, PER_HOUR)
        thresholds[f"calibrated on {name}"] = {entry.label: entry.probability for entry in found}
    probabilities = sorted((p for values in hits.values() for p in values), reverse=True)
    for recall in RECALLS:
        least = probabilities[max(0, round(recall * len(probabilities)) - 1)]
        if least > 0:  # so many are found at all
            thresholds[f"where {recall:.0%} are found"] = dict.fromkeys(labels, least)
    made = []
    for stage, limits in thresholds.items():
        n_found = sum(p >= limits[label] and p > 0 for label, values in hits.items() for p in values)
        share = share_interval(n_found, len(probabilities))
        for name, of_name in heard.items():
            false, _, hours = sort_out(replace(entry, truth=()) for entry in of_name)
            n_false = sum(p >= limits[label] for label, values in false.items() for p in values)
            rate = rate_interval(n_false, hours)
            made.append(
                {
                    "what": "scan_transfer", "stage": stage, "group": f"{len(labels)} words of {pack}", "on": name,
                    "unit": "false alarms / h", "value": round(rate.value, 2),
                    "ci95": [round(rate.low, 2), round(rate.high, 2)], "n_false": n_false, "hours": round(hours, 3),
                    "found": round(share.value, 4), "found_ci95": [round(share.low, 4), round(share.high, 4)],
                    "n_words": len(probabilities), "heard_in_calibration": stage == f"calibrated on {name}", **shared,
                }
            )  # fmt: skip
    return made


if __name__ == "__main__":
    main()
