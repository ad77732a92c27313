"""A bundle -> the same with encoders in int8 that passed the gates."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgealign import __version__
from edgealign.bundle import Bundle, check_target, write_bundle
from edgealign.errors import InputUnreadable, InvalidInput
from edgealign.export.gates import Candidate, SampleEvaluation, SourceEvaluation, quantize_checked
from edgealign.export.quantize import session_of
from edgealign.export.sensitivity import Report
from edgealign.inputs import TextInput
from edgealign.manifest import CARD, GOLDEN, ImageSource
from edgealign.samples import check_takes_samples, mean_of, open_sample, values
from edgealign.sources import collect_clips

MAX_WINDOWS_PER_FILE = 8  # a long recording is one voice, one place
COMPUTED = ("format", "format_version", "files", "fingerprint")  # keys of a manifest that `write_bundle` makes
Labeled = list[tuple[str, np.ndarray]]  # label, and what an encoder takes, with a batch of one


def quantize_bundle(
    path: str | os.PathLike | None,
    samples: Sequence[str | os.PathLike],
    target: str | os.PathLike,
    method: str = "auto",
    evaluate: str | os.PathLike | None = None,
    report: Report = lambda line: None,
    texts: str | os.PathLike | None = None,
    pictures: Sequence[str | os.PathLike] = (),
) -> Bundle:
    """Writes a bundle with int8 encoders at `target`, which may be `path`; see `gates.quantize_checked`.

    path       of a bundle; the shipped one where None, see Bundle.open
    samples    files or folders of what the encoder will meet; they go through the bundle's own input path. Its int8
               encoder becomes one variant more, and the default where it is the fastest on this machine
    evaluate   folder of labels, as for `enroll`, whose samples say what accuracy is lost
    texts      file with a text a line, of the kind that labels start from: the text encoder is replaced by one in int8
    pictures   files or folders of them: the same of the picture encoder. For `evaluate` their folders are labels
    raises     QuantizationLost where nothing passes; then nothing was written

    The fingerprint is that of another encoder, so quantize first and enroll then.
    """
    check_target(target)
    bundle = Bundle.open(path)
    if not samples and texts is None and not pictures:
        raise InvalidInput("nothing was named to quantize with: add --samples, --texts or --pictures")
    if samples or evaluate is not None:
        check_takes_samples(bundle)
    labeled_texts = None if texts is None else _texts(bundle, texts, report)
    labeled_pictures = _pictures(bundle, pictures, report) if pictures else None
    made = _Quantized(bundle, method, evaluate, report)
    if samples:
        made.samples(samples)
    if labeled_texts is not None:
        made.source("text", labeled_texts)
    if labeled_pictures is not None:
        made.source("image", labeled_pictures)
    return made.write(target)


class _Quantized:
    """What becomes of a bundle: fields of its manifest and files, as one encoder after the other is quantized."""

    def __init__(self, bundle: Bundle, method: str, evaluate: str | os.PathLike | None, report: Report) -> None:
        self.bundle, self.method, self.report = bundle, method, report
        self.fields = {key: value for key, value in bundle.manifest.items() if key not in COMPUTED}
        self.files = {name: bundle.read(name) for name in bundle.manifest["files"] if name != GOLDEN}
        self.fp32 = "fp32" if "fp32" in bundle.variants else bundle.variant
        self.evaluation = None if evaluate is None else _evaluation(bundle, evaluate, report)

    def samples(self, paths: Sequence[str | os.PathLike]) -> None:
        """One variant more of the encoder of samples."""
        inputs = [x for _, found in _inputs(self.bundle, paths, self.report) for x in found[:MAX_WINDOWS_PER_FILE]]
        data = self.bundle.read(self.bundle.encoder_file(self.fp32))
        made = quantize_checked(data, self.bundle.input.tensor, inputs, self.method, self.evaluation, self.report)
        self._add_variant(made)

    def source(self, kind: str, labeled: Labeled) -> None:
        """Another encoder of the texts or pictures that a label starts from, in place of the one that there is."""
        source = self.bundle.source(kind)
        name = source.input.tensor if isinstance(source, ImageSource) else "tokens"
        inputs = [x for _, x in labeled]
        evaluation = None
        if self.evaluation is not None:

            def embed(model: bytes) -> np.ndarray:
                session = session_of(model)
                return np.concatenate([session.run(["embedding"], {name: x})[0] for x in asked])

            asked, labels = self._asked(kind, labeled)
            queries = self.evaluation.embed(self.bundle.read(self.bundle.encoder_file(self.fp32)))
            evaluation = SourceEvaluation(embed, labels, queries, self.evaluation.labels)
        what = {"text": "text encoder", "image": "picture encoder"}[kind]
        data = self.bundle.read(source.file)
        made = quantize_checked(
            data, name, inputs, self.method, evaluation, lambda line: self.report(f"{what}, {line}")
        )
        self._replace(kind, made)
        lost = "" if made.accuracy is None else f", {made.accuracy.loss:+.2f} points of accuracy lost"
        card = self.files.get(CARD, b"").decode("utf-8", "replace").rstrip("\n")
        self.files[CARD] = (
            f"{card}\n\nThe {what} was made {made.method} by edgealign {__version__}: {made.drift.snr_db:.1f} dB of "
            f"signal to quantization noise{lost}, {len(made.data) / len(data):.0%} of the size.\n"
        ).encode()

    def _asked(self, kind: str, labeled: Labeled) -> tuple[list[np.ndarray], list[str]]:
        """What the labels of the evaluation start from: their pictures, or the labels themselves as words."""
        if kind == "image":
            return [x for _, x in labeled], [label for label, _ in labeled]
        labels = sorted(set(self.evaluation.labels))
        return [self.bundle.tokenizer.encode(label).inputs["tokens"] for label in labels], labels

    def _add_variant(self, made: Candidate) -> None:
        encoder = self.fields["encoder"]
        variants = {name: dict(entry) for name, entry in encoder["variants"].items()}
        file = f"encoder.{made.method}.onnx"
        variants[made.method] = {"file": file, **asdict(made.drift), "latency_ms": round(made.latency_ms, 4)}
        variants[self.fp32]["latency_ms"] = round(made.fp32_latency_ms, 4)
        if made.accuracy is not None:
            variants[made.method]["accuracy"] = round(made.accuracy.percent / 100, 5)
            variants[self.fp32]["accuracy"] = round((made.accuracy.percent + made.accuracy.loss) / 100, 5)
        default = made.method if made.latency_ms < made.fp32_latency_ms else encoder["default"]
        if default != made.method:
            self.report(f"{made.method} is smaller than {self.fp32} but not faster here: {default} stays the default")
        self.fields["encoder"] = {"default": default, "variants": variants}
        self.files[file] = made.data

    def _replace(self, kind: str, made: Candidate) -> None:
        """The graph of a source; in a bundle of words alone, which has no other encoder, also that of its variants."""
        file = f"{kind}.{made.method}.onnx"
        self.files[file] = made.data
        if self.bundle.manifest["format_version"] == 1:
            self.fields["text_encoder"] = self.fields["text_encoder"] | {"file": file}
        else:
            sources = self.fields["sources"]
            self.fields["sources"] = sources | {kind: sources[kind] | {"file": file}}
        if isinstance(self.bundle.input, TextInput):
            entry = {"file": file, **asdict(made.drift), "latency_ms": round(made.latency_ms, 4)}
            self.fields["encoder"] = {"default": made.method, "variants": {made.method: entry}}

    def write(self, target: str | os.PathLike) -> Bundle:
        sources = self.fields.get("sources") or {"text": self.fields.get("text_encoder")}
        named: list[dict[str, Any]] = [*self.fields["encoder"]["variants"].values(), *filter(None, sources.values())]
        graphs = {entry["file"] for entry in named}
        with tempfile.TemporaryDirectory() as folder:
            for name, data in self.files.items():
                if name in graphs or not name.endswith(".onnx"):
                    Path(folder, name).write_bytes(data)
            return write_bundle(target, folder, golden_of=self.bundle, **self.fields)


def _texts(bundle: Bundle, path: str | os.PathLike, report: Report) -> Labeled:
    """Each text of a file that the bundle's tokenizer takes, and its tokens."""
    bundle.source("text")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputUnreadable(
            f"'{path}' cannot be read ({error.strerror}): name a text file with a word a line"
        ) from None
    except UnicodeDecodeError:
        raise InputUnreadable(f"'{path}' is not UTF-8: name a text file with a word a line") from None
    texts = list(dict.fromkeys(filter(None, map(str.strip, lines))))
    return _usable(
        ((text, lambda text=text: bundle.tokenizer.encode(text).inputs["tokens"]) for text in texts),
        f"none of the texts in '{path}' can be used: a word or short phrase a line is expected",
        report,
    )


