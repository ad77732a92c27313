"""Which of a bundle's encoders runs by default: once this device was timed, the fastest that passed the gates.

A bundle states a default, the fastest one where it was made. `edgealign bundle info --measure` times all variants here
and remembers the fastest in the user's cache folder, for this processor and version of ONNX Runtime; from then on it is
taken. Nothing is timed on the way to an answer. Variants share stores, so a change of variant asks for nothing.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from edgealign.cache import cache_file, remember

if TYPE_CHECKING:
    from edgealign.bundle import Bundle

MIN_SNR_DB = 20.0  # signal to quantization noise of a variant that passes; bundles state it as `snr_db`
N_ROUNDS, N_WARM_UP = 60, 5


def passes(entry: dict[str, Any]) -> bool:
    """Whether a variant, as the manifest describes it, is close enough to be taken for its speed."""
    snr_db = entry.get("snr_db", MIN_SNR_DB)  # the one that others were made of states none
    return type(snr_db) in (int, float) and snr_db >= MIN_SNR_DB


def remembered(fingerprint: str) -> str | None:
    """The variant that was the fastest of a bundle on this device; None where that was not measured."""
    try:
        with open(_file(fingerprint), encoding="utf-8") as file:
            found = json.loads(file.read(10_000))
        return found["variant"] if found["device"] == _device() and isinstance(found["variant"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def measure(bundle: Bundle) -> dict[str, float]:
    """Median time in ms of each variant on one sample, in turns; remembers the fastest of those that pass."""
    import numpy as np

    from edgealign.bench import typical_input

    values = typical_input(bundle)
    names = bundle.variants
    times = np.empty((N_ROUNDS, len(names)))
    for at in range(-N_WARM_UP, N_ROUNDS):
        for column, name in enumerate(names):
            started = time.perf_counter()
            bundle.encode(values, name)
            times[max(at, 0), column] = (time.perf_counter() - started) * 1e3
    latency_ms = dict(zip(names, np.median(times, axis=0).tolist(), strict=True))
    entries = bundle.manifest["encoder"]["variants"]
    passed = [name for name in names if passes(entries[name])]
    if passed:
        fastest = min(passed, key=latency_ms.__getitem__)
        remember(_file(bundle.encoder_sha256), json.dumps({"device": _device(), "variant": fastest}))
    return latency_ms


def _file(fingerprint: str) -> str:
    return cache_file("variants", f"{fingerprint}.json")


def _device() -> str:
    import onnxruntime

    from edgealign.machine import cpu_name

    return f"{cpu_name()}, onnxruntime {onnxruntime.__version__}"
