"""The networks of the sources: words, and pictures of what sounds, to the space of the samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PAD, UNKNOWN, BOUNDARY = 0, 1, 2  # tokens that are no characters
N_SPECIAL = 3


class Words(nn.Module):
    """tokens int64 [batch, n_tokens] -> [batch, dim]: what the letters and runs of up to five letters stand for, the
    telling ones weighted most (Bojanowski et al. 2017, with attention). Runs share rows of a table by a hash that is
    computed here, so that a graph of this needs no other tables; a script that was never seen has runs, too."""

    def __init__(
        self, n_characters: int, dim: int, n_buckets: int = 20_479, width: int = 48, hidden: int = 256
    ) -> None:
        super().__init__()
        self.n_buckets = n_buckets
        self.character_embedding = nn.Embedding(n_characters, width)
        self.run_embedding = nn.Embedding(n_buckets, width)
        for table in (self.character_embedding, self.run_embedding):
            nn.init.normal_(table.weight, std=0.3)
        self.hidden = nn.Linear(width, hidden)
        self.embedding = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        edge = torch.zeros_like(tokens[:, :1])
        padded = torch.cat([tokens, edge + PAD], dim=1)
        ends = (padded == PAD) & (torch.cat([edge + BOUNDARY, tokens], dim=1) != PAD)
        ids = torch.where(ends, torch.full_like(padded, BOUNDARY), padded)
        found, there = [self.character_embedding(ids)], [ids != PAD]
        run, whole = ids, ids != PAD
        for n in range(2, 6):
            run = (run[:, :-1] * 31_337 + ids[:, n - 1 :] * 7 + n) % self.n_buckets
            whole = whole[:, :-1] & (ids[:, n - 1 :] != PAD)
            found.append(self.run_embedding(run))
            there.append(whole)
        pieces, mask = torch.cat(found, dim=1), torch.cat(there, dim=1).to(torch.float32)
        telling = pieces[:, :, :1] * 3 + (mask.unsqueeze(2) - 1) * 1e4
        weight = torch.exp(telling - telling.amax(dim=1, keepdim=True))
        pooled = (pieces * weight).sum(dim=1) / weight.sum(dim=1)
        return self.embedding(F.relu(self.hidden(pooled * 4)))


class PictureMap(nn.Module):
    """Embeddings of pictures -> embeddings of the sounds that go with them: [batch, dim] both, not normalized."""

    def __init__(self, inputs: int, dim: int, hidden: int = 128) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.map(pictures)
