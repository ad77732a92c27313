"""The command line. Each command imports what it needs when it runs, so that `classify` starts fast."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgealign import __version__
from edgealign.cli.lazy import LazyGroup
from edgealign.cli.options import (
    BundleOption,
    ChannelOption,
    Device,
    DeviceOption,
    Format,
    Modality,
    ModalityOption,
    ReportFormat,
    StoreOption,
    TierOption,
    VariantOption,
    open_recognizer,
    split_tables,
)
from edgealign.cli.output import counted, json_line, percent, print_facts, printable, say, table, warn
from edgealign.errors import (
    EXIT_INTERRUPTED,
    EXIT_UNKNOWN,
    EdgealignError,
    InputUnreadable,
    MissingExtra,
    SomeInputsFailed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgealign.golden import StageParity
    from edgealign.quality import LabelReport
    from edgealign.recognizer import Answer

app = typer.Typer(
    name="edgealign",
    cls=LazyGroup,
    help="Learns words, sounds and pictures from one to ten samples on this device, offline, and recognizes them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the `edgealign` command: errors become one sentence on stderr and their exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the command
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  held open for the life of the process
        getattr(sys, name).reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except SystemExit as stopped:
        if isinstance(stopped.__context__, BrokenPipeError):  # which typer makes an exit with 1
            _leave_stdout(0)
        raise
    except EdgealignError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader (head, less) has gone; that is its right
        _leave_stdout(0)
    except OSError as error:
        where = "standard output" if error.filename is None else f"'{error.filename}'"
        say(f"error: {where} cannot be used: {error.strerror}")
        _leave_stdout(EdgealignError.exit_code)


def _leave_stdout(exit_code: int) -> None:
    """Exits, and keeps the interpreter from writing the rest to a stdout that takes no more."""
    sys.stdout = None
    sys.exit(exit_code)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"edgealign {__version__}")
        raise typer.Exit


@app.callback()
def edgealign(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def enroll(
    samples: Annotated[
        list[str] | None,
        typer.Argument(metavar="SAMPLES...", help="Clips or pictures, or folders: a sample's folder is its label."),
    ] = None,
    label: Annotated[str | None, typer.Option("--label", help="Label of all samples.")] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", help="The word as it is written, instead of recordings or beside them."),
    ] = None,
    ipa: Annotated[
        str | None,
        typer.Option("--ipa", help="The word as it is pronounced, in IPA."),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            "--image",
            help="A picture that the label starts from; needs --label or --text.",
            metavar="F",
            readable=False,
        ),
    ] = None,
    language: Annotated[
        str | None,
        typer.Option("--language", help="Language of --text, --ipa or the labels as a BCP 47 tag, such as sw."),
    ] = None,
    labels_are_words: Annotated[
        bool,
        typer.Option("--labels-are-words", help="Folders are named after the words in them: labels are texts as well."),
    ] = False,
    tables: Annotated[
        list[Path] | None,
        typer.Option(
            "--table",
            help="Annotations of SAMPLES (Audacity, Raven, EAF, TextGrid, CSV with times): each is a clip. Several: "
            "--table *.eaf.",
            readable=False,
        ),
    ] = None,
    tier: TierOption = None,
    modality: ModalityOption = None,
    store: StoreOption = None,
    bundle: BundleOption = None,
    variant: VariantOption = None,
    device: DeviceOption = Device.AUTO,
    channel: Annotated[
        str | None,
        typer.Option(
            "--channel",
            help="mix for the mean of all channels, or a number from 1. Default: what a table says, else mix.",
            metavar="mix|K",
        ),
    ] = None,
) -> None:
    """Learn labels from recordings or pictures, or from text.

    Adds to what the store knows of a label. Prints what was learned, and how far so few samples can be trusted.
    """
    from edgealign.audio import MIX, parse_channel

    channel_wanted = None if channel is None else parse_channel(channel) or MIX
    samples, tables = split_tables(samples or (), tables)
    recognizer = open_recognizer(store, bundle, modality, device, variant=variant, files=samples, enrolling=True)
    report = recognizer.enroll(
        samples,
        label=label,
        text=text,
        ipa=ipa,
        image=image,
        language=language,
        labels_are_words=labels_are_words,
        channel=channel_wanted,
        tables=tables,
        tier=tier,
    )
    for warning in report.warnings:
        warn(warning)
    for failure in report.failures:
        say(f"not learned: {failure}")
    print(f"learned {counted(len(report.labels), 'label')} into {printable(recognizer.store_path)}")
    noun = recognizer.bundle.sample_noun
    start = "text or picture" if "image" in recognizer.bundle.sources else "text"
    header = ("label", "new", f"{noun}s", start, "tightness", "what this can promise")
    print(table(header, (_enrolled_row(label, noun, start) for label in report.labels)))
    if report.failures:
        raise SomeInputsFailed(f"{len(report.failures)} of the samples could not be learned from, see above")


def _enrolled_row(report: LabelReport, noun: str, start: str) -> tuple[str, ...]:
    new = f"{report.n_added} ({report.n_known} known)" if report.n_known else str(report.n_added)
    text = f"{report.text_share:.0%}" if report.n_texts else "-"
    tightness = "-" if report.tightness is None else f"{report.tightness:.3f}"
    return report.label, new, str(report.n_recordings), text, tightness, _promise(report, noun, start)


def _promise(report: LabelReport, noun: str, start: str) -> str:
    """What the threshold of a label rests on, in words."""
    if report.n_recordings == 0:
        return f"{start} alone: no {noun} was learned yet, add {noun}s"
    if report.n_recordings == 1:
        return f"one {noun}: its threshold is a guess from other labels"
    return f"{report.own_share:.0%} of its threshold rests on these {noun}s, the rest on other labels"


@app.command()
def classify(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="Clips or pictures, or folders of them.")],
    modality: ModalityOption = None,
    store: StoreOption = None,
    bundle: BundleOption = None,
    variant: VariantOption = None,
    device: DeviceOption = Device.AUTO,
    channel: ChannelOption = "mix",
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=1, help="How many labels to list; 5 in JSON and CSV.", metavar="K"),
    ] = None,
    output_format: Annotated[Format, typer.Option("--format", help="How answers are printed.")] = Format.TEXT,
    fail_on_unknown: Annotated[
        bool, typer.Option("--fail-on-unknown", help="Exit with 1 if any answer is unknown.")
    ] = False,
) -> None:
    """Name each clip or picture: its label, or unknown."""
    from edgealign.audio import parse_channel
    from edgealign.cli.answers import AnswerPrinter

    channel_number = parse_channel(channel)
    recognizer = open_recognizer(store, bundle, modality, device, variant=variant, files=files)
    printer = AnswerPrinter(recognizer, output_format, top_k)
    failures: list[EdgealignError] = []
    n_answers = n_unknown = 0
    for file in _samples(files, recognizer.bundle.modality, failures):
        try:
            answer = recognizer.classify(file, channel=channel_number, top_k=printer.n_listed)
        except InputUnreadable as error:
            failures.append(error)
            say(f"error: {error}")
            continue
        n_answers += 1
        n_unknown += answer.label is None
        for warning in answer.warnings:
            warn(warning)
        printer.show(answer)
    _finish(failures, n_answers)
    if fail_on_unknown and n_unknown:
        raise typer.Exit(EXIT_UNKNOWN)


def _samples(files: list[str], modality: str, failures: list[EdgealignError]) -> Iterator[str]:
    """The files in the order given, folders replaced by the clips or pictures in them."""
    from edgealign.sources import sample_files

    for file in files:
        if not Path(file).is_dir():
            yield file
            continue
        try:
            found = sample_files(file, modality)
        except InputUnreadable as error:
            failures.append(error)
            say(f"error: {error}")
            continue
        if not found:
            what = "pictures" if modality == "image" else "audio files"
            failures.append(InputUnreadable(f"'{file}' holds no {what}: they are expected directly in it"))
            say(f"error: {failures[-1]}")
        yield from found


def _finish(failures: list[EdgealignError], n_done: int) -> None:
    """Exit code 4 where no input could be read, 5 where some could not."""
    if failures and not n_done:
        raise typer.Exit(failures[0].exit_code)
    if failures:
        raise SomeInputsFailed(f"{len(failures)} of {len(failures) + n_done} inputs could not be read, see above")


@app.command()
def embed(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="Clips or pictures, or folders of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .npz file to write.", metavar="OUT.npz")],
    modality: ModalityOption = None,
    bundle: BundleOption = None,
    variant: VariantOption = None,
    device: DeviceOption = Device.AUTO,
    channel: ChannelOption = "mix",
) -> None:
    """Write embeddings for other tools.

    The file holds `embeddings` float32 [n, dim] and `files` [n]; numpy.load reads it.
    """
    import numpy as np

    from edgealign.audio import parse_channel
    from edgealign.bundle import Bundle
    from edgealign.recognizer import Recognizer
    from edgealign.sources import are_pictures
    from edgealign.writing import check_place, replace_file

    check_place(output)
    channel_number = parse_channel(channel)
    if modality is None and are_pictures(files):
        modality = Modality.IMAGE
    recognizer = Recognizer(Bundle.open(bundle, modality=modality, variant=variant, device=device))
    failures: list[EdgealignError] = []
    embedded: list[str] = []
    embeddings: list[np.ndarray] = []
    for file in _samples(files, recognizer.bundle.modality, failures):
        try:
            embeddings.append(recognizer.embed(file, channel=channel_number))
            embedded.append(file)
        except InputUnreadable as error:
            failures.append(error)
            say(f"error: {error}")
    if embedded:
        with replace_file(output) as archive:
            np.savez(archive, embeddings=np.stack(embeddings), files=np.array(embedded))
        print(
            f"wrote {counted(len(embedded), 'embedding')} of {recognizer.bundle.dim} values to {printable(str(output))}"
        )
    _finish(failures, len(embedded))


@app.command()
def doctor(
    bundle: BundleOption = None,
    modality: ModalityOption = None,
    device: DeviceOption = Device.AUTO,
) -> None:
    """Check that this device computes what the bundle's maker computed.

    Runs every stage on the golden vectors of the bundle.
    """
    from edgealign.doctor import examine

    report = examine(bundle, device, modality)
    print_facts(report.facts)
    rows = [
        (
            stage.stage,
            "-" if stage.max_difference is None else f"{stage.max_difference:.2e}",
            f"{stage.tolerance:.0e} {stage.unit}",
            _verdict(stage),
        )
        for stage in report.stages
    ]
    print()
    print(table(("stage", "largest difference", "tolerance", ""), rows))
    if not report.passed:
        say("this device does not compute what the bundle's maker computed: do not trust its answers")
        raise typer.Exit(1)
    for stage in report.stages:
        if stage.not_run is not None:
            warn(f"{stage.stage} was not run: {stage.not_run}")
    which = "all stages" if all(stage.not_run is None for stage in report.stages) else "all other stages"
    print(f"{which} agree with the golden vectors of the bundle")


def _verdict(stage: StageParity) -> str:
    return "not run" if stage.not_run is not None else "ok" if stage.passed else "FAILED"


@app.command()
def bench(
    bundle: BundleOption = None,
    modality: ModalityOption = None,
    variant: VariantOption = None,
    device: DeviceOption = Device.AUTO,
    output_format: Annotated[ReportFormat, typer.Option("--format", help="How times are printed.")] = ReportFormat.TEXT,
) -> None:
    """Time this device, stage by stage.

    Front end, encoder and matching, apart and together, on one second or one window of sound, or on a picture.
    """
    from edgealign.bench import measure

    report = measure(bundle, device, modality, variant)
    if output_format is ReportFormat.JSON:
        print(json_line(report))
        return
    rows = [
        (stage, f"{times['median_ms']:.3f}", f"{times['p95_ms']:.3f}") for stage, times in report["latency"].items()
    ]
    print(table(("stage", "median ms", "p95 ms"), rows))
    print_facts((key, value) for key, value in report.items() if key != "latency")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="SVG file to write.", metavar="OUT.svg")] = Path(
        "edgealign-demo.svg"
    ),
    bundle: BundleOption = None,
    device: DeviceOption = Device.AUTO,
) -> None:
    """Learn and name words from shipped clips.

    Prints a table and draws a picture. Your own store is not touched.
    """
    from edgealign import demo as shipped
    from edgealign.writing import check_place

    check_place(output)
    result = shipped.run(bundle, device)
    rows = [
        (
            query.file,
            query.label or "(other)",
            query.answer.label or "(unknown)",
            _closest(query.answer),
            _tick(query.right),
        )
        for query in result.queries
    ]
    print(
        f"learned {', '.join(map(printable, result.labels))} from {result.n_enrolled} clips, then asked about others:\n"
    )
    print(table(("clip", "spoken", "answer", "closest", ""), rows))
    right, of_enrolled = result.share_right(enrolled=True)
    rejected, of_others = result.share_right(enrolled=False)
    print(f"\nA clip is unknown unless its closest word is {percent(result.accept_probability)} sure.")
    print(f"{right} of {of_enrolled} clips of these words are right ({right / of_enrolled:.0%});", end=" ")
    print(f"{rejected} of {of_others} other words and noises are left as unknown ({rejected / of_others:.0%}).")
    shipped.save_picture(result, output)
    print(f"picture: {printable(str(output))}\n")
    print("All of these clips are synthetic speech. With recordings of your own, one folder per word:")
    print("    edgealign enroll --modality speech samples/\n    edgealign classify clip.wav")


def _closest(answer: Answer) -> str:
    return "no sound" if answer.distance is None else f"{answer.top[0].label} {percent(answer.probability)}"


def _tick(right: bool) -> str:
    return "right" if right else "WRONG"


_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=_PASS_ON, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train an encoder (needs torch)."""
    _need_torch("training", "train")
    from edgealign.train.main import main as run

    run(context.args)


@app.command(context_settings=_PASS_ON, add_help_option=False)
def export(context: typer.Context) -> None:
    """Make a bundle of a checkpoint (needs torch)."""
    _need_torch("exporting", "export")
    from edgealign.export.main import main as run

    run(context.args)


def _need_torch(what: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise MissingExtra(
            f"{what} needs torch, which is not installed: pip install torch==2.13.0 'edgealign[{extra}]'"
        )


if __name__ == "__main__":
    main()
