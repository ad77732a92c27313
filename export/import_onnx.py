"""`edgealign bundle import`: somebody else's ONNX model becomes a bundle. docs/import.md walks through it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgealign import __version__, machine
from edgealign.audio import MAX_RATE_HZ, MIN_RATE_HZ
from edgealign.bundle import Bundle, check_target
from edgealign.errors import BundleUnreadable, InvalidInput, ModelUnreadable
from edgealign.export.foreign import ForeignModel, Probe, Session, Step, session_of, steps_to_embedding
from edgealign.export.foreign_bundle import check_background, made_up_samples, made_up_sound, write_foreign_bundle
from edgealign.export.front_ends import read_front_end, word_front_end, word_windows
from edgealign.inputs import FrontEnd, Windows, read_input
from edgealign.manifest import FILTERS, MAX_NAME_CHARACTERS
from edgealign.train.front_end import mel_filters
from edgealign.words import log_mel

ENCODER = "encoder.onnx"
MAX_DRIFT = 1e-5  # cosine distance between the model and what was made of it
LATENCY_RUNS, LATENCY_S = 20, 1.0
SHORTEST_S = 0.5  # what a model that takes any length is asked to take at least


@dataclass(frozen=True)
class ImportOptions:
    """What a user says about a model; None where the model itself tells.

    kind         "waveform", "log_mel" or "image"
    window_s, hop_s, min_window_s   of windows over a clip; for speech, no window_s means the word in a clip
    front_end    JSON file with the numbers of the log-mel energies, see docs/import.md
    size_px      height and width
    mean, std    per color, of pixels in [0, 1]
    normalize    "none" or "zero-mean-unit-variance"
    pool         "mean", "max" or "none"
    """

    modality: str
    kind: str
    sample_rate_hz: int | None = None
    window_s: float | None = None
    hop_s: float | None = None
    min_window_s: float | None = None
    front_end: Path | None = None
    size_px: tuple[int, int] | None = None
    fit: str = "cover"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    normalize: str = "none"
    output: str | None = None
    pool: str | None = None
    background: Path | None = None
    name: str | None = None
    license: str = "not stated: ask whoever made the model"
    attribution: tuple[str, ...] = ()


# Fields of ImportOptions that one half of the kinds of input has no use for.
SOUND_OPTIONS = {
    "--sample-rate": "sample_rate_hz", "--window": "window_s", "--hop": "hop_s", "--min-window": "min_window_s",
    "--front-end": "front_end", "--normalize": "normalize",
}  # fmt: skip
PICTURE_OPTIONS = {"--size": "size_px", "--fit": "fit", "--mean": "mean", "--std": "std"}


@dataclass(frozen=True)
class Plan:
    """How samples get into a model.

    input     section of the manifest; its windows may still become shorter at least
    filters   float32 [n_mels, n_fft / 2 + 1], where there is a front end
    sizes     of the new input without the batch; "n_samples" or "n_frames" where it is open
    before    steps from it to the model's own input
    batch_is_open   as far as the model says
    """

    input: dict[str, Any]
    filters: np.ndarray | None
    tensor: str
    sizes: tuple[int | str, ...]
    before: tuple[Step, ...]
    batch_is_open: bool


def import_onnx(
    path: str | os.PathLike, target: str | os.PathLike, options: ImportOptions, report: Callable[[str], None]
) -> Bundle:
    """Makes a bundle of a model; what it found is reported line by line. Nothing is left where it fails.

    raises   InputUnreadable, ModelUnreadable for files that cannot be used; InvalidInput where options do not fit
    """
    check_target(target)
    check_background(options.background)
    for option, text in (("--name", options.name or ""), ("--license", options.license)):
        if len(text) > MAX_NAME_CHARACTERS:
            raise InvalidInput(f"{option} has {len(text)} characters: at most {MAX_NAME_CHARACTERS} are kept")
    model = ForeignModel.load(path)
    plan = make_plan(model, options)
    output, after, dim, probe = _embedding_of(model, plan, options)
    report(f"embedding: '{output}', {dim} values")
    encoder, session, plan = _fold(model, plan, output, after, dim)
    golden = made_up_samples(read_input(plan.input))
    drift = _compare(session, plan, probe, output, after)
    latency_ms = _latency_ms(session, plan)
    del session, probe
    batch = "any number at once" if plan.batch_is_open else "one at a time"
    report(f"windows: {batch}; {latency_ms:.1f} ms each; at most {drift:.1e} from the model itself")
    data = Path(path).read_bytes()
    manifest: dict[str, Any] = {
        "name": options.name or re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).stem)[:100] or "imported",
        "modality": options.modality,
        "bundle_version": "1",
        "dim": dim,
        "input": plan.input,
        "sources": {},
        "encoder": {
            "default": "fp32",
            "variants": {"fp32": {"file": ENCODER, "max_cosine_drift": drift, "latency_ms": round(latency_ms, 3)}},
        },
        "license": options.license,
        "attribution": list(options.attribution),
    }
    files = {ENCODER: encoder}
    if plan.filters is not None:
        files[FILTERS] = plan.filters.astype("<f4").tobytes()

    def card(background: str) -> str:
        return _card(manifest, plan, Path(path).name, hashlib.sha256(data).hexdigest(), output, background)

    return write_foreign_bundle(target, files, manifest, card, options.background, report, golden_samples=golden)


def make_plan(model: ForeignModel, options: ImportOptions) -> Plan:
    """How the options and the shape of the model's input fit together; InvalidInput where they do not."""
    planners = {"waveform": _plan_waveform, "log_mel": _plan_log_mel, "image": _plan_image}
    if (options.kind == "image") != (options.modality == "image"):
        raise InvalidInput(f"--input {options.kind} does not go with --modality {options.modality}")
    others = SOUND_OPTIONS if options.kind == "image" else PICTURE_OPTIONS
    if options.kind == "waveform":
        others = others | {"--front-end": "front_end"}
    for option, name in others.items():
        if getattr(options, name) != getattr(ImportOptions, name):
            raise InvalidInput(f"{option} means nothing for --input {options.kind}: leave it out")
    plan = planners[options.kind](model, options)
    if model.element_type != 1:
        plan = replace(plan, before=(*plan.before, Step("cast", model.element_type)))
    try:
        read_input(plan.input)
    except BundleUnreadable as error:
        raise InvalidInput(f"these options make no usable input: {error}") from None
    return plan


