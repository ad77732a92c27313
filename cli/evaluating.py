"""`edgealign evaluate`: how well the store names clips whose labels are known."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgealign.cli.options import (
    BundleOption,
    ChannelOption,
    Device,
    DeviceOption,
    ModalityOption,
    StoreOption,
    VariantOption,
    open_recognizer,
)
from edgealign.cli.output import json_line, printable, say, table, warn
from edgealign.errors import SomeInputsFailed

if TYPE_CHECKING:
    from edgealign.evaluation import Evaluation


class PageFormat(StrEnum):
    TEXT = "text"
    JSON = "json"
    HTML = "html"


def evaluate(
    folder: Annotated[list[str], typer.Argument(metavar="DIR...", help="Folders of clips: DIR/<label>/*.wav.")],
    modality: ModalityOption = None,
    store: StoreOption = None,
    bundle: BundleOption = None,
    variant: VariantOption = None,
    device: DeviceOption = Device.AUTO,
    channel: ChannelOption = "mix",
    output_format: Annotated[PageFormat, typer.Option("--format", help="How the result is printed.")] = PageFormat.TEXT,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write instead; .html or .json in its name is the format."),
    ] = None,
) -> None:
    """Measure how well clips whose labels are known are named.

    A folder is named after what its clips hold. Labels that are not in the store (noise, other words) stand for
    anything else: their clips should be unknown.
    """
    from edgealign.audio import parse_channel
    from edgealign.cli.progress import Progress
    from edgealign.evaluation import evaluate as ask
    from edgealign.evaluation_page import page
    from edgealign.sources import collect_clips
    from edgealign.writing import check_place, replace_file

    if output is not None:
        check_place(output)
        if output.suffix.lower() in (".html", ".json"):
            output_format = PageFormat(output.suffix[1:].lower())
    channel_number = parse_channel(channel)
    recognizer = open_recognizer(store, bundle, modality, device, variant=variant, files=folder)
    found = collect_clips(folder, None, recognizer.bundle.modality)
    for note in found.notes:
        warn(note)
    if found.problems and not found.clips:
        raise found.problems[0]
    result = ask(recognizer, found.clips, channel_number, Progress(len(found.clips), "clips"))
    failures = (*found.problems, *result.failures)
    for failure in failures:
        say(f"error: {failure}")
    if output_format is PageFormat.JSON:
        text = json_line(result.as_dict()) + "\n"
    else:
        text = page(result) if output_format is PageFormat.HTML else as_text(result)
    if output is None:
        print(text, end="")
    else:
        with replace_file(output) as file:
            file.write(text.encode())
        print(f"wrote {printable(str(output))}")
    if failures:
        raise SomeInputsFailed(f"{len(failures)} of the inputs could not be read, see above")


def as_text(result: Evaluation) -> str:
    """Sentences, then a table by label."""
    from edgealign.evaluation import shown_share, summary_lines, taken_for

    lines = summary_lines(result)
    if result.by_label:
        rows = [
            (one.label, str(one.n), str(one.right), str(one.unknown), taken_for(one), shown_share(one.share))
            for one in result.by_label
        ]
        header = ("label", "clips", "right", "unknown", "taken for", "right, 95 % interval")
        lines += ["", table(header, rows)]
    alarms = [one for one in result.others if one.answer is not None]
    if alarms:
        lines += ["", "not enrolled, but given a label:"]
        lines += [f"  {printable(one.file)}: {printable(one.answer or '')}" for one in alarms[:20]]
        lines += [f"  and {len(alarms) - 20} more"] if len(alarms) > 20 else []
    return "\n".join(lines) + "\n"