def _pictures(bundle: Bundle, paths: Sequence[str | os.PathLike], report: Report) -> Labeled:
    """The label of each picture that can be used, and what the picture encoder takes of it."""
    from edgealign.images import fit, read_picture

    taken = bundle.source("image").input
    collected = collect_clips(paths, None, "image")
    if collected.problems:
        raise collected.problems[0]
    return _usable(
        ((one.label, lambda path=one.path: fit(read_picture(path).pixels, taken)[None]) for one in collected.clips),
        f"none of the pictures in {', '.join(map(repr, map(str, paths)))} can be used",
        report,
    )


def _usable(found: Iterable[tuple[str, Callable[[], np.ndarray]]], otherwise: str, report: Report) -> Labeled:
    """What could be read, with its label, and the rest reported; InputUnreadable where that is nothing."""
    labeled = []
    for label, read in found:
        try:
            labeled.append((label, read()))
        except (InputUnreadable, InvalidInput) as error:
            report(f"passed over: {error}")
    if not labeled:
        raise InputUnreadable(otherwise)
    return labeled


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


def _evaluation(bundle: Bundle, folder: str | os.PathLike, report: Report) -> SampleEvaluation:
    labeled = _inputs(bundle, [folder], report)

    def embed(model: bytes) -> np.ndarray:
        session, name = session_of(model), bundle.input.tensor
        rows = [mean_of(session.run(["embedding"], {name: x})[0][0] for x in taken) for _, taken in labeled]
        return np.stack(rows)

    return SampleEvaluation(embed, [label for label, _ in labeled])
