"""The encoders of the bundles `audio` and `image`: residual convolutions, statistics over positions, a linear map.

Batch normalization, not by groups: it is folded into the convolutions at export, and int8 costs little then.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgealign.errors import InvalidInput

DESCRIPTION_WEIGHT = 0.7  # against what was learned; chosen on validation classes of sounds and of pictures
NEPERS_HEARD = 12.0  # 52 dB: nothing further below the loudest point of a window counts
NEPERS_ACTIVE = 9.0  # 39 dB: frames further below the loudest one hardly count in the statistics


@dataclass(frozen=True)
class SenseConfig:
    """modality  "audio": log-mels of n_rows bands; "image": RGB pictures.  widths  of the stem and of the blocks.
    is_described  whether half of the embedding describes the sample, see `described`; not so while training."""

    modality: str = "audio"
    dim: int = 128
    n_rows: int = 64
    widths: tuple[int, ...] = (32, 48, 96, 160)
    dropout: float = 0.2
    is_described: bool = False


class Block(nn.Module):
    """Two convolutions and a shortcut, at half the resolution (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class Body(nn.Sequential):
    """Stem and blocks. [batch, channels, height, width] -> float32 [batch, widths[-1], lower, narrower]."""

    def __init__(self, channels: int, widths: tuple[int, ...], strides: list[tuple[int, int]]) -> None:
        stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, strides[0], 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        pairs = zip(widths[:-1], widths[1:], strides[1:], strict=True)
        super().__init__(stem, *(Block(*pair) for pair in pairs))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and computes_bfloat16()):
            return super().forward(x)
        with torch.autocast("cpu", torch.bfloat16):  # a third less time for a step
            return super().forward(x).float()


@functools.cache
def computes_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself: elsewhere it is slower than float32."""
    if not hasattr(torch.cpu, "get_capabilities"):  # PyTorch before 2.13
        return False
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


class SoundEncoder(nn.Module):
    """log_mel float32 [batch, n_mels, n_frames] -> features; the level of a window does not matter.

    Mean, deviation and maximum over time of what the convolutions find in each band, and mean, deviation and mean
    change of the bands themselves: classes that training never saw are told apart by these, too.
    """

    def __init__(self, config: SenseConfig) -> None:
        super().__init__()
        self.n_halvings = len(config.widths) - 1  # of time; the last block keeps it
        strides = [(2, 2)] * self.n_halvings + [(2, 1)]
        self.body = Body(1, config.widths, strides)
        n_bands = config.n_rows >> len(strides)
        self.bands = nn.BatchNorm1d(3 * config.n_rows)
        self.n_features = 3 * config.widths[-1] * n_bands + 3 * config.n_rows

    def forward(self, log_mel: Tensor) -> Tensor:
        top = log_mel.amax(dim=(1, 2), keepdim=True)
        x = (log_mel - top).clamp(min=-NEPERS_HEARD)
        level = torch.log(torch.exp(x).mean(dim=1, keepdim=True))
        active = torch.sigmoid(level - level.amax(dim=2, keepdim=True) + NEPERS_ACTIVE)  # [batch, 1, n_frames]
        x = x / 3 + 2
        mean, deviation = _weighted(x, active)
        change = torch.cat([(x[:, :, 1:] - x[:, :, :-1]).abs(), torch.zeros_like(x[:, :, :1])], dim=2)
        bands = torch.cat([mean, deviation, _weighted(change, active)[0]], dim=1)
        y = self.body(x.unsqueeze(1)).flatten(1, 2)
        for _ in range(self.n_halvings):
            active = F.max_pool1d(active, 3, 2, 1)
        mean, deviation = _weighted(y, active)
        return torch.cat([mean, deviation, y.amax(dim=2), self.bands(bands)], dim=1)


def _weighted(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over time of x [batch, channels, n] with weights [batch, 1, n]."""
    weight = weight / weight.sum(dim=2, keepdim=True)
    mean = (x * weight).sum(dim=2)
    square = ((x - mean.unsqueeze(2)) ** 2 * weight).sum(dim=2)
    return mean, torch.sqrt(square + 1e-4)


class PictureEncoder(nn.Module):
    """image float32 [batch, 3, height, width], RGB in 0..1 -> features: mean, deviation and maximum over positions."""

    def __init__(self, config: SenseConfig) -> None:
        super().__init__()
        self.body = Body(3, config.widths, [(2, 2)] * len(config.widths))
        self.n_features = 3 * config.widths[-1]

    def forward(self, image: Tensor) -> Tensor:
        y = self.body(image * 4 - 2).flatten(2)
        mean = y.mean(dim=2)
        deviation = torch.sqrt(((y - mean.unsqueeze(2)) ** 2).mean(dim=2) + 1e-4)
        return torch.cat([mean, deviation, y.amax(dim=2)], dim=1)


class SenseEncoder(nn.Module):
    """Features of either modality and the map to the embedding."""

    def __init__(self, config: SenseConfig) -> None:
        super().__init__()
        self.config = config
        self.features = SoundEncoder(config) if config.modality == "audio" else PictureEncoder(config)
        self.dropout = nn.Dropout(config.dropout)
        self.embedding = nn.Linear(self.features.n_features, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Embedding before it is normalized, [batch, dim]."""
        embedding = self.embedding(self.dropout(self.features(x)))
        if not self.config.is_described:
            return embedding
        learned, description = embedding.chunk(2, dim=1)
        return torch.cat([_unit(learned), DESCRIPTION_WEIGHT * _unit(description)], dim=1)

    def embed(self, x: Tensor) -> Tensor:
        """Unit rows [batch, dim]."""
        return F.normalize(self(x), dim=1)


def _unit(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).sum(dim=1, keepdim=True))


@torch.no_grad()
def described(encoder: SenseEncoder, samples: Sequence[Tensor]) -> SenseEncoder:
    """A trained encoder that tells apart new classes better, because half of its embedding stays free of the old ones.

    samples   training samples as the encoder reads them, in batches; more of them than half the embedding has numbers

    Training on a few dozen labels fills half of the dimensions (of 128, 64 hold 99.9 %). Those are kept. The other half
    takes the first principal components of the features, whitened: what samples differ in, told apart or not.
    """
    features = torch.cat([encoder.features(x) for x in samples])
    half = encoder.config.dim // 2
    if len(features) <= half:
        raise InvalidInput(f"there are {len(features)} samples to train on: expected more than {half}")
    learned = encoder.embedding(features)
    directions = F.normalize(learned, dim=1)
    axes = torch.linalg.eigh(directions.T @ directions).eigenvectors[:, -half:].T
    axes = axes / learned.square().mean().sqrt()
    mean, deviation = features.mean(dim=0), features.std(dim=0) + 1e-3
    _, sizes, components = torch.linalg.svd((features - mean) / deviation, full_matrices=False)
    components = components[:half] / sizes[:half, None] * len(features) ** 0.5 / deviation
    made = SenseEncoder(replace(encoder.config, is_described=True))
    made.features.load_state_dict(encoder.features.state_dict())
    made.embedding.weight.copy_(torch.cat([axes @ encoder.embedding.weight, components]))
    made.embedding.bias.copy_(torch.cat([axes @ encoder.embedding.bias, -components @ mean]))
    return made.eval()