def _plan_waveform(model: ForeignModel, options: ImportOptions) -> Plan:
    rate_hz = options.sample_rate_hz
    if rate_hz is None:
        raise InvalidInput("at which sample rate the model hears is not in the file: add --sample-rate")
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise InvalidInput(f"--sample-rate is {rate_hz}: {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz are read")
    shape = model.shape
    fits = len(shape) in (1, 2) or (len(shape) == 3 and shape[1] in (1, None))
    if not fits:
        raise _wrong_shape(model, "[batch, samples], [batch, 1, samples] or [samples]")
    batch_is_open = len(shape) > 1 and _is_open_batch(model)
    before = {1: [Step("squeeze", 0)], 2: [], 3: [Step("unsqueeze", 1)]}[len(shape)]
    if options.normalize == "zero-mean-unit-variance":
        before.insert(0, Step("standardize"))
    n_samples = shape[-1]
    section: dict[str, Any] = {"kind": "waveform", "sample_rate_hz": rate_hz}
    filters = None
    if options.modality == "speech" and options.window_s is None and n_samples is None:
        front_end = word_front_end(rate_hz)
        section |= {"windows": word_windows(front_end), "front_end": asdict(front_end)}
        filters = mel_filters(f=front_end)
    else:
        section["windows"] = _clip_windows(options, None if n_samples is None else n_samples / rate_hz)
    return Plan(section, filters, "waveform", (n_samples or "n_samples",), tuple(before), batch_is_open)


