"""Heads of `edgealign train projection`, folded into the graphs of their bundles."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgealign.bundle import Bundle, write_bundle
from edgealign.errors import BundleUnreadable, InvalidInput
from edgealign.export import decision
from edgealign.export.graph import ParityLost
from edgealign.export.quantize import Drift
from edgealign.inputs import ImageInput
from edgealign.train.projection import Affine, Projection, Rows, SourceSide, Trained, windows_of

PARITY_TOLERANCE = 2e-5  # of unit embeddings, the written bundle against heads in numpy
DRIFT_SAMPLES = 64
FEWEST_BANK_ROWS = 50  # with fewer, training samples take the place of what was not enrolled


def append_head(model: bytes, projection: Projection) -> bytes:
    """The same graph with a head behind its output `embedding`, which keeps its name; other outputs are left out.

    The head stays fp32, whatever the graph is quantized to.
    """
    found = onnx.load_from_string(model)
    graph = found.graph
    output = next((value for value in graph.output if value.name == "embedding"), None)
    if output is None:
        raise BundleUnreadable("a graph of the bundle has no output 'embedding': make the bundle again")
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == "embedding":
                    names[i] = "frozen/embedding"
    made: list[onnx.NodeProto] = []

    def affine(name: str, of: str, part: Affine) -> str:
        for kind, values in (("weight", part.weight), ("bias", part.bias)):
            graph.initializer.append(numpy_helper.from_array(values, f"projection/{name}.{kind}"))
        inputs = [of, f"projection/{name}.weight", f"projection/{name}.bias"]
        made.append(helper.make_node("Gemm", inputs, [f"projection/{name}"], name=f"projection/{name}", transB=1))
        return f"projection/{name}"

    last = affine("linear", "frozen/embedding", projection.linear)
    if projection.first is not None and projection.second is not None:
        hidden = affine("first", "frozen/embedding", projection.first)
        made.append(helper.make_node("Relu", [hidden], ["projection/relu"], name="projection/relu"))
        second = affine("second", "projection/relu", projection.second)
        made.append(helper.make_node("Add", [last, second], ["projection/sum"], name="projection/sum"))
        last = "projection/sum"
    made.append(helper.make_node("LpNormalization", [last], ["embedding"], name="projection/norm", axis=1, p=2))
    graph.node.extend(made)
    output.type.tensor_type.shape.dim[1].dim_value = len(projection.linear.bias)
    kept = onnx.ValueInfoProto()
    kept.CopyFrom(output)
    del graph.output[:]
    graph.output.append(kept)
    onnx.checker.check_model(found)
    return found.SerializeToString()


def check_base(base: Bundle) -> None:
    """InvalidInput for a target bundle that has no samples to recognize."""
    if base.encoder_file() in {source.file for source in base.sources.values()}:
        raise InvalidInput(f"the target bundle '{base.name}' reads texts alone: name one for recordings or pictures")


def write_pair(trained: Trained, target: Path) -> Bundle:
    """The target bundle with its head, and in its `sources` the source encoder with the other: at `target`, checked."""
    base, source = trained.target, trained.source
    to_source, to_target = trained.projections
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)

        def put(name: str, data: bytes) -> str:
            (files / name).write_bytes(data)
            return name

        variants = {}
        for name, entry in base.manifest["encoder"]["variants"].items():
            drift = _drift(trained, name)
            stated = {} if drift is None else asdict(drift)
            file = put(entry["file"], append_head(base.read(entry["file"]), to_target))
            variants[name] = {"file": file, **stated}
        if "filters.f32" in base.manifest["files"]:
            put("filters.f32", base.read("filters.f32"))

        sources: dict[str, Any] = {}
        for kind, other in base.sources.items():
            if kind != source.kind:  # aligned with the target before, and taken along
                put(other.file, append_head(base.read(other.file), to_target))
                sources[kind] = _section(base, kind, other.file, trained.weight, put)
        file = put(f"{source.kind}_source.onnx", append_head(source.bundle.read(source.file), to_source))
        sources[source.kind] = _section(source.bundle, source.kind, file, trained.weight, put)

        bank = to_target(base.bank) if len(base.bank) else np.zeros((0, len(to_target.linear.bias)), np.float32)
        put("bank.f16", bank.astype("<f2").tobytes())
        put("README.md", _card(trained).encode())
        golden, texts, pictures = _golden(trained)
        licenses = list(dict.fromkeys([base.manifest["license"], source.bundle.manifest["license"]]))
        bundle = write_bundle(
            target, files, golden_samples=golden, golden_texts=texts, golden_pictures=pictures,
            name=base.name, modality=base.modality, bundle_version=base.bundle_version,
            dim=len(to_target.linear.bias), input=_input(base), sources=sources,
            encoder={"default": base.variant, "variants": variants},
            bank={"file": "bank.f16", "rows": len(bank)}, calibration=_calibration(trained, bank),
            license=" AND ".join(licenses)[:200],
            attribution=list(dict.fromkeys([*base.manifest["attribution"], *source.bundle.manifest["attribution"]])),
        )  # fmt: skip
    _check_parity(trained, bundle)
    return bundle


def _section(bundle: Bundle, kind: str, file: str, weight: float, put: Any) -> dict[str, Any]:
    """One of the `sources` of the manifest, whose graph is `file`."""
    if kind == "text":
        tokenizer = bundle.source("text").tokenizer
        put(tokenizer["file"], bundle.read(tokenizer["file"]))
        return {"file": file, "weight": weight, "tokenizer": tokenizer}
    taken = bundle.input if isinstance(bundle.input, ImageInput) else bundle.source("image").input
    return {"file": file, "weight": weight, "input": {"kind": "image", **asdict(taken)}}


def _input(bundle: Bundle) -> dict[str, Any]:
    """`input` of the manifest, also of a bundle of format 1."""
    kept = {name: value for name, value in asdict(bundle.input).items() if value is not None}
    return {"kind": bundle.input.kind, **kept}


def _drift(trained: Trained, variant: str) -> Drift | None:
    """How far a variant with the head is from fp32 with it, on validation samples; None where nothing compares."""
    base, to_target = trained.target, trained.projections[1]
    if variant == "fp32" or "fp32" not in base.variants:
        return None
    data, listing = trained.data, trained.listing
    rows = np.flatnonzero(np.isin(data.target.labels, data.with_role("val")))
    rows = np.random.default_rng(0).permutation(rows)[:DRIFT_SAMPLES]
    embeddings = []
    for name in ("fp32", variant):
        windows = [windows_of(base, listing.targets[row][0], name) for row in rows]
        counts = np.array([len(of_one) for of_one in windows])
        embeddings.append(Rows(to_target(np.concatenate(windows)), counts).means())
    full, small = embeddings
    return Drift(
        snr_db=float(10 * np.log10((full**2).sum() / max(((full - small) ** 2).sum(), 1e-20))),
        max_cosine_drift=float((1 - (full * small).sum(axis=1)).max()),
    )


def _calibration(trained: Trained, bank: np.ndarray) -> dict[str, float]:
    """The decision fitted anew on validation labels: distances are others than before."""
    after, rng = trained.after, np.random.default_rng(0)
    rows = np.flatnonzero(np.isin(after.target.labels, after.with_role("val")))
    text = {
        int(label): after.source.x[np.flatnonzero(after.source.labels == label)[0]]
        for label in after.with_role("val")
        if (after.source.labels == label).any()
    }
    pool = decision.Pool(after.target.x[rows], after.target.labels[rows], np.zeros(len(rows), np.int64), text)
    if len(bank) >= FEWEST_BANK_ROWS:
        order = rng.permutation(len(bank))
        strangers, cohort = bank[order[: len(bank) // 5]], bank[order[len(bank) // 5 :]]
    else:
        strangers, cohort = after.target.x[rng.permutation(after.training_targets)[:200]], bank
    return decision.fit([pool], strangers, cohort, trained.weight)


def _golden(trained: Trained) -> tuple[list[np.ndarray], list[tuple[str, str, str | None]], list[np.ndarray]]:
    """What the bundles were recorded with: samples of the target; texts and pictures of what labels can start from."""
    base, source = trained.target, trained.source
    known, given = base.golden(), source.bundle.golden()
    samples = list(_numbered(known, "image", "pixels") if isinstance(base.input, ImageInput) else
                   _numbered(known, "clip", "samples"))  # fmt: skip
    text_of = given if source.kind == "text" else known
    texts = [(str(t[0]), str(t[1]), str(t[2]) or None) for t in _numbered(text_of, "text", "text")]
    if source.kind == "image":
        kind = "image" if isinstance(source.bundle.input, ImageInput) else "picture"
        return samples, texts, list(_numbered(given, kind, "pixels"))
    return samples, texts, list(_numbered(known, "picture", "pixels"))


def _numbered(arrays: dict[str, np.ndarray], what: str, part: str) -> Iterator[np.ndarray]:
    i = 0
    while f"{what}{i}.{part}" in arrays:
        yield arrays[f"{what}{i}.{part}"]
        i += 1


def _check_parity(trained: Trained, bundle: Bundle) -> None:
    """ParityLost unless the written graphs give, for test samples, what was measured."""
    after, listing = trained.after, trained.listing
    source = None
    if trained.source.kind == "text" or bundle.modality != "image":
        source = SourceSide.of(bundle, trained.source.kind)
    rows = np.flatnonzero(np.isin(after.target.labels, after.with_role("test")))[:4]
    found = [Rows(w := windows_of(bundle, listing.targets[row][0]), np.array([len(w)])).means()[0] for row in rows]
    expected = [after.target.x[row] for row in rows]
    if source is not None:
        found += [source.encode(item)[0] for item, _ in listing.sources[:4]]
        expected += list(after.source.x[:4])
    difference = float(np.abs(np.array(found) - np.array(expected)).max())
    if difference > PARITY_TOLERANCE:
        raise ParityLost(
            f"the written bundle differs from the heads by {difference:.1e}, allowed is {PARITY_TOLERANCE:.0e}"
        )


def _card(trained: Trained) -> str:
    base, source, data = trained.target, trained.source, trained.data
    n_train = len(data.with_role("train"))
    head = f"""# {base.name}, aligned with {source.bundle.name}

The encoder of the bundle `{base.name}` ({base.encoder_sha256[:12]}) and, to start labels from, the {source.kind}
encoder of the bundle `{source.bundle.name}` ({source.bundle.encoder_sha256[:12]}), both as they were, each with a
{trained.head} head behind it. The heads were aligned on {len(data.training_targets)} samples of {n_train} labels by
`edgealign train projection`. Measured on labels that training did not see; a source sample counts as
{trained.weight:g} target samples.

"""
    from edgealign.train.research import results_table

    parts = [head, "```\n", results_table(trained.cells), "\n```\n"]
    for bundle in dict.fromkeys((base, source.bundle)):
        if "README.md" in bundle.manifest["files"]:
            parts += ["\n---\n\n", bundle.read("README.md").decode(errors="replace")]
    return "".join(parts)
