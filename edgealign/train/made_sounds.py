"""Sounds that nobody recorded: classes without end, so that an encoder learns what sounds can differ in.

A class is a recipe of one or two layers (a tone with overtones, a band of noise, a row of clicks), each with an
envelope, a contour of pitch and a modulation. Samples of a class differ in all numbers by a tenth, in their start and
in noise.
"""

from __future__ import annotations

import numpy as np

from edgealign.train.front_end import SOUND_FRONT_END

SECONDS = 3.2


def made_sound(recipe: int, take: int, seed: int = 0) -> np.ndarray:
    """Float32 samples at 16 kHz, peak 0.5; the same arguments always give the same."""
    of_recipe, of_take = np.random.default_rng([seed, recipe]), np.random.default_rng([seed, recipe, take])
    n = int(SECONDS * SOUND_FRONT_END.sample_rate_hz)
    samples = np.zeros(n)
    for _ in range(1 + int(of_recipe.random() < 0.4)):
        samples += _layer(n, of_recipe, of_take) * of_recipe.uniform(0.4, 1)
    samples /= np.abs(samples).max() + 1e-9
    samples += of_take.normal(0, 10 ** of_take.uniform(-4, -1.5), n)
    return (samples * 0.5 / np.abs(samples).max()).astype(np.float32)


def _layer(n: int, of_recipe: np.random.Generator, of_take: np.random.Generator) -> np.ndarray:
    rate = SOUND_FRONT_END.sample_rate_hz
    t = np.arange(n) / rate

    def number(low: float, high: float) -> float:
        """Between low and high by recipe, evenly in octaves, and up to a tenth off by take."""
        return float(np.exp(of_recipe.uniform(np.log(low), np.log(high))) * of_take.uniform(0.9, 1.1))

    kind = of_recipe.choice(["tone", "noise", "clicks"], p=[0.45, 0.35, 0.2])
    pitch_hz, every_s, share = number(80, 3000), number(0.08, 1.5), number(0.15, 1.0)
    phase = (t / every_s + of_take.random()) % 1.0  # of the repetition
    contour = number(0.05, 1.2) * of_recipe.choice([-1, 0, 1]) * phase
    wobble = number(0.005, 0.3) * of_recipe.choice([0, 1]) * np.sin(2 * np.pi * number(3, 40) * t)
    if kind == "tone":
        turns = np.cumsum(np.clip(pitch_hz * np.exp2(contour + wobble), 30, 7000)) / rate
        slope, n_partials = of_recipe.uniform(0.3, 2.5), int(of_recipe.integers(1, 12))
        odd = int(of_recipe.random() < 0.3) + 1
        partials = [i for i in range(1, n_partials * odd + 1, odd) if i * pitch_hz < 6500] or [1]
        wave = sum(np.sin(2 * np.pi * i * turns) / i**slope for i in partials)
    elif kind == "noise":
        spectrum = np.fft.rfft(of_take.normal(0, 1, n))
        hz = np.fft.rfftfreq(n, 1 / rate) + 1
        width = number(0.1, 3)
        wave = np.fft.irfft(spectrum * np.exp(-0.5 * (np.log2(hz / (pitch_hz * 1.5)) / width) ** 2), n)
    else:
        wave = np.zeros(n)
        gap = number(0.01, 0.25) * rate
        at = np.cumsum(np.maximum(of_take.normal(gap, gap * of_recipe.choice([0.02, 0.5]), int(2 * n / gap) + 1), 8))
        at = at[at < n].astype(int)
        wave[at] = of_take.uniform(0.5, 1, len(at))
        length = int(rate * min(number(0.002, 0.06), 0.1))
        ring = np.sin(2 * np.pi * pitch_hz * np.arange(length) / rate + 1) * np.exp(-5 * np.arange(length) / length)
        wave = np.convolve(wave, ring)[:n]
    shape = of_recipe.choice(["steady", "bursts", "decays", "swells"], p=[0.25, 0.3, 0.3, 0.15])
    if shape == "bursts":
        wave = wave * (phase < min(share, 0.95))
    elif shape == "decays":
        wave = wave * np.exp(-phase * number(2, 12))
    elif shape == "swells":
        wave = wave * np.sin(np.pi * phase) ** number(0.5, 4)
    if of_recipe.random() < 0.3:
        wave = wave * (1 + 0.9 * np.sin(2 * np.pi * number(4, 80) * t))
    return wave / (np.abs(wave).max() + 1e-9)
