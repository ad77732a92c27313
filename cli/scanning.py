"""`edgealign scan`, `calibrate` and `simulate`: long recordings."""

from __future__ import annotations

import os
import shutil
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgealign.cli.options import (
    BundleOption,
    Device,
    DeviceOption,
    ModalityOption,
    StoreOption,
    VariantOption,
    open_recognizer,
    split_tables,
)
from edgealign.cli.output import counted, printable, say, table, warn
from edgealign.errors import InputUnreadable, InvalidInput, SomeInputsFailed

if TYPE_CHECKING:
    from edgealign.recognizer import Recognizer
    from edgealign.scan_runs import Summary
    from edgealign.thresholds import Heard, Interval, LabelThreshold


class Kind(StrEnum):
    CSV = "csv"
    JSONL = "jsonl"
    AUDACITY = "audacity"
    RAVEN = "raven"
    EAF = "eaf"
    TEXTGRID = "textgrid"


RecordingsArgument = Annotated[
    list[str], typer.Argument(metavar="RECORDINGS...", help="Recordings, or folders that are searched to any depth.")
]
ScanChannelOption = Annotated[
    str, typer.Option("--channel", help="mix, all (one after the other), or a number from 1.", metavar="mix|all|K")
]
OverlapOption = Annotated[
    float | None,
    typer.Option("--overlap", help="Of windows (1 s, or what the bundle says), in s; default: 3/4.", metavar="S"),
]
SpeedOption = Annotated[
    float,
    typer.Option("--audio-speed", help="Listen this many times as fast: 0.1 brings bats down to speech.", metavar="X"),
]
LowOption = Annotated[float | None, typer.Option("--fmin", help="Lowest frequency of sounds looked for.", metavar="HZ")]
TablesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--table", help="Where the labels are in a recording of the same name; several: --table *.eaf.", readable=False
    ),
]
TierOption = Annotated[str | None, typer.Option("--tier", help="Of EAF and TextGrid tables.")]
HighOption = Annotated[float | None, typer.Option("--fmax", help="Highest frequency of them.", metavar="HZ")]


