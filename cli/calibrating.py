"""`edgealign calibrate` and `simulate`: false alarms in recordings like the user's."""

from __future__ import annotations

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
    TierOption,
    VariantOption,
    open_recognizer,
    split_tables,
)
from edgealign.cli.output import counted, printable, say, table, warn
from edgealign.cli.progress import Progress
from edgealign.errors import SomeInputsFailed

if TYPE_CHECKING:
    from edgealign.intervals import Interval
    from edgealign.recognizer import Recognizer
    from edgealign.thresholds import Heard, LabelThreshold

TablesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--table", help="Where the labels are in a recording of the same name; several: --table *.eaf.", readable=False
    ),
]


def calibrate(
    recordings: RecordingsArgument,
    tables: TablesOption = None,
    tier: TierOption = None,
    per_hour: Annotated[
        float, typer.Option("--per-hour", help="Most false alarms per hour and label.", metavar="N")
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
    """Fit the thresholds of scan to your recordings.

    Scan and simulate accept from them on; classify and listen go on with those of the bundle. RECORDINGS are of the
    place and the device where you scan, such as a noise/ folder. Nothing of what was enrolled may be in them, or a
    --table says where all of it is.
    """
    from edgealign import thresholds
    from edgealign.writing import check_place

    thresholds.check_per_hour(per_hour)
    recognizer = open_recognizer(store, bundle, modality, device, variant=variant)
    labels = recognizer.store.labels()  # first: where there is no store, that is to be said, and not its folder
    check_place(thresholds.path_of(recognizer.store_path))
    heard, failures = _hear(recognizer, recordings, tables, tier, fmin, fmax, audio_speed)
    own = thresholds.leave_one_out_probabilities(recognizer.store, recognizer.bundle)
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

    RECORDINGS hold nothing of what was enrolled, or a --table says where all of it is; then the share of it that is
    found is counted, too. Nothing is changed.
    """
    from edgealign import thresholds

    recognizer = open_recognizer(store, bundle, modality, device, variant=variant)
    accept = thresholds.in_use(recognizer)
    heard, failures = _hear(recognizer, recordings, tables, tier, fmin, fmax, audio_speed)
    own = thresholds.leave_one_out_probabilities(recognizer.store, recognizer.bundle)
    made, total, hours = thresholds.simulate(heard, recognizer.store.labels(), own, accept)
    rate = f"{total.value:.2f} false alarms per hour ({_between(total)} with 95 % confidence)"
    print(f"{rate} over {hours:.2f} h, all labels together")
    _show(made, None)
    _fail(failures)


def _hear(
    recognizer: Recognizer,
    recordings: list[str],
    tables: list[Path] | None,
    tier: str | None,
    fmin: float | None,
    fmax: float | None,
    audio_speed: float,
) -> tuple[list[Heard], list[str]]:
    """`thresholds.hear`, with its progress on stderr."""
    from edgealign import thresholds
    from edgealign.scan_runs import find_recordings

    recordings, tables = split_tables(recordings, tables)
    found = find_recordings(recordings)
    return thresholds.hear(
        recognizer, found, tables, tier, low_hz=fmin, high_hz=fmax, audio_speed=audio_speed,
        progress=Progress(len(found.recordings)),
    )  # fmt: skip


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
