"""`edgealign store …` and `edgealign bundle …`: look after the two artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgealign.cli.options import Modality, ModalityOption, StoreOption, store_path
from edgealign.cli.output import print_facts, printable, table

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
    typer.Argument(metavar="[BUNDLE]", help="Bundle folder. Default: $EDGEALIGN_BUNDLE, else the one that is shipped."),
]


@store_app.command("list")
def list_labels(store: StoreOption = None, modality: ModalityOption = Modality.SPEECH) -> None:
    """The labels and what each was learned from."""
    import numpy as np

    from edgealign.store import RECORDING, TEXT, Store

    opened = Store.load(store_path(store, modality))
    rows = opened.rows()
    labels = opened.labels()
    counts = {
        kind: np.bincount(rows["label"][rows["kind"] == kind], minlength=len(labels)) for kind in (RECORDING, TEXT)
    }
    lines = ((label, str(counts[RECORDING][i]), str(counts[TEXT][i])) for i, label in enumerate(labels))
    print(table(("label", "recordings", "texts"), lines))


@store_app.command("info")
def store_info(store: StoreOption = None, modality: ModalityOption = Modality.SPEECH) -> None:
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
    labels: Annotated[list[str], typer.Argument(metavar="LABELS...", help="The labels to take out.")],
    store: StoreOption = None,
    modality: ModalityOption = Modality.SPEECH,
) -> None:
    """Take labels out, as one operation that `undo` takes back."""
    from edgealign.store import Store

    with Store.update(store_path(store, modality)) as opened:
        removed = [(label, opened.remove(label)) for label in labels]
    for label, n_samples in removed:
        print(f"removed {printable(label)} ({n_samples} samples)")


@store_app.command("undo")
def undo(store: StoreOption = None, modality: ModalityOption = Modality.SPEECH) -> None:
    """Take the last enroll, remove or merge back."""
    from edgealign.store import Store

    with Store.update(store_path(store, modality)) as opened:
        opened.undo()
        n_labels = len(opened.labels())
    print(f"took the last operation back; {n_labels} label{'s' * (n_labels != 1)} left")


@store_app.command("merge")
def merge(
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="The store file to take samples from.")],
    store: StoreOption = None,
    modality: ModalityOption = Modality.SPEECH,
) -> None:
    """Add what another store of the same encoder holds; samples that are there already stay single."""
    from edgealign.store import Store

    source = Store.load(other)
    path = store_path(store, modality)
    with Store.update(path, source.modality, source.encoder_sha256, source.dim) as opened:
        n_added = opened.merge(source)
        n_labels = len(opened.labels())
    print(f"added {n_added} samples; {printable(path)} has {n_labels} label{'s' * (n_labels != 1)}")


@store_app.command("verify")
def verify_store(store: StoreOption = None, modality: ModalityOption = Modality.SPEECH) -> None:
    """Read all of the store and check it against its checksum."""
    from edgealign.store import Store

    path = store_path(store, modality)
    opened = Store.load(path)
    print(f"{printable(path)} is intact: {len(opened.labels())} labels, {len(opened.rows())} samples")


@bundle_app.command("info")
def bundle_info(bundle: BundleArgument = None) -> None:
    """What the bundle is: its encoder, front end, size and license."""
    from edgealign.bundle import Bundle

    opened = Bundle.open(bundle)
    manifest = opened.manifest
    print_facts(
        {
            "path": opened.path,
            "name": f"{opened.name} {opened.bundle_version}",
            "modality": opened.modality,
            "encoder_sha256": opened.encoder_sha256,
            "dim": opened.dim,
            "encoders": ", ".join(
                f"{name}{' (default)' * (name == opened.variant)} {manifest['files'][entry['file']]['bytes']} bytes"
                for name, entry in sorted(manifest["encoder"]["variants"].items())
            ),
            "text_encoder": "none"
            if manifest["text_encoder"] is None
            else f"{manifest['files'][manifest['text_encoder']['file']]['bytes']} bytes",
            "bank": f"{manifest['bank']['rows']} embeddings of other words and noises",
            "sample_rate_hz": opened.front_end.sample_rate_hz,
            "size_bytes": sum(entry["bytes"] for entry in manifest["files"].values()),
            "license": manifest["license"],
        }.items()
    )


@bundle_app.command("verify")
def verify_bundle(bundle: BundleArgument = None) -> None:
    """Check every file of the bundle against its manifest and load every graph."""
    from edgealign.bundle import Bundle

    opened = Bundle.open(bundle)
    names = opened.verify()
    print(f"{printable(opened.path)} is intact: {len(names)} files, encoder {opened.encoder_sha256[:12]}")