def _plan_log_mel(model: ForeignModel, options: ImportOptions) -> Plan:
    if options.front_end is None:
        raise InvalidInput("how the log-mel energies are made is not in the file: add --front-end with a JSON file")
    if options.normalize != "none":
        raise InvalidInput("--normalize is for waveforms: mean and std of log-mel energies belong in --front-end")
    front_end, filters, (factor, offset) = read_front_end(options.front_end, options.sample_rate_hz)
    shape, n_mels = model.shape, front_end.n_mels
    if len(shape) == 4 and shape[3] == 1 != shape[1]:
        channel, inner = 3, shape[1:3]
    elif len(shape) == 4 and shape[1] in (1, None):
        channel, inner = 1, shape[2:]
    elif len(shape) == 3:
        channel, inner = None, shape[1:]
    else:
        raise _wrong_shape(model, f"[batch, {n_mels}, frames], with or without a channel, in either order")
    bands = [axis for axis in (0, 1) if inner[axis] == n_mels] or [axis for axis in (0, 1) if inner[axis] is None]
    if not bands or (len(bands) == 2 and inner[0] is None):
        raise _wrong_shape(model, f"one axis of {n_mels} mel bands, as --front-end says")
    bands_first = bands[0] == 0
    n_frames = inner[1] if bands_first else inner[0]
    before = [] if (factor, offset) == (1.0, 0.0) else [Step("affine", (factor, offset))]
    before += [] if bands_first else [Step("transpose", (0, 2, 1))]
    before += [] if channel is None else [Step("unsqueeze", channel)]
    section: dict[str, Any] = {"kind": "log_mel", "front_end": asdict(front_end)}
    if options.modality == "speech" and options.window_s is None and n_frames is None:
        section["windows"] = word_windows(front_end)
    else:
        natural_s = None
        if n_frames is not None:
            n_samples = (n_frames - 1) * front_end.hop_samples + front_end.window_samples
            natural_s = n_samples / front_end.sample_rate_hz
        section["windows"] = _clip_windows(options, natural_s, front_end)
    return Plan(section, filters, "log_mel", (n_mels, n_frames or "n_frames"), tuple(before), _is_open_batch(model))


def _plan_image(model: ForeignModel, options: ImportOptions) -> Plan:
    shape = model.shape
    if len(shape) != 4 or {3, None}.isdisjoint((shape[1], shape[3])):
        raise _wrong_shape(model, "[batch, 3, height, width] or [batch, height, width, 3]")
    # Where the colors are an open axis too, they come first, as ONNX's convolutions take them.
    channels_first = shape[1] == 3 or (shape[1] is None and shape[3] != 3)
    sides = shape[2:] if channels_first else shape[1:3]
    wanted = options.size_px or (None, None)
    size = tuple(of_model or given for of_model, given in zip(sides, wanted, strict=True))
    if None in size:
        raise InvalidInput(f"'{model.name}' takes pictures of any size: say with --size which it was made for")
    if options.size_px is not None and size != options.size_px:
        raise InvalidInput(f"'{model.name}' takes pictures of {size[0]}x{size[1]}: --size does not fit")
    if len(options.mean) != 3 or len(options.std) != 3 or 0 in options.std:
        raise InvalidInput("--mean and --std have one number or three, and no std is 0")
    mean, std = (np.array(values, dtype=np.float64)[:, None, None] for values in (options.mean, options.std))
    before = []
    if options.mean != (0.0,) * 3 or options.std != (1.0,) * 3:
        before.append(Step("affine", ((1 / std).astype(np.float32), (-mean / std).astype(np.float32))))
    if not channels_first:
        before.append(Step("transpose", (0, 2, 3, 1)))
    section = {"kind": "image", "height_px": size[0], "width_px": size[1], "fit": options.fit}
    return Plan(section, None, "image", (3, *size), tuple(before), _is_open_batch(model))


def _clip_windows(options: ImportOptions, natural_s: float | None, front_end: FrontEnd | None = None) -> dict[str, Any]:
    """natural_s   the one length that the model takes; None where it takes any."""
    window_s = options.window_s if options.window_s is not None else natural_s
    if window_s is None:
        raise InvalidInput("the model takes sounds of any length: say with --window how long they are to be, in s")
    if natural_s is not None and not math.isclose(window_s, natural_s, rel_tol=1e-6):
        # A window may be a little longer than its last frame.
        slack_s = 0 if front_end is None else front_end.hop_samples / front_end.sample_rate_hz
        if not natural_s <= window_s < natural_s + slack_s:
            raise InvalidInput(f"the model takes sounds of {natural_s:g} s only: --window {window_s:g} does not fit")
    least_s = window_s if natural_s is not None else min(window_s, SHORTEST_S)
    if options.min_window_s is not None:
        if natural_s is not None and options.min_window_s != window_s:
            raise InvalidInput(f"the model takes sounds of {natural_s:g} s only: --min-window does not fit")
        least_s = options.min_window_s
    hop_s = options.hop_s if options.hop_s is not None else window_s / 2
    return {"version": 2, "window_s": window_s, "hop_s": hop_s, "min_s": least_s}


