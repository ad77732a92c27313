"""`edgealign listen`: words from a microphone, a pipe or a file, as they are said."""

from __future__ import annotations

import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgealign.cli.options import (
    BundleOption,
    ChannelOption,
    Device,
    DeviceOption,
    Format,
    ModalityOption,
    ReportFormat,
    StoreOption,
    VariantOption,
    open_recognizer,
)
from edgealign.cli.output import json_line, say, warn
from edgealign.errors import EdgealignError, InputUnreadable, InvalidInput

if TYPE_CHECKING:
    from edgealign.audio import AudioSource
    from edgealign.listen import Heard

PIPE = "-"


class SampleFormat(StrEnum):
    S16 = "s16"
    F32 = "f32"


def listen(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="A file, at its own speed; - for raw PCM on standard input. Default: a microphone.",
        ),
    ] = None,
    modality: ModalityOption = None,
    store: StoreOption = None,
    bundle: BundleOption = None,
    variant: VariantOption = None,
    device: DeviceOption = Device.AUTO,
    microphone: Annotated[
        str | None, typer.Option("--microphone", help="Name or number of the input device.", metavar="DEVICE")
    ] = None,
    channel: ChannelOption = "mix",
    rate: Annotated[int, typer.Option("--rate", help="Sample rate of raw PCM.", metavar="HZ")] = 16_000,
    channels: Annotated[int, typer.Option("--channels", min=1, help="Channels of raw PCM.", metavar="N")] = 1,
    sample_format: Annotated[
        SampleFormat, typer.Option("--sample-format", help="Samples of raw PCM, little-endian.")
    ] = SampleFormat.S16,
    debounce: Annotated[
        float,
        typer.Option("--debounce", min=0, help="Time within which a label is not answered again, in s.", metavar="S"),
    ] = 0.5,
    save_clips: Annotated[
        Path | None,
        typer.Option("--save-clips", help="Folder for a WAV of every word that was recognized.", metavar="FOLDER"),
    ] = None,
    output_format: Annotated[
        ReportFormat, typer.Option("--format", help="How answers are printed.")
    ] = ReportFormat.TEXT,
) -> None:
    """Name words as they are said.

    An answer comes about a quarter of a second after the word. JSON is one object per line. Ctrl-C ends it.
    """
    from datetime import UTC, datetime

    from edgealign.audio import parse_channel
    from edgealign.cli.answers import AnswerPrinter
    from edgealign.listen import listen as words

    recognizer = open_recognizer(store, bundle, modality, device, variant=variant)
    opened = _open(source, microphone, parse_channel(channel), rate, channels, sample_format)
    printer = AnswerPrinter(recognizer, Format(output_format), None)
    clips = None if save_clips is None else ClipFolder(save_clips)
    n_overflows = 0
    for heard in words(recognizer, opened, debounce_s=debounce, top_k=printer.n_listed):
        answer = heard.answer
        clip = None
        if clips is not None and answer.label is not None:
            try:
                clip = clips.save(heard, recognizer.bundle.front_end.sample_rate_hz)
            except EdgealignError as error:  # the listening goes on
                warn(str(error))
        if output_format is ReportFormat.JSON:
            place = {"start_s": answer.start_s, "end_s": answer.end_s, "heard_s": heard.heard_s}
            rounded = {name: round(seconds, 4) for name, seconds in place.items()}
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            print(json_line({**printer.as_dict(answer), **rounded, "time_utc": now, "clip": clip}), flush=True)
        else:
            print(f"{answer.start_s:8.1f} s  {printer.as_text(answer).partition(': ')[2]}", flush=True)
        if getattr(opened, "n_overflows", 0) > n_overflows:
            n_overflows = opened.n_overflows
            warn(f"sound was lost {n_overflows} time(s): this machine is too busy to listen")
    if cut_off := opened.cut_off():
        warn(cut_off)
    say(f"the sound ended after {opened.duration_s:.1f} s")


def _open(
    source: str | None,
    microphone: str | None,
    channel: int | None,
    rate: int,
    channels: int,
    sample_format: SampleFormat,
) -> AudioSource:
    from edgealign.listen import Microphone, PacedFile, RawPcm

    if source is not None and microphone is not None:
        raise InvalidInput("both a source and --microphone were given: name one")
    if source is None:
        return Microphone(int(microphone) if microphone and microphone.isdecimal() else microphone, channel)
    if source == PIPE:
        if sys.stdin is None:
            raise InputUnreadable("standard input is closed: raw PCM is expected there")
        return RawPcm(sys.stdin.buffer, rate, channels, sample_format, channel)
    return PacedFile(source, channel)


class ClipFolder:
    """WAV files named <probability>_<number>_<label>_<start>s_<end>s.wav; none is written over."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._number = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"the folder '{folder}' for clips cannot be made: {error.strerror}") from None

    def save(self, heard: Heard, sample_rate_hz: int) -> str:
        """Path of the new file; EdgealignError where it cannot be written."""
        import soundfile

        answer = heard.answer
        label = re.sub(r"[^\w-]+", "_", answer.label or "unknown")[:60]
        while True:
            self._number += 1
            name = f"{answer.probability:.2f}_{self._number}_{label}_{answer.start_s:.1f}s_{answer.end_s:.1f}s.wav"
            path = self.folder / name
            if not path.exists():
                break
        try:
            with path.open("xb") as file:
                soundfile.write(file, heard.samples, sample_rate_hz, format="WAV", subtype="PCM_16")
        except (OSError, soundfile.LibsndfileError) as error:
            path.unlink(missing_ok=True)
            raise EdgealignError(f"the clip '{path}' could not be saved: {error}") from None
        return str(path)
