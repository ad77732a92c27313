"""Exact 95 % confidence intervals of rates and shares, also of few counts.

events per hour   Poisson (Garwood 1936) on the count, divided by the hours
shares            binomial (Clopper and Pearson 1934)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from edgealign.errors import InvalidInput

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A rate or share, with the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float


def rate_interval(count: int, hours: float) -> Interval:
    """Events per hour after `count` of them in `hours`."""
    if hours <= 0:
        raise InvalidInput("no sound was searched: nothing can be said about false alarms per hour")
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if count == 0 else _gamma_quantile(count, tail)
    # Without a single event only the upper end is open, so all of the 5 % is there.
    high = _gamma_quantile(count + 1, 1 - (2 * tail if count == 0 else tail))
    return Interval(count / hours, low / hours, high / hours)


def share_interval(count: int, total: int) -> Interval:
    """A share after `count` of `total`, total ≥ 1; one-sided where all or none were counted."""
    tail = (1 - CONFIDENCE) / 2
    low = (
        0.0
        if count == 0
        else _solve(lambda p: _binomial_cdf(count - 1, total, p), 1 - (tail if count < total else 2 * tail))
    )
    high = 1.0 if count == total else _solve(lambda p: _binomial_cdf(count, total, p), tail if count else 2 * tail)
    return Interval(count / total, low, high)


def _binomial_cdf(count: int, total: int, p: float) -> float:
    if p <= 0 or p >= 1:
        return 1.0 if p <= 0 or count >= total else 0.0
    log_terms = (
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) + k * math.log(p)
        + (total - k) * math.log1p(-p)
        for k in range(count + 1)
    )  # fmt: skip
    return min(1.0, math.fsum(map(math.exp, log_terms)))


def _solve(decreasing: Callable[[float], float], target: float) -> float:
    """Where a function on [0, 1] that falls reaches the target."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if decreasing(middle) > target else (low, middle)
    return (low + high) / 2


def _gamma_quantile(shape: int, share: float) -> float:
    """The mean at which a Poisson count is below `shape` with the probability 1 - share."""

    def poisson_below(mean: float) -> float:
        if mean <= 0:
            return 1.0
        return math.fsum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(shape))

    high = shape + 10 * math.sqrt(shape) + 20
    return high * _solve(lambda x: poisson_below(x * high), 1 - share)
