"""The networks of the research tasks: small encoders of text, pictures and sounds to one space.

    e_s, e_t  stem of the modality -> trunk         the trunk may be one for both
    A         linear map on the target side only
    phi       ReLU, Linear(dim, n_way): slots are assigned at random in every episode

Normalization is by groups of channels: an embedding does not depend on the batch it is computed in, and a copy that was
adapted to five samples has no running statistics of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class NetworkConfig:
    dim: int = 128  # of the embedding
    hidden: int = 256
    text_channels: int = 64
    widths: tuple[int, ...] = (32, 64, 128)  # channels of the convolutions, the first at a quarter, then each at half
    n_way: int = 5  # slots of phi
    shared: bool = False  # one trunk for both modalities
    residual: bool = False  # of heads on frozen encoders: linear plus a small MLP


class TextStem(nn.Module):
    """Mean of the embeddings of the tokens; token 0 is padding."""

    def __init__(self, n_buckets: int, config: NetworkConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_buckets, config.text_channels, padding_idx=0)
        self.out = nn.Linear(config.text_channels, config.hidden)

    def pooled(self, tokens: Tensor) -> Tensor:
        """int64 [n, n_tokens] -> float32 [n, text_channels]."""
        there = (tokens != 0).sum(dim=1, keepdim=True).clamp(min=1)
        # Unit variance, whatever the number of tokens: the mean alone would be small for long texts.
        return self.embedding(tokens).sum(dim=1) / there.sqrt()


class ConvolutionStem(nn.Module):
    """Strided convolutions, then mean and standard deviation over positions. Pictures and log-mels."""

    def __init__(self, channels: int, config: NetworkConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        # Most of the time would go into the first layers at full resolution: the first one takes larger steps.
        kernel, stride = 5, 4
        for width in config.widths:
            convolution = nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2)
            layers += [convolution, nn.GroupNorm(8, width), nn.ReLU()]
            channels, kernel, stride = width, 3, 2
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(8, channels), nn.ReLU()]
        self.body = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.out = nn.Linear(2 * channels, config.hidden)

    def pooled(self, x: Tensor) -> Tensor:
        """float32 [n, channels, height, width] -> [n, 2 * last width]."""
        x = self.body(x.contiguous(memory_format=torch.channels_last)).flatten(2)
        mean = x.mean(dim=2)
        deviation = ((x - mean[..., None]).square().mean(dim=2) + 1e-4).sqrt()
        return torch.cat([mean, deviation], dim=1)


class Encoder(nn.Module):
    def __init__(self, stem: nn.Module, trunk: nn.Module) -> None:
        super().__init__()
        self.stem, self.trunk = stem, trunk

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(self.stem.out(self.stem.pooled(x)))


class Head(nn.Module):
    """On the embeddings of a frozen encoder: a linear map, and beside it an MLP that begins at zero where the
    configuration has `residual`. The linear map begins as the identity where the dimensions agree, else at random."""

    def __init__(self, inputs: int, config: NetworkConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, config.dim)
        (nn.init.eye_ if inputs == config.dim else nn.init.orthogonal_)(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.residual = None
        if config.residual:
            self.residual = nn.Sequential(
                nn.Linear(inputs, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.dim)
            )
            nn.init.zeros_(self.residual[2].weight)
            nn.init.zeros_(self.residual[2].bias)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [n, inputs] -> [n, dim]."""
        return self.linear(x) if self.residual is None else self.linear(x) + self.residual(x)


class PairedEncoders(nn.Module):
    """All meta-parameters, and the heads that some methods train beside them.

    kinds      of source and target, as in `paired.KINDS`
    n_joint    labels of the plain classifier
    n_outputs  of the decoders of source and target (`decoded`); of an "embedding" these are its inputs, too
    """

    def __init__(
        self, config: NetworkConfig, kinds: tuple[str, str], n_buckets: int, n_joint: int, n_outputs: tuple[int, int]
    ) -> None:
        super().__init__()
        self.config, self.kinds = config, kinds
        if "embedding" in kinds:
            self.source, self.target = (Head(inputs, config) for inputs in n_outputs)
        else:
            stems = [
                TextStem(n_buckets, config) if kind == "text" else ConvolutionStem(3 if kind == "image" else 1, config)
                for kind in kinds
            ]
            trunks = [_trunk(config)]
            trunks.append(trunks[0] if config.shared else _trunk(config))
            self.source, self.target = (Encoder(*parts) for parts in zip(stems, trunks, strict=True))
        self.alignment = nn.Linear(config.dim, config.dim)
        nn.init.eye_(self.alignment.weight)
        nn.init.zeros_(self.alignment.bias)
        self.phi = nn.Sequential(nn.ReLU(), nn.Linear(config.dim, config.n_way))
        self.log_scale = nn.Parameter(torch.tensor(2.7))  # of the contrastive losses: 1 / temperature
        self.joint = nn.Linear(config.dim, max(n_joint, 1))
        self.discriminator = nn.Sequential(nn.Linear(config.dim, 64), nn.ReLU(), nn.Linear(64, 1))
        self.decoders = nn.ModuleList(nn.Linear(config.dim, n) for n in n_outputs)

    @torch.no_grad()
    def standardize(self, source: Tensor, target: Tensor) -> None:
        """Scale and shift the linear layers so that each output has mean 0 and variance 1 over these samples
        (Salimans & Kingma 2016). Otherwise all embeddings begin with nearly one direction, and training ends in it."""
        encoders = (self.source, self.target)
        if isinstance(self.source, Head):
            # Scaled one by one, the dimensions of two aligned spaces would not stay aligned: the means are taken out.
            for head, x in zip(encoders, (source, target), strict=True):
                head.linear.bias.copy_(-head.linear(x).mean(dim=0))
            return
        values = [
            _standardized(encoder.stem.out, encoder.stem.pooled(x))
            for encoder, x in zip(encoders, (source, target), strict=True)
        ]
        if self.source.trunk is self.target.trunk:
            encoders, values = (self.source,), [torch.cat(values)]
        for encoder, x in zip(encoders, values, strict=True):
            for layer in encoder.trunk:
                x = _standardized(layer, x) if isinstance(layer, nn.Linear) else layer(x)

    def embed_source(self, x: Tensor) -> Tensor:
        """Unit embeddings [n, dim] of source samples, as `Batcher.source` gives them."""
        return F.normalize(self.source(x), dim=1)

    def embed_target(self, x: Tensor) -> Tensor:
        """Unit embeddings [n, dim] of target samples, as `Batcher.target` gives them."""
        return F.normalize(self.alignment(self.target(x)), dim=1)

    def spread(self, embeddings: Tensor) -> Tensor:
        """Unit embeddings scaled to unit variance: what phi and the other heads read, alike for both modalities."""
        return embeddings * self.config.dim**0.5

    def slots(self, embeddings: Tensor) -> Tensor:
        """Logits of phi, [n, n_way]."""
        return self.phi(self.spread(embeddings))


def _trunk(config: NetworkConfig) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(), nn.Linear(config.hidden, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.dim)
    )


def _standardized(layer: nn.Linear, x: Tensor) -> Tensor:
    """The output of the layer for x [n, inputs] once it is changed to have mean 0 and variance 1 over the rows."""
    output = layer(x)
    mean, deviation = output.mean(dim=0), output.std(dim=0) + 1e-4
    layer.weight.div_(deviation[:, None])
    layer.bias.sub_(mean).div_(deviation)
    return layer(x)


class GradientReversal(torch.autograd.Function):
    """Identity whose gradient changes sign (Ganin & Lempitsky 2015)."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return -grad
