"""One batch of power spectra, made to sound as if recorded by other people, elsewhere, with worse microphones.

Everything happens on power spectra and mel energies, for a whole batch at a time: a field condition costs a few
operations on [batch, frames, n_mels] instead of a convolution of waveforms. What cannot be written that way (clipping,
the pitch of the voice) is rendered into the corpus.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgealign.train.corpus import DB_LOWEST, DB_STEP
from edgealign.train.front_end import FRONT_END, WINDOWS, mel_filters

SHORTEST_FRAMES = 6  # that are left of a word, however fast it is said and wherever it is cut


@dataclass(frozen=True)
class AugmentConfig:
    """Shares are probabilities per clip."""

    tempo: tuple[float, float] = (0.72, 1.4)  # length of the word relative to the recording
    vocal_tract: tuple[float, float] = (0.84, 1.2)
    formant_bend: float = (
        0.05  # deviation of single regions of the spectrum from that factor, as an accent moves vowels
    )
    contrast: tuple[float, float] = (0.75, 1.25)  # exponent of the energies: how far peaks stand above valleys
    rhythm: float = 0.12  # how far a moment of the word may move, as a share of its length
    reverb_share: float = 0.35
    reverb_s: tuple[float, float] = (0.1, 0.8)  # time to fall by 60 dB
    equalizer_db: float = 9.0
    band_limit_share: float = 0.3
    noise_share: float = 0.85
    noise_snr_db: tuple[float, float] = (0.0, 40.0)
    level_db: tuple[float, float] = (-45.0, 5.0)
    masked_mels: int = 8
    masked_time: float = 0.12
    mask_share: float = 0.4
    longest_frames: int = 140  # a longer word is said faster: padding to it would cost the whole batch
    cut_share: float = 0.25  # of each end of a word: cut where it becomes faint, with nothing around
    cut_db: tuple[float, float] = (10.0, 30.0)  # below its loudest frame
    jitter_frames: int = 5  # error of the word's boundaries, beyond the padding that the runtime adds


class Augmenter:
    """Turns clips of a corpus into a batch of log-mels. Draws from `generator` alone, so that a seed fixes a batch."""

    def __init__(self, config: AugmentConfig, noise: np.ndarray) -> None:
        self.config = config
        warps = _warps(config, 128)
        self.filters = torch.from_numpy(np.stack([mel_filters(warp).T for warp in warps]))  # [128, bins, mels]
        self.plain = torch.from_numpy(np.ascontiguousarray(mel_filters().T))
        self.noise = noise
        self.mel_hz = _mel_centers_hz()

    def clean(self, clips: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """The clips as the runtime would hear them: log-mels float32 [n, n_mels, longest] and mask [n, 1, longest]."""
        power, lengths = self._stack(clips)
        return self._log(power @ self.plain, lengths)

    def __call__(self, clips: list[np.ndarray], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same, under field conditions. Clips are uint8 [n_frames, n_bins], cut at the word's boundaries."""
        config, n = self.config, len(clips)

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(n, *shape, generator=generator)

        power, lengths = self._stack(clips)
        warp = torch.randint(len(self.filters), (n,), generator=generator)
        mel = torch.bmm(power, self.filters[warp])
        bends = uniform(-config.rhythm, config.rhythm, 2)
        mel, lengths = _stretch(mel, lengths, uniform(*config.tempo), bends, config.longest_frames)
        mel = _to_unit_power(mel, lengths)
        mel = _to_unit_power(mel ** uniform(*config.contrast)[:, None, None], lengths)

        cut = uniform(0, 1, 2) < config.cut_share
        mel, lengths = _cut(mel, lengths, torch.where(cut, uniform(*config.cut_db, 2), torch.inf))
        room = uniform(0, 1, 2) * ~cut
        mel, lengths = _surround(mel, lengths, room[:, 0], room[:, 1])
        reverberant = uniform(0, 1) < config.reverb_share
        mel = _reverberate(mel, reverberant, uniform(*config.reverb_s), uniform(-12, 3))
        mel = mel * self._equalizer(uniform(-1, 1, 8))[:, None]
        noise = self._noise(mel, generator) * self._equalizer(uniform(-0.7, 0.7, 8))[:, None]
        noisy = (uniform(0, 1) < config.noise_share).float()
        snr_db = uniform(*config.noise_snr_db)
        gain = noisy * 10 ** (-snr_db / 10) / noise.mean(dim=(1, 2)).clamp(min=1e-12)
        mel = mel + noise * gain[:, None, None]
        mel = mel * self._band_limit(uniform(0, 1), uniform(0, 1), uniform(0, 1))[:, None]
        mel = mel * 10 ** ((uniform(*config.level_db)[:, None, None] + 20) / 10)
        log_mels, mask = self._log(mel, lengths)
        return self._mask_out(log_mels, mask, generator), mask

    def _stack(self, clips: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([len(clip) for clip in clips])
        stacked = torch.zeros(len(clips), int(lengths.max()), clips[0].shape[1])
        for row, clip in zip(stacked, clips, strict=True):
            row[: len(clip)] = torch.from_numpy(clip.astype(np.float32))
        return decode_power(stacked), lengths

    def _log(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        shortest = WINDOWS.min_frames
        if mel.shape[1] < shortest:
            mel = F.pad(mel, (0, 0, 0, shortest - mel.shape[1]))
        lengths = lengths.clamp(min=shortest)
        mask = (torch.arange(mel.shape[1])[None] < lengths[:, None]).float().unsqueeze(1)
        return torch.log(mel.clamp(min=FRONT_END.energy_floor)).transpose(1, 2).contiguous(), mask

    def _equalizer(self, knots: Tensor) -> Tensor:
        """Smooth gain curves: knots [n, k] in [-1, 1] -> power gains [n, n_mels]."""
        db = F.interpolate(knots.unsqueeze(1), self.plain.shape[1], mode="linear", align_corners=True).squeeze(1)
        return 10 ** (db * self.config.equalizer_db / 10)

    def _band_limit(self, chosen: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Telephone lines, 8 kHz recorders, phone microphones: power gains [n, n_mels]."""
        low_hz = (80 + 270 * low)[:, None]
        high_hz = torch.where(high < 0.5, torch.tensor(3700.0), 3300 + 3500 * high)[:, None]
        octaves = (
            torch.log2(low_hz / self.mel_hz).clamp(min=0) * 3 + torch.log2(self.mel_hz / high_hz).clamp(min=0) * 24
        )
        limited = 10 ** (-(octaves * 6).clamp(max=70) / 10)
        return torch.where((chosen < self.config.band_limit_share)[:, None], limited, torch.ones(()))

    def _noise(self, mel: Tensor, generator: torch.Generator) -> Tensor:
        """One noise per clip: colored (half), babble of other clips of the batch (a quarter), recorded (the rest)."""
        n, frames, mels = mel.shape
        tilt = (torch.rand(n, 1, generator=generator) * 2.5 - 0.5) * -torch.log(self.mel_hz / 1000)
        colored = -torch.log(torch.rand(n, frames, mels, generator=generator).clamp(min=1e-6)) * tilt.exp()[:, None]
        babble = sum(
            torch.roll(mel, (int(shift), int(offset)), dims=(0, 1))
            for shift, offset in zip(
                torch.randint(1, max(n, 2), (4,), generator=generator),
                torch.randint(frames, (4,), generator=generator),
                strict=True,
            )
        )
        kind = torch.rand(n, generator=generator)
        noise = torch.where((kind < 0.5)[:, None, None], colored, babble)
        if len(self.noise) > frames:
            for i in torch.nonzero(kind > 0.75).flatten().tolist():
                start = int(torch.randint(len(self.noise) - frames, (), generator=generator))
                recorded = decode_power(torch.from_numpy(self.noise[start : start + frames].astype(np.float32)))
                noise[i] = recorded @ self.plain + 1e-9
        return noise

    def _mask_out(self, log_mels: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        n, mels, _ = log_mels.shape
        lengths = mask.sum(dim=2)
        quiet = (log_mels + (1 - mask) * 100).amin(dim=2, keepdim=True)
        chosen = (torch.rand(n, 2, generator=generator) < self.config.mask_share).float()
        width = torch.rand(n, 1, generator=generator) * self.config.masked_mels * chosen[:, :1]
        start = torch.rand(n, 1, generator=generator) * (mels - width)
        band = torch.arange(mels)[None]
        hidden = ((band >= start) & (band < start + width))[:, :, None]
        width = torch.rand(n, 1, generator=generator) * self.config.masked_time * lengths * chosen[:, 1:]
        start = torch.rand(n, 1, generator=generator) * (lengths - width)
        frame = torch.arange(log_mels.shape[2])[None]
        hidden = hidden | ((frame >= start) & (frame < start + width))[:, None]
        return torch.where(hidden, quiet, log_mels)


def decode_power(levels: Tensor) -> Tensor:
    """Power of what `corpus.encode_power` made, given as float32; the lowest level is silence."""
    nepers = math.log(10) / 10
    return levels.mul(DB_STEP * nepers).add_(DB_LOWEST * nepers).exp_().mul_(levels.clamp(max=1))


def _mel_centers_hz() -> Tensor:
    filters = mel_filters()
    bins_hz = np.arange(filters.shape[1]) * FRONT_END.sample_rate_hz / FRONT_END.n_fft
    return torch.from_numpy((filters @ bins_hz / filters.sum(axis=1)).astype(np.float32))


def _warps(config: AugmentConfig, n: int) -> np.ndarray:
    """Factors for the edges of the mel filters, float64 [n, n_mels + 2]: one factor per voice, bent smoothly."""
    rng = np.random.default_rng(0)
    edges = np.linspace(0, 1, FRONT_END.n_mels + 2)
    bends = rng.normal(0, config.formant_bend, (n, 5))
    smooth = np.stack([np.interp(edges, np.linspace(0, 1, 5), bend) for bend in bends])
    return np.linspace(*config.vocal_tract, n)[:, None] * (1 + np.clip(smooth, -0.1, 0.1))


def _to_unit_power(mel: Tensor, lengths: Tensor) -> Tensor:
    power = mel.sum(dim=(1, 2), keepdim=True) / (lengths[:, None, None] * mel.shape[2])
    return mel / power.clamp(min=1e-12)


def _stretch(mel: Tensor, lengths: Tensor, tempo: Tensor, rhythm: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Resample every row in time to tempo x its length; rhythm [n, 2] bends time inside the word, its ends stay."""
    new = (lengths * tempo).round().clamp(min=SHORTEST_FRAMES, max=longest).long()
    position = (torch.arange(int(new.max()))[None] + 0.5) / new[:, None]
    slow, fast = (torch.sin(2 * torch.pi * turns * position) * rhythm[:, turns - 1, None] for turns in (1, 2))
    position = (position + slow / 2 + fast / 4).clamp(0, 1)
    at = (position * lengths[:, None] - 0.5).clamp(min=0)
    at = torch.minimum(at, (lengths[:, None] - 1).float())
    below = at.floor().long()
    above = torch.minimum(below + 1, lengths[:, None] - 1)
    share = (at - below).unsqueeze(2)
    index = (torch.arange(len(mel))[:, None], below), (torch.arange(len(mel))[:, None], above)
    inside = (torch.arange(int(new.max()))[None] < new[:, None]).unsqueeze(2)
    return (mel[index[0]] * (1 - share) + mel[index[1]] * share) * inside, new


def _cut(mel: Tensor, lengths: Tensor, below_db: Tensor) -> tuple[Tensor, Tensor]:
    """Rows from their first frame that is less than below_db [n, 2] below the loudest to their last such one."""
    frame = torch.arange(mel.shape[1])[None]
    power = mel.sum(dim=2) * (frame < lengths[:, None])
    limits = power.amax(dim=1)[:, None] * 10 ** (-below_db / 10)
    first = (power >= limits[:, :1]).float().argmax(dim=1)
    end = mel.shape[1] - (power >= limits[:, 1:]).flip(1).float().argmax(dim=1)
    end = torch.minimum(end, lengths)
    first = torch.minimum(first, (end - SHORTEST_FRAMES).clamp(min=0))
    new = end - first
    index = (first[:, None] + frame[:, : int(new.max())]).clamp(max=mel.shape[1] - 1)
    return mel[torch.arange(len(mel))[:, None], index] * (frame[:, : int(new.max())] < new[:, None]).unsqueeze(2), new


def _surround(mel: Tensor, lengths: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Room around the word, up to half as much again as the runtime pads on either side."""
    widest = int(1.5 * WINDOWS.pad_frames)
    lead, trail = (before * widest).long(), (after * widest).long()
    new = lengths + lead + trail
    index = torch.arange(int(new.max()))[None] - lead[:, None]
    inside = (index >= 0) & (index < lengths[:, None])
    rows = torch.arange(len(mel))[:, None]
    return mel[rows, index.clamp(0, mel.shape[1] - 1)] * inside.unsqueeze(2), new


def _reverberate(mel: Tensor, chosen: Tensor, seconds: Tensor, direct_db: Tensor) -> Tensor:
    """Add an exponentially decaying tail to the chosen rows; direct_db is the level of the tail's energy."""
    rows = torch.nonzero(chosen).flatten()
    if not len(rows):
        return mel
    decay = 10 ** (-6 * 0.01 / seconds[rows])[:, None]
    gain = (1 - decay) * 10 ** (direct_db[rows] / 10)[:, None]
    frames = mel[rows].unbind(dim=1)
    tail, tails = torch.zeros_like(frames[0]), []
    for frame in frames:
        tails.append(tail)
        tail = decay * (tail + gain * frame)
    wet = mel.clone()
    wet[rows] += torch.stack(tails, dim=1)
    return wet
