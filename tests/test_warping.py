"""Takes of one word, aligned in time.

Run: python -m pytest tests/test_warping.py
"""

from __future__ import annotations

import numpy as np
import pytest

from edgealign.train.warping import KNOTS, warped

N_MELS = 24


def word(pace: float, n_frames: int, seed: int = 0) -> np.ndarray:
    """A word whose moment t lies at the share t^pace of the take: four sounds of a quarter of it each, in noise."""
    sounds = np.random.default_rng(0).normal(0, 2, (4, N_MELS))
    moment = ((np.arange(n_frames) + 0.5) / n_frames) ** (1 / pace)
    noise = np.random.default_rng(seed).normal(0, 0.3, (n_frames, N_MELS))
    return sounds[(4 * moment).astype(int)] + noise


def test_moments_of_a_word_are_found_in_every_take_whatever_its_pace() -> None:
    paces = [0.6, 0.8, 1.0, 1.0, 1.2, 1.7]
    found = warped([word(pace, 80 + 10 * i, i) for i, pace in enumerate(paces)])
    assert found.shape == (len(paces), len(KNOTS))
    borders = np.stack([np.interp((0.25, 0.5, 0.75), KNOTS, row) for row in found])
    # The mean has a pace of its own; between takes, the borders of the sounds must be where each take has them.
    true = np.array([[share**pace for share in (0.25, 0.5, 0.75)] for pace in paces])
    of_mean = np.interp(borders[2], true[2], (0.25, 0.5, 0.75))  # by a take of even pace
    for pace, row in zip(paces, borders, strict=True):
        np.testing.assert_allclose(row, of_mean**pace, atol=0.04)
    assert np.abs(borders - (0.25, 0.5, 0.75)).max() > 0.1  # shares of the length would not have done


def test_moments_never_go_back_and_keep_the_ends() -> None:
    found = warped([word(1.0, n, n) for n in (1, 2, 3, 7, 40)])
    assert (np.diff(found, axis=1) >= 0).all()
    np.testing.assert_array_equal(found[:, 0], 0)
    np.testing.assert_array_equal(found[:, -1], 1)


@pytest.mark.parametrize("n_takes", [1, 70])
def test_takes_that_are_alike_are_not_warped(n_takes: int) -> None:
    found = warped([word(1.0, 60)] * n_takes)
    np.testing.assert_allclose(found, np.tile(KNOTS, (n_takes, 1)), atol=0.02)


def test_silence_has_moments_all_the_same() -> None:
    found = warped([np.full((n, N_MELS), -15.0) for n in (5, 9)])
    assert np.isfinite(found).all()
