"""What counts can promise, against scipy."""

from __future__ import annotations

import pytest
from scipy import stats

from edgealign.errors import InvalidInput
from edgealign.intervals import rate_interval, share_interval


@pytest.mark.parametrize("count", [0, 1, 2, 7, 40, 300])
def test_rates_have_the_exact_poisson_interval(count: int) -> None:
    found = rate_interval(count, 2.5)
    tail = 0.05 if count == 0 else 0.025
    assert found.value == count / 2.5
    assert found.high == pytest.approx(stats.gamma.ppf(1 - tail, count + 1) / 2.5, rel=1e-6)
    assert found.low == pytest.approx(0 if count == 0 else stats.gamma.ppf(tail, count) / 2.5, rel=1e-6)


@pytest.mark.parametrize(("count", "total"), [(0, 5), (5, 5), (3, 5), (1, 2), (90, 100), (1, 1)])
def test_shares_have_the_exact_binomial_interval(count: int, total: int) -> None:
    found = share_interval(count, total)
    tail = 0.05 if count in (0, total) else 0.025
    assert found.low == pytest.approx(0 if count == 0 else stats.beta.ppf(tail, count, total - count + 1), abs=1e-9)
    assert found.high == pytest.approx(
        1 if count == total else stats.beta.ppf(1 - tail, count + 1, total - count), abs=1e-9
    )


def test_five_clips_that_are_all_kept_promise_little() -> None:
    assert share_interval(5, 5).low == pytest.approx(0.05 ** (1 / 5))


def test_nothing_searched_promises_nothing() -> None:
    with pytest.raises(InvalidInput):
        rate_interval(0, 0.0)
