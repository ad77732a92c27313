"""`edgealign scan`: the enrolled labels in recordings of any length."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgealign.cli.options import (
    BundleOption,
    Device,
    DeviceOption,
    HighOption,
    LowOption,
    ModalityOption,
    RecordingsArgument,
    SpeedOption,
    StoreOption,
    VariantOption,
    open_recognizer,
)
from edgealign.cli.output import counted, printable, say
from edgealign.cli.progress import Progress, clock
from edgealign.errors import InputUnreadable, InvalidInput, SomeInputsFailed

if TYPE_CHECKING:
    from edgealign.scan_runs import Summary


ScanChannelOption = Annotated[
    str, typer.Option("--channel", help="mix, all (one after the other), or a number from 1.", metavar="mix|all|K")
]
OverlapOption = Annotated[
    float | None,
    typer.Option(
        "--overlap", help="Overlap of windows (1 s, or what the bundle says), in s. Default: 3/4.", metavar="S"
    ),
]


def scan(
    recordings: RecordingsArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for what is found.", metavar="OUT")],
    rtype: Annotated[
        list[str] | None,
        typer.Option(
            "--rtype", help="csv jsonl audacity raven eaf textgrid; several with commas or spaces. Default: csv."
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
        typer.Option(
            "--min-probability", help="Least probability of a detection; auto: see calibrate.", metavar="auto|P"
        ),
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
        typer.Option(
            "--timezone", help="Time zone of clocks that name none: UTC, +03:00, Africa/Nairobi.", metavar="Z"
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes. Default: one per usable processor.", metavar="N")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")] = False,
) -> None:
    """Find the enrolled labels in recordings of any length.

    The same command again goes on where an interrupted one stopped.
    """
    from edgealign import thresholds
    from edgealign.machine import usable_processors
    from edgealign.scan import ScanOptions
    from edgealign.scan_outputs import FAILED, Outputs
    from edgealign.scan_runs import check_channel, find_recordings, run
    from edgealign.timestamps import parse_timezone

    kinds = _kinds(rtype, recordings)
    check_channel(channel)
    zone = None if timezone is None else parse_timezone(timezone)
    recognizer = open_recognizer(store, bundle, modality, device, variant=variant)
    accept = thresholds.in_use(recognizer)
    options = ScanOptions(overlap, merge, accept, _min_probability(min_probability), fmin, fmax, audio_speed, top_k)
    found = find_recordings(recordings)
    for path, reason in found.failures:
        say(f"error: '{path}' {reason}")
    if not found.recordings:
        raise InputUnreadable("there is nothing to scan: name recordings, or folders that hold some")
    source = {"store_sha256": recognizer.store.sha256, "encoder_sha256": recognizer.bundle.encoder_sha256}
    outputs = Outputs(str(output), kinds, source)
    if output.exists() and not output.is_dir():
        raise InvalidInput(f"'{output}' is a file: --output names a folder")
    progress = (lambda share, n_done: None) if quiet else Progress(len(found.recordings))
    n_workers = workers or usable_processors()
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
        raise SomeInputsFailed(f"{n_failed} could not be finished, see '{output / FAILED}'")


def _report(summary: Summary, output: Path, kinds: tuple[str, ...]) -> None:
    resumed = f", {summary.n_resumed} of them earlier" if summary.n_resumed else ""
    found = f"{counted(summary.n_rows, 'row')} of {counted(summary.n_done, 'recording')}{resumed}"
    print(f"{found}: {printable(str(output))} ({', '.join(kinds)})")
    if summary.n_seconds:
        speed = summary.n_seconds / max(summary.elapsed_s, 1e-9)
        say(f"searched {clock(summary.n_seconds)} in {clock(summary.elapsed_s)}, {speed:.0f} times real time")


def _kinds(rtype: list[str] | None, recordings: list[str]) -> tuple[str, ...]:
    """What to write. `--rtype csv eaf` leaves "eaf" among the recordings, which it is only where a file is named so."""
    from edgealign.scan_outputs import KINDS

    wanted = [kind for entry in rtype or ["csv"] for kind in entry.split(",")]
    if rtype:
        wanted += [name for name in recordings if name in KINDS and not os.path.exists(name)]
        recordings[:] = [name for name in recordings if name not in KINDS or os.path.exists(name)]
    for kind in wanted:
        if kind not in KINDS:
            raise InvalidInput(f"rtype is '{kind}': expected one of {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in wanted)


def _min_probability(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(f"min-probability is '{text}': expected auto, or 0 to 1") from None
