"""`edgealign store …` and `edgealign bundle …`: look after the two artifacts."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgealign.cli.options import BUNDLE_HELP, Modality, ModalityOption, StoreOption, store_path
from edgealign.cli.output import counted, print_facts, printable, table
from edgealign.errors import InvalidInput

if TYPE_CHECKING:
    from edgealign.bundle import Bundle
    from edgealign.inputs import Input
    from edgealign.store import Store

store_app = typer.Typer(
    help="Look after a store of labels.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)
bundle_app = typer.Typer(
    help="Look at a bundle: an encoder and what belongs to it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)
BundleArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[BUNDLE]", help=BUNDLE_HELP, readable=False),
]


@store_app.command("list")
def list_labels(
    label: Annotated[
        str | None, typer.Argument(metavar="[LABEL]", help="List the samples of this label, not the labels.")
    ] = None,
    store: StoreOption = None,
    modality: ModalityOption = None,
) -> None:
    """The labels and what each was learned from."""
    import numpy as np

    from edgealign.store import PICTURE, RECORDING, TEXT, Store

    opened = Store.load(store_path(store, modality))
    if label is not None:
        _list_samples(opened, label)
        return
    rows = opened.rows()
    labels = opened.labels()
    counts = {
        kind: np.bincount(rows["label"][rows["kind"] == kind], minlength=len(labels))
        for kind in (RECORDING, TEXT, PICTURE)
    }
    samples = "pictures" if opened.modality == "image" else "recordings"
    header = ("label", samples, "texts", "pictures to start from")
    columns = header if counts[PICTURE].any() else header[:3]
    lines = (
        (label, *(str(counts[kind][i]) for kind in (RECORDING, TEXT, PICTURE)[: len(columns) - 1]))
        for i, label in enumerate(labels)
    )
    print(table(columns, lines))


def _list_samples(store: Store, label: str) -> None:
    from edgealign.store import RECORDING, TEXT

    own = store.rows_of(label)
    if not len(own):
        raise InvalidInput(f"the store has no label '{label}': `edgealign store list` names them")
    kinds = {RECORDING: "picture" if store.modality == "image" else "recording", TEXT: "text"}
    rows, ids = store.rows(), store.ids()
    lines = ((rows["name"][row], kinds.get(rows["kind"][row], "picture to start from"), ids[row]) for row in own)
    print(table(("sample", "what it is", "id"), lines))


@store_app.command("info")
def store_info(store: StoreOption = None, modality: ModalityOption = None) -> None:
    """What the store is: encoder, size, number of labels and operations."""
    from edgealign.store import Store

    path = store_path(store, modality)
    opened = Store.load(path)
    print_facts(
        {
            "path": path,
            "size_bytes": Path(path).stat().st_size,
            "modality": opened.modality,
            "encoder_sha256": opened.encoder_sha256,
            "dim": opened.dim,
            "labels": len(opened.labels()),
            "samples": len(opened.rows()),
            "operations": opened.n_ops,
            "store_sha256": opened.sha256,
        }.items()
    )


@store_app.command("remove")
def remove(
    labels: Annotated[list[str], typer.Argument(metavar="LABELS...", help="The labels to remove.")],
    samples: Annotated[
        list[str] | None,
        typer.Option(
            "--sample",
            help="Remove this sample of the one label, by the name or id that `store list LABEL` prints; may be "
            "repeated.",
            metavar="NAME",
        ),
    ] = None,
    store: StoreOption = None,
    modality: ModalityOption = None,
) -> None:
    """Remove labels, or samples of one, as one operation that `undo` takes back.

    A sample that is still in the folder comes back when the folder is enrolled again.
    """
    from edgealign.store import Store

    if samples and len(labels) > 1:
        raise InvalidInput(f"{len(labels)} labels and a sample were given: name the one label that the sample is of")
    with Store.update(store_path(store, modality)) as opened:
        if samples:
            for sample in samples:
                opened.remove(labels[0], sample)
            n_left = len(opened.rows_of(labels[0]))
        else:
            removed = [(label, opened.remove(label)) for label in labels]
    if samples:
        what = counted(len(samples), "sample")
        print(f"removed {what} of {printable(labels[0])}, which has {counted(n_left, 'sample')} left")
        return
    for label, n_samples in removed:
        print(f"removed {printable(label)} ({counted(n_samples, 'sample')})")


@store_app.command("rename")
def rename(
    label: Annotated[str, typer.Argument(metavar="LABEL", help="The label as it is.")],
    new_label: Annotated[str, typer.Argument(metavar="NEW", help="Its new name; one that is there already is joined.")],
    store: StoreOption = None,
    modality: ModalityOption = None,
) -> None:
    """Give a label another name, as one operation that `undo` takes back. What `calibrate` found stays in use.

    Two labels become one where the new name is one of the others: both keep what they learned, nothing is there twice.
    """
    from edgealign import thresholds
    from edgealign.sources import checked_label
    from edgealign.store import Store

    label, new_label = unicodedata.normalize("NFC", label), checked_label(new_label)
    path = store_path(store, modality)
    with Store.update(path) as opened:
        former_sha256 = opened.sha256
        joins = new_label in opened.labels()
        n_moved = opened.rename(label, new_label)
        n_samples = len(opened.rows_of(new_label))
    if not joins:
        thresholds.rename(opened, path, former_sha256, label, new_label)
    done = f"renamed {printable(label)} to {printable(new_label)}"
    if joins:
        done += f", which was there: {counted(n_moved, 'sample')} joined it"
    print(f"{done} ({counted(n_samples, 'sample')})")


@store_app.command("undo")
def undo(store: StoreOption = None, modality: ModalityOption = None) -> None:
    """Undo the last enroll, remove, rename or merge."""
    from edgealign.store import Store

    with Store.update(store_path(store, modality)) as opened:
        opened.undo()
        n_labels = len(opened.labels())
    print(f"took the last operation back; {counted(n_labels, 'label')} left")


@store_app.command("merge")
def merge(
    other: Annotated[
        Path, typer.Argument(metavar="OTHER", help="The store file to take samples from.", readable=False)
    ],
    store: StoreOption = None,
    modality: ModalityOption = None,
) -> None:
    """Add what another store of the same encoder holds; no sample is there twice."""
    from edgealign.store import Store

    source = Store.load(other)
    path = store_path(store, modality or Modality(source.modality))
    with Store.update(path, source.modality, source.encoder_sha256, source.dim) as opened:
        n_added = opened.merge(source)
        n_labels = len(opened.labels())
    print(f"added {counted(n_added, 'sample')}; {printable(path)} has {counted(n_labels, 'label')}")


@store_app.command("verify")
def verify_store(store: StoreOption = None, modality: ModalityOption = None) -> None:
    """Read all of the store and check it against its checksum."""
    from edgealign.store import Store

    path = store_path(store, modality)
    opened = Store.load(path)
    holds = f"{counted(len(opened.labels()), 'label')}, {counted(len(opened.rows()), 'sample')}"
    print(f"{printable(path)} is intact: {holds}")


@bundle_app.command("info")
def bundle_info(
    bundle: BundleArgument = None,
    modality: ModalityOption = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time the encoders on this device; the fastest is used from then on.")
    ] = False,
) -> None:
    """What the bundle is: its encoders, front end, size and license."""
    from edgealign.bundle import Bundle

    opened = Bundle.open(bundle, modality=modality)
    here_ms = {}
    if measure:
        from edgealign import variants

        here_ms = variants.measure(opened)
        opened = Bundle.open(bundle, modality=modality)
    manifest = opened.manifest
    files = manifest["files"]
    print_facts(
        {
            "path": opened.path,
            "name": f"{opened.name} {opened.bundle_version}",
            "format_version": manifest["format_version"],
            "modality": opened.modality,
            "encoder_sha256": opened.encoder_sha256,
            "dim": opened.dim,
            "input": _input_text(opened.input),
            "starts_from": _sources_text(opened),
            "bank": f"{manifest['bank']['rows']} embeddings of something else",
            "size_bytes": sum(entry["bytes"] for entry in files.values()),
            "license": manifest["license"],
        }.items()
    )
    print()
    header = ["encoder", "", "bytes", "SQNR dB", "accuracy", "ms where made", *(["ms here"] if measure else [])]
    print(table(header, (_variant_row(opened, name, here_ms) for name in opened.variants)))


def _variant_row(bundle: Bundle, name: str, here_ms: dict[str, float]) -> list[str]:
    """The table row of one encoder of a bundle; what was not measured is a dash."""
    entry = bundle.manifest["encoder"]["variants"][name]
    stated = [(entry.get("snr_db"), ".1f"), (entry.get("accuracy"), ".1%"), (entry.get("latency_ms"), ".2f")]
    is_default = name == bundle.manifest["encoder"]["default"]
    role = ", ".join(["used here"] * (name == bundle.variant) + ["default"] * is_default)
    return [
        name,
        role,
        str(bundle.manifest["files"][entry["file"]]["bytes"]),
        *(format(value, form) if isinstance(value, (int, float)) else "-" for value, form in stated),
        *([f"{here_ms[name]:.2f}"] if here_ms else []),
    ]


def _sources_text(bundle: Bundle) -> str:
    """What labels of a bundle can start from, in words."""
    if bundle.modality == "text":
        return "nothing by itself"
    sources = [
        f"{kind} {bundle.manifest['files'][source.file]['bytes']} bytes, as much as {source.weight:g} "
        f"{bundle.sample_noun}s"
        for kind, source in bundle.sources.items()
    ]
    return ", ".join(sources) or f"{bundle.sample_noun}s alone"


def _input_text(taken: Input) -> str:
    """What an encoder takes, in words."""
    from edgealign.inputs import ImageInput, TextInput, Windows

    if isinstance(taken, TextInput):
        return "words alone"
    if isinstance(taken, ImageInput):
        return f"pictures, {taken.width_px} x {taken.height_px} px, {taken.fit}"
    windows = taken.windows
    seen = "the word in a clip"
    if not isinstance(windows, Windows):
        seen = f"windows of {windows.window_s:g} s every {windows.hop_s:g} s"
    return f"{taken.kind}, {taken.sample_rate_hz} Hz, {seen}"


@bundle_app.command("verify")
def verify_bundle(
    bundle: BundleArgument = None,
    modality: ModalityOption = None,
    key: Annotated[
        Path | None, typer.Option("--key", help="Public key (ed25519, PEM): the bundle must be signed with it.")
    ] = None,
) -> None:
    """Check every file of the bundle against its manifest and load every graph."""
    from edgealign.bundle import Bundle

    opened = Bundle.open(bundle, modality=modality)
    if key is None:
        names, signed = opened.verify(), ""
    else:
        from edgealign import signatures

        names, signed = signatures.verify(opened.path, key), f", signed with the key {printable(str(key))}"
    print(f"{printable(opened.path)} is intact: {len(names)} files, encoder {opened.encoder_sha256[:12]}{signed}")


@bundle_app.command("sign")
def sign_bundle(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder.")],
    key: Annotated[Path, typer.Option("--key", help="Private key (ed25519, PEM).")],
) -> None:
    """Sign the bundle, so that others can check who made it (needs edgealign[sign])."""
    from edgealign import signatures

    print(f"wrote {printable(signatures.sign(bundle, key))}")
