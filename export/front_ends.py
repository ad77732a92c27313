"""Front ends of encoders that edgealign did not train: from a JSON file, or what finds words at any sample rate."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgealign.errors import BundleUnreadable, InputUnreadable, InvalidInput
from edgealign.inputs import FrontEnd, read_input
from edgealign.train.front_end import FRONT_END, WINDOWS, mel_filters

LOGS = {"ln": 1.0, "log10": 1 / math.log(10), "db": 10 / math.log(10)}


def read_front_end(path: Path, sample_rate_hz: int | None) -> tuple[FrontEnd, np.ndarray, tuple[float, float]]:
    """Front end, filters, and (factor, offset) from natural logs of energies to what the model was trained on."""
    numbers = {
        "version": 1,
        "mel_scale": "htk",
        "mel_norm": "none",
        "log": "ln",
        "mean": 0.0,
        "std": 1.0,
        "energy_floor": 1e-10,
    }
    try:
        given = json.loads(path.read_bytes())
    except OSError as error:
        raise InputUnreadable(f"'{path}' cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InvalidInput(f"'{path}' is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise InvalidInput(f"'{path}' is not a JSON object with the numbers of a front end")
    if sample_rate_hz is not None and given.setdefault("sample_rate_hz", sample_rate_hz) != sample_rate_hz:
        raise InvalidInput(f"'{path}' says {given['sample_rate_hz']} Hz and --sample-rate {sample_rate_hz}: which one?")
    known = {field.name for field in fields(FrontEnd)}
    given.setdefault("low_hz", 0.0)
    given.setdefault("high_hz", given.get("sample_rate_hz", 0) / 2)
    numbers |= given
    missing = sorted(known - set(numbers))
    unknown = sorted(set(given) - known - {"mel_scale", "mel_norm", "log", "mean", "std"})
    if missing or unknown:
        raise InvalidInput(f"'{path}' lacks {missing} and has the unknown keys {unknown}: see docs/import.md")
    checks = (("mel_scale", ("htk", "slaney")), ("mel_norm", ("none", "slaney")), ("log", tuple(LOGS)))
    for key, allowed in checks:
        if numbers[key] not in allowed:
            raise InvalidInput(f"'{key}' of '{path}' is {numbers[key]!r}: expected {' or '.join(allowed)}")
    for key in ("mean", "std"):
        if (
            type(numbers[key]) not in (int, float)
            or not math.isfinite(numbers[key])
            or (key == "std" and not numbers[key])
        ):
            raise InvalidInput(f"'{key}' of '{path}' is {numbers[key]!r}: expected a number")
    section = {key: numbers[key] for key in known}
    windows = {"version": 2, "window_s": 1.0, "hop_s": 1.0, "min_s": 1.0}
    try:
        front_end = read_input({"kind": "log_mel", "front_end": section, "windows": windows}).front_end
    except BundleUnreadable as error:
        raise InvalidInput(f"'{path}' makes no usable front end: {error}") from None
    filters = mel_filters(f=front_end, scale=numbers["mel_scale"], norm=numbers["mel_norm"])
    return front_end, filters, (LOGS[numbers["log"]] / numbers["std"], -numbers["mean"] / numbers["std"])


def word_front_end(rate_hz: int) -> FrontEnd:
    """What finds words at any sample rate: the front end of the shipped encoder, as near as whole samples allow."""
    if not 8_000 <= rate_hz <= 48_000:
        raise InvalidInput(f"words are found at 8000 to 48000 Hz, not at {rate_hz}: add --window")
    shipped = FRONT_END
    window, hop = (n * rate_hz // shipped.sample_rate_hz for n in (shipped.window_samples, shipped.hop_samples))
    return replace(
        shipped, sample_rate_hz=rate_hz, window_samples=window, hop_samples=hop, n_fft=1 << (window - 1).bit_length(),
        high_hz=min(shipped.high_hz, 0.475 * rate_hz),
    )  # fmt: skip


def word_windows(front_end: FrontEnd) -> dict[str, Any]:
    """The window policy of the shipped encoder, in frames of the front end."""
    ratio = FRONT_END.seconds(1) / front_end.seconds(1)
    shipped = asdict(WINDOWS)
    return shipped | {key: max(1, round(n * ratio)) for key, n in shipped.items() if key.endswith("_frames")}