def scan(
    recordings: RecordingsArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for what is found.", metavar="OUT")],
    rtype: Annotated[
        list[str] | None,
        typer.Option(
            "--rtype",
            help="csv jsonl audacity raven eaf textgrid; several with commas or spaces.",
        ),
    ] = None,
    store: StoreOption = None,
    bundle: BundleOption = None,
    variant: VariantOption = None,
    modality: ModalityOption = None,
    device: DeviceOption = Device.AUTO,
    overlap: OverlapOption = None,
    min_probability: Annotated[
        str,
        typer.Option("--min-probability", help="auto (see calibrate), or from which probability on.", metavar="auto|P"),
    ] = "auto",
    merge: Annotated[bool, typer.Option("--merge/--no-merge", help="One detection per sound, or all windows.")] = True,
    channel: ScanChannelOption = "mix",
    audio_speed: SpeedOption = 1.0,
    fmin: LowOption = None,
    fmax: HighOption = None,
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, help="Labels per detection in CSV and JSONL.", metavar="K")
    ] = 1,
    timezone: Annotated[
        str | None,
        typer.Option("--timezone", help="Of clocks that name none: UTC, +03:00, Africa/Nairobi.", metavar="Z"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes; default: one per processor.", metavar="N")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Find the enrolled labels in recordings of any length.

    The same command again goes on where an interrupted one stopped.
    """
    from edgealign.scan import ScanOptions
    from edgealign.scan_outputs import FAILED, Outputs
    from edgealign.scan_runs import check_channel, find_recordings, run
    from edgealign.timestamps import parse_timezone

    kinds = _kinds(rtype, recordings)
    check_channel(channel)
    zone = None if timezone is None else parse_timezone(timezone)
    recognizer = open_recognizer(store, bundle, modality, device, variant=variant)
    options = ScanOptions(
        overlap, merge, _accept(recognizer), _min_probability(min_probability), fmin, fmax, audio_speed, top_k
    )
    found = find_recordings(recordings)
    for path, reason in found.failures:
        say(f"error: '{path}' {reason}")
    if not found.recordings:
        raise InputUnreadable("there is nothing to scan: name recordings, or folders that hold some")
    source = {"store_sha256": recognizer.store.sha256, "encoder_sha256": recognizer.bundle.encoder_sha256}
    outputs = Outputs(str(output), kinds, source)
    if output.exists() and not output.is_dir():
        raise InvalidInput(f"'{output}' is a file: --output names a folder")
    progress = _quietly if quiet else Progress(len(found.recordings))
    n_workers = workers or os.cpu_count() or 1
    try:
        summary = run(
            recognizer, found, outputs, options, channel=channel, zone=zone, workers=n_workers, progress=progress
        )
    except KeyboardInterrupt:
        say(f"interrupted: what is done is in '{output}', the same command again does the rest")
        raise
    _report(summary, output, kinds)
    for path, reason in summary.failures[len(found.failures) :]:
        say(f"error: '{path}' {reason}")
    if summary.failures:
        if not summary.n_done:
            raise InputUnreadable("no recording could be read, see above")
        n_failed = counted(len(summary.failures), "recording")
        raise SomeInputsFailed(f"{n_failed} could not be searched to the end, see '{output / FAILED}'")


def _report(summary: Summary, output: Path, kinds: tuple[str, ...]) -> None:
    resumed = f", {summary.n_resumed} of them earlier" if summary.n_resumed else ""
    found = f"{counted(summary.n_rows, 'row')} of {counted(summary.n_done, 'recording')}{resumed}"
    print(f"{found}: {printable(str(output))} ({', '.join(kinds)})")
    if summary.n_seconds:
        speed = summary.n_seconds / max(summary.elapsed_s, 1e-9)
        say(f"searched {_clock(summary.n_seconds)} in {_clock(summary.elapsed_s)}, {speed:.0f} times real time")


def _kinds(rtype: list[str] | None, recordings: list[str]) -> tuple[str, ...]:
    """What to write. `--rtype csv eaf` leaves "eaf" among the recordings, which it is only where a file is named so."""
    known = [kind.value for kind in Kind]
    wanted = [kind for entry in rtype or ["csv"] for kind in entry.split(",")]
    if rtype:
        wanted += [name for name in recordings if name in known and not os.path.exists(name)]
        recordings[:] = [name for name in recordings if name not in known or os.path.exists(name)]
    for kind in wanted:
        if kind not in known:
            raise InvalidInput(f"rtype is '{kind}': expected one of {', '.join(known)}")
    return tuple(kind for kind in known if kind in wanted)


def _accept(recognizer: Recognizer) -> float | dict[str, float]:
    """From which probability on labels are accepted: what `calibrate` found, else what the bundle says."""
    from edgealign import thresholds

    found = thresholds.load(recognizer.store, recognizer.store_path)
    return recognizer.accept_probability if found is None else found


def _min_probability(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(f"min-probability is '{text}': expected auto, or 0 to 1") from None


class Progress:
    """A line on stderr: rewritten on a terminal, else a new one every half minute."""

    EVERY_S, EVERY_S_ELSEWHERE = 0.2, 30.0

    def __init__(self, n_inputs: int, noun: str = "recordings") -> None:
        self.n_inputs, self.noun = n_inputs, noun
        self.began = self.shown = time.monotonic()
        self.on_terminal = sys.stderr.isatty()

    def __call__(self, share: float, n_done: int) -> None:
        now = time.monotonic()
        if now - self.shown < (self.EVERY_S if self.on_terminal else self.EVERY_S_ELSEWHERE) and share < 1:
            return
        self.shown = now
        left = f", {_clock((now - self.began) * (1 - share) / share)} left" if 0 < share < 1 else ""
        line = f"{share:4.0%}  {n_done} of {self.n_inputs} {self.noun}{left}"
        if self.on_terminal:
            width = min(60, shutil.get_terminal_size().columns - 1)  # a line that wraps could not be written over
            print(f"\r{line[:width]:<{width}}", end="\n" if share >= 1 else "", file=sys.stderr, flush=True)
        elif share < 1:
            say(line)


def _quietly(share: float, n_done: int) -> None:
    pass


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def calibrate(
    recordings: RecordingsArgument,
    tables: TablesOption = None,
    tier: TierOption = None,
    per_hour: Annotated[
        float, typer.Option("--per-hour", help="False alarms per hour and label that are bearable.", metavar="N")
    ] = 1.0,
    store: StoreOption = None,
    bundle: BundleOption = None,
    variant: VariantOption = None,
    modality: ModalityOption = None,
    device: DeviceOption = Device.AUTO,
    audio_speed: SpeedOption = 1.0,
    fmin: LowOption = None,
    fmax: HighOption = None,
) -> None:
    """Fit the thresholds of the labels to your recordings.

    RECORDINGS are of the place and the device where you scan, such as a noise/ folder. Nothing of what was enrolled may
    be in them, or a --table says where all of it is.
    """
    from edgealign import thresholds
    from edgealign.writing import check_place

    recognizer = open_recognizer(store, bundle, modality, device, variant=variant)
    check_place(thresholds.path_of(recognizer.store_path))
    heard, failures = _listen(recognizer, recordings, tables, tier, fmin, fmax, audio_speed)
    own = thresholds.leave_one_out_probabilities(recognizer.store, recognizer.bundle)
    labels = recognizer.store.labels()
    made, hours = thresholds.calibrate(heard, labels, own, recognizer.accept_probability, per_hour)
    thresholds.save(recognizer.store, recognizer.store_path, made, hours, per_hour)
    where = printable(thresholds.path_of(recognizer.store_path))
    print(f"thresholds of {counted(len(made), 'label')} from {hours:.2f} h: {where}")
    _show(made, per_hour)
    _fail(failures)


def simulate(
    recordings: RecordingsArgument,
    tables: TablesOption = None,
    tier: TierOption = None,
    store: StoreOption = None,
    bundle: BundleOption = None,
    variant: VariantOption = None,
    modality: ModalityOption = None,
    device: DeviceOption = Device.AUTO,
    audio_speed: SpeedOption = 1.0,
    fmin: LowOption = None,
    fmax: HighOption = None,
) -> None:
    """Count false alarms per hour where nothing is a label.

    RECORDINGS hold nothing of what was enrolled, or a --table says where all of it is; then it is also counted how much
    of it is found. Nothing is changed.
    """
    from edgealign import thresholds

    recognizer = open_recognizer(store, bundle, modality, device, variant=variant)
    accept = _accept(recognizer)
    heard, failures = _listen(recognizer, recordings, tables, tier, fmin, fmax, audio_speed)
    own = thresholds.leave_one_out_probabilities(recognizer.store, recognizer.bundle)
    false, hits, hours = thresholds.sort_out(heard)
    made = [
        thresholds.measure(
            label, accept[label] if isinstance(accept, dict) else accept, false.get(label, ()), hits.get(label, ()),
            own.get(label, ()), hours,
        )
        for label in recognizer.store.labels()
    ]  # fmt: skip
    total = thresholds.rate_interval(
        sum(value >= found.probability for found in made for value in false.get(found.label, ())), hours
    )
    rate = f"{total.value:.2f} false alarms per hour ({_between(total)} with 95 % confidence)"
    print(f"{rate} over {hours:.2f} h, all labels together")
    _show(made, None)
    _fail(failures)


def _listen(
    recognizer: Recognizer,
    recordings: list[str],
    tables: list[Path] | None,
    tier: str | None,
    fmin: float | None,
    fmax: float | None,
    audio_speed: float,
) -> tuple[list[Heard], list[str]]:
    """Everything that might be a label in the recordings, with what their tables say is in them."""
    from edgealign import annotations, thresholds
    from edgealign.excerpts import collect_excerpts
    from edgealign.scan import ScanOptions
    from edgealign.scan_runs import find_recordings, make_scanner, scan_recording

    recordings, tables = split_tables(recordings, tables)
    if tier is not None and not tables:
        raise InvalidInput("--tier was given without --table: it says which tier of a table is meant")
    found = find_recordings(recordings)
    failures = [f"'{path}' {reason}" for path, reason in found.failures]
    truth: dict[str, list[annotations.Annotation]] = {}
    excerpts, problems = collect_excerpts(tables, [recording.path for recording in found.recordings], tier, None)
    if problems:
        more = f" ({len(problems) - 1} more like this)" if len(problems) > 1 else ""
        raise type(problems[0])(
            f"{problems[0]}{more}: mend the tables, because what they do not say is a label counts as a false alarm"
        )
    for entry in excerpts:
        truth.setdefault(entry.path, []).append(annotations.Annotation(entry.start_s, entry.end_s, entry.label))
    options = ScanOptions(min_probability=thresholds.LEAST_LISTENED, low_hz=fmin, high_hz=fmax, audio_speed=audio_speed)
    scanner = make_scanner(recognizer, options)
    heard = []
    progress = Progress(len(found.recordings))
    total_bytes = max(1, sum(recording.size_bytes for recording in found.recordings))
    done_bytes = 0
    for recording in found.recordings:

        def report(share: float, before: int = done_bytes, size: int = recording.size_bytes) -> None:
            progress((before + share * size) / total_bytes, len(heard))

        try:
            result = scan_recording(scanner, recording.path, "mix", None, report)
        except InputUnreadable as error:
            failures.append(str(error))
            continue
        finally:
            done_bytes += recording.size_bytes
        if result["error"]:
            failures.append(f"'{recording.path}' {result['error']}")
        detections = [
            (entry["start_s"], entry["end_s"], entry["ranked"][0][0], entry["ranked"][0][3])
            for entry in result["detections"]
        ]
        heard.append(thresholds.Heard(result["duration_s"], detections, truth.get(recording.path, ())))
    if not heard:
        raise InputUnreadable(f"none of the recordings could be read; the first: {failures[0] if failures else 'none'}")
    return heard, failures


def _show(made: list[LabelThreshold], per_hour: float | None) -> None:
    interval = "95 % interval"
    header = ("label", "accepted from", "false alarms / h", interval, "own clips kept", interval, "found", interval)
    rows = [
        (
            found.label, f"{found.probability:.3f}", f"{found.false_alarms.value:.2f}", _between(found.false_alarms),
            *_share(found.own_clips), *_share(found.heard),
        )
        for found in made
    ]  # fmt: skip
    print(table(header, rows))
    loose = [found.label for found in made if per_hour is not None and found.false_alarms.high > per_hour]
    if loose:
        names = ", ".join(f"'{label}'" for label in loose[:5])
        more = f" and {len(loose) - 5} more" if len(loose) > 5 else ""
        needed = f"{3 / per_hour:.1f} h without any would be needed" if per_hour else "no recording is long enough"
        warn(
            f"the recordings are too short to promise at most {per_hour:g} false alarms per hour for {names}{more}: "
            f"{needed}"
        )


def _share(interval: Interval | None) -> tuple[str, str]:
    return ("-", "") if interval is None else (f"{interval.value:.0%}", f"{interval.low:.0%} to {interval.high:.0%}")


def _between(interval: Interval) -> str:
    return f"{interval.low:.2f} to {interval.high:.2f}"


def _fail(failures: list[str]) -> None:
    for failure in failures:
        say(f"error: {failure}")
    if failures:
        raise SomeInputsFailed(f"{counted(len(failures), 'recording')} could not be searched to the end, see above")