def _is_open_batch(model: ForeignModel) -> bool:
    if model.shape[0] not in (None, 1):
        raise _wrong_shape(model, "a batch of any size, or of 1")
    return model.shape[0] is None


def _wrong_shape(model: ForeignModel, expected: str) -> ModelUnreadable:
    shown = ", ".join("any" if size is None else str(size) for size in model.shape)
    return ModelUnreadable(f"the input '{model.taken}' of '{model.name}' has the shape [{shown}]: expected {expected}")


def _embedding_of(model: ForeignModel, plan: Plan, options: ImportOptions) -> tuple[str, list[Step], int, Probe]:
    """The output that is the embedding, the steps that make unit rows of it, and how many values it has."""
    probe, names = model.with_output(options.output)
    values = _values(plan, seed=0)
    found = probe.run(values, plan.before, names)
    longer = found
    if isinstance(plan.sizes[-1], str):
        longer = probe.run(np.concatenate([values, values], axis=-1), plan.before, names)
    tried: dict[str, list[Step]] = {}
    refused: list[InvalidInput] = []
    for name in names:
        what = f"the output '{name}' of '{model.name}'"
        try:
            tried[name] = steps_to_embedding(found[name].shape, longer[name].shape, options.pool, what)
        except InvalidInput as error:
            refused.append(error)
    if not tried:
        raise refused[0]
    if len(tried) > 1:
        shown = ", ".join(f"'{name}' {list(found[name].shape)}" for name in tried)
        raise InvalidInput(
            f"'{model.name}' has several outputs that may be the embedding ({shown}): add --embedding NAME"
        )
    name, steps = next(iter(tried.items()))
    if found[name].dtype != np.float32:
        steps = [Step("cast", 1), *steps]
    embedding = _unit_rows(found[name], steps)
    return name, steps, embedding.shape[1], probe


def _unit_rows(output: np.ndarray, after: Sequence[Step]) -> np.ndarray:
    with np.errstate(all="ignore"):  # whoever compares them looks for NaN and infinity
        for step in after:
            output = step.compute(output)
    return output


def _fold(model: ForeignModel, plan: Plan, output: str, after: Sequence[Step], dim: int) -> tuple[bytes, Session, Plan]:
    """The encoder as the bundle holds it; with a batch of 1 where several at once do not give what each gives."""

    def made(batch: int | str) -> tuple[bytes, Session]:
        data = model.wrapped(output, plan.tensor, [batch, *plan.sizes], plan.before, after, dim)
        return data, session_of(data, "the encoder made of it")

    if plan.batch_is_open:
        encoder, session = made("batch")
        values = np.concatenate([_values(plan, seed=0), _values(plan, seed=1)])
        together = _run_or_none(session, plan, values)
        alone = [_run_or_none(session, plan, values[i : i + 1]) for i in range(2)]
        if (
            together is None
            or any(row is None for row in alone)
            or np.abs(np.concatenate(alone) - together).max() > 1e-4
        ):
            plan = replace(plan, batch_is_open=False)
    if not plan.batch_is_open:
        encoder, session = made(1)
    windows = plan.input.get("windows", {})
    if windows.get("version") == 2 and windows["min_s"] < windows["window_s"]:
        shortest = _values(plan, seed=0, seconds=windows["min_s"])
        if _run_or_none(session, plan, shortest) is None:
            plan = replace(plan, input=plan.input | {"windows": windows | {"min_s": windows["window_s"]}})
    return encoder, session, plan


