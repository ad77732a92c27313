"""What transformers' feature extractors and image processors compute, as torch modules that become part of the graph.

Each takes what the runtime has (a waveform, a picture in 0..1, token ids) and gives what the model of the folder takes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgealign.errors import InvalidInput


class ZeroMeanUnitVariance(nn.Module):
    """waveform [batch, n_samples] -> the same with mean 0 and variance 1 (`Wav2Vec2FeatureExtractor`)."""

    def forward(self, waveform: Tensor) -> Tensor:
        centered = waveform - waveform.mean(dim=1, keepdim=True)
        return centered / torch.sqrt((centered * centered).mean(dim=1, keepdim=True) + 1e-7)


class LogMel(nn.Module):
    """waveform [batch, n_samples] -> log-mel energies [batch, n_frames, n_mels].

    Window, pre-emphasis and the removal of a constant are linear in the samples of a frame, so all of them and the
    discrete Fourier transform are one convolution.

    frame_map   float64 [n, n]: what happens to the n samples of a frame before the transform
    filters     float64 [n_fft // 2 + 1, n_mels], on power spectra
    floor       least energy; the logarithm is `per_log` times the natural one
    """

    def __init__(
        self, frame_map: np.ndarray, n_fft: int, hop_samples: int, filters: np.ndarray, floor: float, per_log: float
    ) -> None:
        super().__init__()
        angle = 2 * np.pi / n_fft * np.outer(np.arange(n_fft // 2 + 1), np.arange(len(frame_map)))
        kernel = np.concatenate([np.cos(angle), np.sin(angle)]) @ frame_map
        self.kernel = nn.Buffer(torch.from_numpy(kernel[:, None]).float())
        self.filters = nn.Buffer(torch.from_numpy(np.concatenate([filters, filters])).float())
        self.hop_samples, self.floor, self.per_log = hop_samples, floor, per_log

    def forward(self, waveform: Tensor) -> Tensor:
        spectrum = functional.conv1d(waveform[:, None], self.kernel, stride=self.hop_samples)
        energies = (spectrum * spectrum).transpose(1, 2) @ self.filters
        return torch.log(energies.clamp(min=self.floor)) * self.per_log


class KaldiFilterbank(nn.Module):
    """waveform [batch, n_samples] -> input_values [batch, max_length, n_mels] (`ASTFeatureExtractor`).

    Frames that a clip lacks are 0 before the normalization, as there; what goes beyond max_length frames is cut off.
    """

    def __init__(self, extractor) -> None:
        from transformers.audio_utils import mel_filter_bank, window_function

        super().__init__()
        n = 400
        without_mean = np.eye(n) - 1 / n
        pre_emphasis = np.eye(n) - 0.97 * np.eye(n, k=-1)
        pre_emphasis[0, 0] = 1 - 0.97
        window = window_function(n, "hann", periodic=False).astype(np.float64)
        filters = mel_filter_bank(
            num_frequency_bins=257, num_mel_filters=extractor.num_mel_bins, min_frequency=20,
            max_frequency=extractor.sampling_rate // 2, sampling_rate=extractor.sampling_rate, norm=None,
            mel_scale="kaldi", triangularize_in_mel_space=True,
        )  # fmt: skip
        frame_map = window[:, None] * (pre_emphasis @ without_mean)
        self.log_mel = LogMel(frame_map, 512, 160, filters, floor=float(np.finfo(np.float32).eps), per_log=1.0)
        self.max_length = extractor.max_length
        self.mean, self.scale = (extractor.mean, 2 * extractor.std) if extractor.do_normalize else (0.0, 1.0)

    def forward(self, waveform: Tensor) -> Tensor:
        energies = functional.pad(self.log_mel(waveform), (0, 0, 0, self.max_length))[:, : self.max_length]
        return (energies - self.mean) / self.scale


class ClapLogMel(nn.Module):
    """waveform [batch, n_samples] -> input_features [batch, 1 or 4, n_frames, n_mels] and is_longer [batch, 1]
    (`ClapFeatureExtractor`, for a clip by itself).

    A clip is repeated and padded to the extractor's length there; what goes beyond it is cut off, so a longer clip
    comes in windows. A model that fuses gets the whole clip four times, as transformers gives it of a short clip.
    """

    def __init__(self, extractor) -> None:
        from transformers.audio_utils import window_function

        super().__init__()
        n = extractor.fft_window_size
        self.fuses = extractor.truncation == "fusion"
        filters = extractor.mel_filters if self.fuses else extractor.mel_filters_slaney
        frame_map = np.diag(window_function(n, "hann").astype(np.float64))
        per_log = 10 / np.log(10)  # decibels
        self.log_mel = LogMel(frame_map, n, extractor.hop_length, filters, floor=1e-10, per_log=per_log)
        self.n_samples, self.margin, self.padding = int(extractor.nb_max_samples), n // 2, extractor.padding
        if self.padding not in ("repeatpad", "repeat", "pad"):
            raise InvalidInput(f"the extractor pads by '{self.padding}': expected repeatpad, repeat or pad")

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        n = torch.tensor(waveform.shape[1]) if isinstance(waveform.shape[1], int) else waveform.shape[1]
        at = torch.arange(self.n_samples)
        whole = {
            "repeat": torch.full_like(at, self.n_samples),
            "repeatpad": n * torch.clamp(self.n_samples // n, min=1) + torch.zeros_like(at),
            "pad": n + torch.zeros_like(at),
        }[self.padding]
        filled = waveform[:, at % n] * (at < whole).to(waveform.dtype)
        features = self.log_mel(functional.pad(filled[:, None], (self.margin, self.margin), mode="reflect")[:, 0])
        features = features[:, None]
        if self.fuses:
            features = features.expand(-1, 4, -1, -1)
        return features, torch.full_like(waveform[:, :1], float(self.fuses)) > 0


class Picture(nn.Module):
    """image [batch, 3, height, width], RGB in 0..1 -> pixel_values: cropped to the middle and standardized."""

    def __init__(self, crop: tuple[int, int, int, int] | None, scale: float, mean: list[float], std: list[float]):
        """crop: top, left, height and width, or None;  scale: what 1.0 becomes before mean and std."""
        super().__init__()
        self.crop, self.scale = crop, scale
        self.mean = nn.Buffer(torch.tensor(mean).view(1, -1, 1, 1))
        self.std = nn.Buffer(torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        if self.crop is not None:
            top, left, height, width = self.crop
            image = image[:, :, top : top + height, left : left + width]
        return (image * self.scale - self.mean) / self.std


class TextInputs(nn.Module):
    """tokens [batch, n_tokens] -> what the model takes. Texts of a batch have the same length, so all tokens count."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "token_type_ids": tokens * 0}
        return tuple(inputs[name] for name in self.names)


class Head(nn.Module):
    """A model's states [batch, n, width], or vectors [batch, width], -> unit embedding [batch, dim].

    first, last   the states to average, as of a slice; None where the model pooled already
    projection    applied after it, or None
    """

    def __init__(self, states: tuple[int, int | None] | None, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.states, self.projection = states, projection

    def forward(self, x: Tensor) -> Tensor:
        if self.states is not None:
            x = x[:, self.states[0] : self.states[1]].mean(dim=1)
        if self.projection is not None:
            x = self.projection(x)
        return x / torch.sqrt((x * x).sum(dim=1, keepdim=True).clamp(min=1e-24))
