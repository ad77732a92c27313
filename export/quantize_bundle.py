"""A bundle -> the same with an int8 variant of its encoder that passed the gates."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from edgealign.bundle import GOLDEN, Bundle, check_target, write_bundle
from edgealign.errors import InputUnreadable
from edgealign.export.gates import Candidate, Evaluation, quantize_checked
from edgealign.export.quantize import session_of
from edgealign.export.sensitivity import Report
from edgealign.samples import check_takes_samples, mean_of, open_sample, values
from edgealign.sources import collect_clips

MAX_WINDOWS_PER_FILE = 8  # a long recording is one voice, one place
COMPUTED = ("format", "format_version", "files", "fingerprint")  # keys of a manifest that `write_bundle` makes


def quantize_bundle(
    path: str | os.PathLike | None,
    samples: Sequence[str | os.PathLike],
    target: str | os.PathLike,
    method: str = "auto",
    evaluate: str | os.PathLike | None = None,
    report: Report = lambda line: None,
) -> Bundle:
    """Writes a bundle with one variant more at `target`, which may be `path`; see `gates.quantize_checked`.

    path       of a bundle; the shipped one where None, see Bundle.open
    samples    files or folders of what the encoder will meet; they go through the bundle's own input path
    evaluate   folder of labels, as for `enroll`, of which episodes are drawn
    raises     QuantizationLost where nothing passes; then nothing was written

    The variant that is fastest on this machine becomes the default. The fingerprint is that of another encoder, so
    quantize first and enroll then.
    """
    check_target(target)
    bundle = Bundle.open(path)
    check_takes_samples(bundle)
    source = "fp32" if "fp32" in bundle.variants else bundle.variant
    data = bundle.read(bundle.encoder_file(source))
    inputs = [x for _, found in _inputs(bundle, samples, report) for x in found[:MAX_WINDOWS_PER_FILE]]
    evaluation = None if evaluate is None else _evaluation(bundle, evaluate, report)
    candidate = quantize_checked(data, bundle.input.tensor, inputs, method, evaluation, report)
    return _write(bundle, source, candidate, target, report)


def _inputs(bundle: Bundle, paths: Sequence[str | os.PathLike], report: Report) -> list[tuple[str, list[np.ndarray]]]:
    """The label of each sample that can be used, and what the encoder takes of it."""
    collected = collect_clips(paths, None, bundle.modality)
    if collected.problems:
        raise collected.problems[0]
    found = []
    for clip in collected.clips:
        try:
            taken = values(bundle, open_sample(bundle, clip.path))
        except InputUnreadable as error:
            report(f"passed over: {error}")
            continue
        if taken:
            found.append((clip.label, taken))
        else:
            report(f"passed over: no sound stands out of '{clip.path}'")
    if not found:
        raise InputUnreadable(
            f"none of the {bundle.sample_noun}s in {', '.join(map(repr, map(str, paths)))} can be used"
        )
    return found


def _evaluation(bundle: Bundle, folder: str | os.PathLike, report: Report) -> Evaluation:
    labeled = _inputs(bundle, [folder], report)

    def embed(model: bytes) -> np.ndarray:
        session, name = session_of(model), bundle.input.tensor
        rows = [mean_of(session.run(["embedding"], {name: x})[0][0] for x in taken) for _, taken in labeled]
        return np.stack(rows)

    return Evaluation(embed, [label for label, _ in labeled])


def _write(bundle: Bundle, source: str, made: Candidate, target: str | os.PathLike, report: Report) -> Bundle:
    manifest = bundle.manifest
    variants = {name: dict(entry) for name, entry in manifest["encoder"]["variants"].items()}
    file = f"encoder.{made.method}.onnx"
    replaced = variants.get(made.method, {}).get("file")
    variants[made.method] = {"file": file, **asdict(made.drift), "latency_ms": round(made.latency_ms, 4)}
    variants[source]["latency_ms"] = round(made.fp32_latency_ms, 4)
    if made.accuracy is not None:
        variants[made.method]["accuracy"] = round(made.accuracy.percent / 100, 5)
        variants[source]["accuracy"] = round((made.accuracy.percent + made.accuracy.loss) / 100, 5)
    faster = made.latency_ms < made.fp32_latency_ms
    default = made.method if faster else manifest["encoder"]["default"]
    if not faster:
        report(f"{made.method} is smaller than {source} but not faster here: {default} stays the default")
    with tempfile.TemporaryDirectory() as folder:
        for name in manifest["files"]:
            if name not in (GOLDEN, replaced):
                Path(folder, name).write_bytes(bundle.read(name))
        Path(folder, file).write_bytes(made.data)
        fields = {key: value for key, value in manifest.items() if key not in COMPUTED}
        return write_bundle(
            target, folder, golden_of=bundle, **fields | {"encoder": {"default": default, "variants": variants}}
        )