def _run_or_none(session: Session, plan: Plan, values: np.ndarray) -> np.ndarray | None:
    try:
        (found,) = session.run(["embedding"], {plan.tensor: values})
    except Exception:  # ONNX Runtime raises a dozen unrelated types
        return None
    return found if np.isfinite(found).all() else None


def _values(plan: Plan, seed: int, seconds: float | None = None) -> np.ndarray:
    """A made-up input of one sample: float32 [1, ...]."""
    if plan.tensor == "image":
        return np.random.default_rng(seed).random((1, *plan.sizes), dtype=np.float32)
    taken = read_input(plan.input)
    if isinstance(taken.windows, Windows):
        n_samples = taken.sample_rate_hz
    else:
        n_samples = math.floor((seconds or taken.windows.window_s) * taken.sample_rate_hz + 0.5)
    samples = made_up_sound(n_samples, taken.sample_rate_hz, seed)
    if plan.tensor == "waveform":
        return samples[None]
    return log_mel(samples, taken.front_end, plan.filters)[None]


def _compare(session: Session, plan: Plan, probe: Probe, output: str, after: Sequence[Step]) -> float:
    """Largest cosine distance between the model and the encoder made of it; ModelUnreadable beyond MAX_DRIFT."""
    rows = []
    for seed in range(3):
        values = _values(plan, seed)
        want = _unit_rows(probe.run(values, plan.before, [output])[output], after)
        (have,) = session.run(["embedding"], {plan.tensor: values})
        if not np.isfinite(want).all() or not np.isfinite(have).all():
            raise ModelUnreadable(
                f"'{probe.model.name}' answers with NaN or infinity on a plain sample: it cannot be used"
            )
        rows.append((have[0].astype(np.float64), want[0].astype(np.float64)))
    drift = max(float(1 - have @ want / np.linalg.norm(have) / np.linalg.norm(want)) for have, want in rows)
    if drift > MAX_DRIFT:
        raise ModelUnreadable(
            f"what was made of '{probe.model.name}' is a cosine distance of {drift:.1e} from it: nothing is written"
        )
    first = rows[0][0]
    if all(1 - first @ have < 1e-9 for have, _ in rows[1:]):
        raise InvalidInput(
            f"the output '{output}' of '{probe.model.name}' is the same for different samples: name another --embedding"
        )
    return max(drift, 0.0)


def _latency_ms(session: Session, plan: Plan) -> float:
    """Median of one window or picture, after a warm-up, on one thread."""
    values = _values(plan, seed=0)
    times: list[float] = []
    session.run(None, {plan.tensor: values})
    begin = time.perf_counter()
    while len(times) < LATENCY_RUNS and (not times or time.perf_counter() - begin < LATENCY_S):
        start = time.perf_counter()
        session.run(None, {plan.tensor: values})
        times.append((time.perf_counter() - start) * 1e3)
    return float(np.median(times))


def _card(manifest: dict[str, Any], plan: Plan, file: str, sha256: str, output: str, background: str) -> str:
    """The model card."""
    variant = manifest["encoder"]["variants"]["fp32"]
    attribution = "".join(f"- {line}\n" for line in manifest["attribution"]) or "- none was stated\n"
    steps = ", ".join(step.operator for step in plan.before) or "none"
    system = machine.describe()
    return (
        f"# {manifest['name']}\n\n"
        f"License: {manifest['license']}\n\nData and authors, as stated by whoever imported it:\n{attribution}\n"
        f"Imported by edgealign {__version__} from `{file}` (SHA-256 `{sha256}`); its output `{output}` is the "
        f"embedding.\n"
        f"What the model was trained on, and for what it may be used, edgealign does not know.\n\n"
        f"- input: `{json.dumps(plan.input, sort_keys=True)}`\n"
        f"- done to it inside the graph: {steps}\n"
        f"- embedding: {manifest['dim']} values of unit length\n"
        f"- batch: {'any' if plan.batch_is_open else '1'}\n"
        f"- largest cosine distance to the model itself: {variant['max_cosine_drift']:.1e}\n"
        f"- one window or picture through the encoder: {variant['latency_ms']:g} ms (median, one thread, "
        f"{system.get('cpu', 'unknown processor')})\n\n{background}\n"
    )
