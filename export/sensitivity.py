"""Which layers stay in fp32: what each one costs is measured, and as few as are needed are left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Report = Callable[[str], None]
Layers = frozenset[str]


@dataclass(frozen=True)
class Choice:
    """data: the quantized model;  excluded: the nodes that stay in fp32;  snr_db: on the samples of the search"""

    data: bytes
    excluded: Layers
    snr_db: float


def least_excluded(
    quantize: Callable[[Layers], bytes],
    snr_db: Callable[[bytes], float],
    candidates: Sequence[Layers],
    enough_db: float,
    budget_s: float,
    report: Report,
) -> Choice:
    """The quantized model with as few nodes in fp32 as reach `enough_db`; the best that was found where none does.

    quantize     a model with the given nodes in fp32
    snr_db       signal-to-quantization-noise ratio of a model, on samples that the ranges were not taken from
    candidates   nodes that can be left out together, the likelier ones first: where time runs out, the rest is not
                 measured

    The noise of the layers adds up, so what one exclusion gains by itself ranks them; the most costly go first, in
    doubling numbers until enough is reached, then as few as a bisection finds. At most budget_s, one model longer.
    """
    started = reported = time.monotonic()
    whole = quantize(frozenset())
    best = Choice(whole, frozenset(), snr_db(whole))
    if best.snr_db >= enough_db:
        return best
    report(f"{best.snr_db:.1f} dB with every layer in int8: measuring what each of {len(candidates)} layers costs")
    gains: dict[Layers, float] = {}
    for layers in candidates:
        if time.monotonic() - started > 0.7 * budget_s:
            break
        gains[layers] = snr_db(quantize(layers)) - best.snr_db
        if time.monotonic() - reported > 5:
            reported = time.monotonic()
            report(f"{len(gains)} of {len(candidates)} layers measured")
    ranked = sorted((layers for layers in gains if gains[layers] > 0), key=lambda layers: -gains[layers])
    tried: dict[int, Choice] = {0: best}

    def reaches(n: int) -> bool:
        excluded = frozenset().union(*ranked[:n])
        data = quantize(excluded)
        tried[n] = Choice(data, excluded, snr_db(data))
        return tried[n].snr_db >= enough_db

    too_few, enough = 0, None
    while too_few < len(ranked) and enough is None and time.monotonic() - started < budget_s:
        n = min(max(1, 2 * too_few), len(ranked))
        too_few, enough = (too_few, n) if reaches(n) else (n, None)
    while enough is not None and enough - too_few > 1 and time.monotonic() - started < budget_s:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if reaches(middle) else (middle, enough)
    found = tried[enough] if enough is not None else max(tried.values(), key=lambda choice: choice.snr_db)
    n_excluded = len(found.excluded)
    report(f"{found.snr_db:.1f} dB with {n_excluded} layer{'s' * (n_excluded != 1)} in fp32")
    return found
