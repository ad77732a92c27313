"""The two encoders, the alignment map and the classifier that they share.

    e_s  TextEncoder     source: graphemes or IPA -> embedding
    e_t  SpeechEncoder   target: log-mel of one word -> embedding
    A    alignment       linear map on the target side only (method: Liang et al. 2021)
    phi  classifier      ReLU, Linear: label slots are assigned at random in every episode

Both encoders are a convolutional body and the same pooling: heads that attend to frames by content and by where in the
word a frame lies, so that "on" and "no" differ although they hold the same sounds. A row of a batch that is shorter
than the longest is masked after every layer and gives exactly the embedding that it gives alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import rnn


@dataclass(frozen=True)
class EncoderConfig:
    n_mels: int = 48
    dim: int = 192  # of the embedding
    stem_channels: tuple[int, int, int] = (24, 32, 64)  # at 24, 12 and 6 bands
    speech_channels: int = 192
    speech_dilations: tuple[int, ...] = (1, 2, 4, 1)
    recurrent_units: int = 0  # in each direction, behind the body; of a teacher, which no bundle holds
    text_channels: int = 128
    text_dilations: tuple[int, ...] = (1, 2, 1, 2, 1, 2)
    heads: int = 8
    head_channels: int = 32
    n_tokens: int = 1000
    n_phones: int = 150  # CTC targets; 0 is the blank
    n_way: int = 32  # of the shared classifier


# What `edgealign train distill` learns from: 1.6 times the weights, and frames that know the whole word.
TEACHER = EncoderConfig(stem_channels=(32, 48, 96), speech_dilations=(1,), recurrent_units=160)


class Residual(nn.Module):
    """relu(x + conv2(relu(conv1(x)))), each convolution normalized over the batch, masked."""

    def __init__(self, conv1: nn.Conv2d, conv2: nn.Conv2d) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv1, nn.BatchNorm2d(conv1.out_channels)
        self.conv2, self.norm2 = conv2, nn.BatchNorm2d(conv2.out_channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = _masked(F.relu(self.norm1(self.conv1(x))), mask)
        return _masked(F.relu(x + self.norm2(self.conv2(y))), mask)


def residual_over_time(channels: int, dilation: int) -> Residual:
    """Of x [batch, channels, 1, n]."""
    over_time = _conv(channels, channels, (1, 3), padding=(0, dilation), dilation=dilation)
    return Residual(over_time, _conv(channels, channels, 1))


def residual_over_bands(channels: int) -> Residual:
    """Of x [batch, channels, bands, n]."""
    return Residual(*(_conv(channels, channels, 3, padding=1) for _ in range(2)))


class Recurrent(nn.Module):
    """relu(x + what two layers make of a word that read it forward and backward), masked."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)
        self.layers = nn.GRU(channels, units, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.out, self.norm = _conv(2 * units, channels, 1), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """float32 [batch, channels, 1, n], mask like that or [batch, 1, 1, n] -> [batch, channels, 1, n]."""
        read = self.dropout(x.squeeze(2).transpose(1, 2))
        if mask is None:
            read, _ = self.layers(read)
        else:  # packed, so that reading backward begins with the last frame of a word and not with padding
            n_frames = mask.sum(dim=(1, 2, 3)).long().cpu()
            packed = rnn.pack_padded_sequence(read, n_frames, batch_first=True, enforce_sorted=False)
            read, _ = rnn.pad_packed_sequence(self.layers(packed)[0], batch_first=True, total_length=x.shape[3])
        y = self.norm(self.out(self.dropout(read).transpose(1, 2).unsqueeze(2)))
        return _masked(F.relu(x + y), mask)


class PositionalPooling(nn.Module):
    """Per head: mean and standard deviation of its channels over the frames it attends to, then one linear map.

    The attention logit of head h at relative position p in (0, 1) is content - sharpness_h * (p - center_h)^2.
    """

    def __init__(self, channels: int, heads: int, head_channels: int, dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.values = nn.Conv2d(channels, heads * head_channels, 1)
        self.content = nn.Conv2d(channels, heads, 1)
        self.center = nn.Parameter(torch.linspace(0.0, 1.0, heads))
        self.sharpness = nn.Parameter(torch.full((heads,), 12.0))
        self.out = nn.Linear(2 * heads * head_channels, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """float32 [batch, channels, 1, n] -> [batch, dim], not normalized."""
        return self.out(self.statistics(x, mask))

    def statistics(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """float32 [batch, channels, 1, n] -> [batch, 2 * heads * head_channels]: means, then deviations."""
        ones = (x[:, :1] * 0 + 1 if mask is None else mask).squeeze(2)
        position = (torch.cumsum(ones, dim=2) - 0.5) / ones.sum(dim=2, keepdim=True)
        bias = self.sharpness[:, None].abs() * (position - self.center[:, None]) ** 2
        logits = self.content(x).squeeze(2) - bias
        if mask is not None:
            logits = logits.masked_fill(ones == 0, -1e4)
        weights = torch.softmax(logits, dim=2).unsqueeze(3)  # [batch, heads, n, 1]
        per_head = (self.heads, self.values.out_channels // self.heads)
        values = self.values(x).squeeze(2).unflatten(1, per_head)  # [batch, heads, head_channels, n]
        mean = values @ weights
        deviation = torch.sqrt(torch.clamp((values * values) @ weights - mean * mean, min=1e-4))
        return torch.cat([mean.flatten(1), deviation.flatten(1)], dim=1)


class SpeechEncoder(nn.Module):
    """Log-mel of one word, 0.2 to 3 s, to an embedding.

    The stem halves the bands three times, so that formants are seen at several resolutions before all bands become one
    vector a frame; the body runs at 25 frames per second.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        first, second, third = config.stem_channels
        channels = config.speech_channels
        self.stem1, self.norm1 = _conv(1, first, (3, 5), stride=2, padding=(1, 2)), nn.BatchNorm2d(first)
        self.stem2, self.norm2 = _conv(first, second, 3, stride=(2, 1), padding=1), nn.BatchNorm2d(second)
        self.residual2 = residual_over_bands(second)
        self.stem3, self.norm3 = _conv(second, third, 3, stride=2, padding=1), nn.BatchNorm2d(third)
        self.residual3 = residual_over_bands(third)
        self.into, self.norm4 = _conv(third, channels, (config.n_mels // 8, 1)), nn.BatchNorm2d(channels)
        self.body = nn.ModuleList(residual_over_time(channels, dilation) for dilation in config.speech_dilations)
        if config.recurrent_units:
            self.body.append(Recurrent(channels, config.recurrent_units))
        self.phones = nn.Conv2d(channels, config.n_phones, 1)
        self.pooling = PositionalPooling(channels, config.heads, config.head_channels, config.dim)

    def forward(self, log_mels: Tensor, mask: Tensor | None = None) -> Tensor:
        """float32 [batch, n_mels, n_frames], mask [batch, 1, n_frames] of ones and zeros -> [batch, dim]."""
        return self.pooling(*self.frames(log_mels, mask))

    def frames(self, log_mels: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The sequence before pooling [batch, channels, 1, ceil(n_frames / 4)] and its mask."""
        x = _masked(level(log_mels, mask), mask).unsqueeze(1).contiguous(memory_format=torch.channels_last)
        half = None if mask is None else mask[:, :, ::2].unsqueeze(1)
        x = _masked(F.relu(self.norm1(self.stem1(x))), half)
        x = self.residual2(_masked(F.relu(self.norm2(self.stem2(x))), half), half)
        quarter = None if half is None else half[..., ::2]
        x = self.residual3(_masked(F.relu(self.norm3(self.stem3(x))), quarter), quarter)
        x = _masked(F.relu(self.norm4(self.into(x))), quarter)
        for block in self.body:
            x = block(x, quarter)
        return x, quarter


class TextEncoder(nn.Module):
    """Token ids of one spelled word to an embedding."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.n_tokens, config.text_channels)
        self.body = nn.ModuleList(
            residual_over_time(config.text_channels, dilation) for dilation in config.text_dilations
        )
        self.pooling = PositionalPooling(config.text_channels, config.heads, config.head_channels, config.dim)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """int64 [batch, n_tokens], mask [batch, 1, n_tokens] -> [batch, dim]."""
        return self.pooling(*self.letters(tokens, mask))

    def letters(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The sequence before pooling [batch, channels, 1, n_tokens] and its mask."""
        mask = None if mask is None else mask.unsqueeze(1)
        x = self.embedding(tokens).transpose(1, 2).unsqueeze(2)
        x = _masked(x, mask).contiguous(memory_format=torch.channels_last)
        for block in self.body:
            x = block(x, mask)
        return x, mask


class AlignedEncoders(nn.Module):
    """All meta-parameters."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.text = TextEncoder(config)
        self.speech = SpeechEncoder(config)
        self.alignment = nn.Linear(config.dim, config.dim)
        nn.init.eye_(self.alignment.weight)
        nn.init.zeros_(self.alignment.bias)
        self.classifier = nn.Sequential(nn.ReLU(), nn.Linear(config.dim, config.n_way))
        self.log_scale = nn.Parameter(torch.tensor(2.7))  # of the contrastive losses: 1 / temperature

    def embed_text(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.normalize(self.text(tokens, mask), dim=1)

    def embed_speech(self, log_mels: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.normalize(self.alignment(self.speech(log_mels, mask)), dim=1)


def centered(x: Tensor, center: Tensor) -> Tensor:
    """Unit rows of x [n, dim] without their mean `center` [dim], of unit length again. Plain operators, for ONNX."""
    x = x / torch.sqrt((x * x).sum(dim=1, keepdim=True))
    x = x - center
    return x / torch.sqrt((x * x).sum(dim=1, keepdim=True))


def level(log_mels: Tensor, mask: Tensor | None) -> Tensor:
    """Loudness taken out: nothing further than 14 nepers (61 dB) below the loudest band counts, and the mean is 0."""
    if mask is None:
        x = torch.maximum(log_mels, log_mels.amax(dim=(1, 2), keepdim=True) - 14.0)
        return (x - x.mean(dim=(1, 2), keepdim=True)) * 0.3
    loudest = (log_mels + (mask - 1) * 1e4).amax(dim=(1, 2), keepdim=True)
    x = torch.maximum(log_mels, loudest - 14.0)
    mean = (x.mean(dim=1, keepdim=True) * mask).sum(dim=2, keepdim=True) / mask.sum(dim=2, keepdim=True)
    return (x - mean) * 0.3


def _conv(inputs: int, outputs: int, kernel: int | tuple[int, int], **options) -> nn.Conv2d:
    """Convolution whose bias is left to the normalization behind it. channels_last is two to three times as fast."""
    return nn.Conv2d(inputs, outputs, kernel, bias=False, **options).to(memory_format=torch.channels_last)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask
