"""Where a class can start from beside samples of its own: words for pictures; pictures and words for sounds.

The encoder of the samples is trained before and stays as it is. A source is trained to give the prototype of what is
named or shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgealign.text import Tokenizer, normalize
from edgealign.train import pictures
from edgealign.train.pictures import Picture
from edgealign.train.sense_encoders import SenseEncoder
from edgealign.train.sounds import LogMels, Sound
from edgealign.train.source_networks import BOUNDARY, N_SPECIAL, PAD, UNKNOWN, PictureMap, Words

MAX_TOKENS = 48
DRAWN_VIEWS = 6  # variations of a drawing that its prototype is made of
SCALE = 20.0  # 1 / temperature


def vocabulary(texts: Sequence[str]) -> dict:
    """vocab.json of the code points of the texts. Kind and language are boundaries: neither is told apart."""
    characters = sorted({character for text in texts for character in normalize(text, "grapheme")})
    return {
        "format_version": 1,
        "tokens": {character: i + N_SPECIAL for i, character in enumerate(characters)},
        "languages": {"und": BOUNDARY},
        "kinds": {"grapheme": BOUNDARY, "ipa": BOUNDARY},
        "unknown": UNKNOWN,
        "pad": PAD,
        "max_tokens": MAX_TOKENS,
    }


def pad_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """int64 [n, longest]."""
    rows = [tokenizer.encode(text).ids for text in texts]
    out = np.full((len(rows), max(map(len, rows))), PAD, np.int64)
    for row, ids in zip(out, rows, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(out)


@dataclass(frozen=True)
class Named:
    """texts, and for each the row of `targets` (float32 [n, dim], unit rows) that it should give."""

    texts: tuple[str, ...]
    rows: np.ndarray
    targets: Tensor


def train_words(
    named: Named, vocab: dict, seed: int, report: Callable[[str], None], n_steps: int = 2500, batch: int = 256
) -> Words:
    """Softmax over all targets, by cosine. Half of the texts of a batch lack some letters."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    dim = named.targets.shape[1]
    model = Words(N_SPECIAL + len(vocab["tokens"]), dim)
    tokens = pad_tokens(Tokenizer.from_dict(vocab), named.texts)
    rows = torch.from_numpy(named.rows)
    share = 1 / np.sqrt(np.bincount(named.rows)[named.rows])  # a thing with few names is drawn nearly as often
    share /= share.sum()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, n_steps, pct_start=0.05)
    for step in range(n_steps):
        chosen = torch.from_numpy(rng.choice(len(rows), min(batch, len(rows)), replace=len(rows) < batch, p=share))
        own = tokens[chosen]
        own = own[:, : int((own != PAD).sum(dim=1).max())]
        lost = torch.from_numpy(rng.random(own.shape) < 0.1 * (rng.random((len(own), 1)) < 0.5)) & (own > BOUNDARY)
        own = torch.where(lost, torch.full_like(own, UNKNOWN), own)
        given = F.normalize(model(own), dim=1)
        near = (given * named.targets[rows[chosen]]).sum(dim=1).mean()
        loss = F.cross_entropy(SCALE * given @ named.targets.T, rows[chosen], label_smoothing=0.05) - 2 * near
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 250 == 0:
            report(f"words: step {step + 1}/{n_steps} loss {float(loss.detach()):.3f}")
    return model.eval()


def train_map(
    pictures: Tensor, labels: np.ndarray, targets: Tensor, seed: int, n_steps: int = 400, batch: int = 256
) -> PictureMap:
    """Weak pairs: picture i [n, dim, unit rows] belongs to the sounds whose prototype is targets[labels[i]]."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = PictureMap(pictures.shape[1], targets.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    rows_of = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(n_steps):
        chosen = np.array([rng.choice(rows_of[i]) for i in rng.integers(len(rows_of), size=batch)])
        mixed = pictures[chosen] + 0.05 * torch.from_numpy(rng.normal(0, 1, (batch, pictures.shape[1]))).float()
        given = F.normalize(model(F.normalize(mixed, dim=1)), dim=1)
        truth = torch.from_numpy(labels[chosen])
        near = (given * targets[truth]).sum(dim=1).mean()
        loss = F.cross_entropy(10 * given @ targets.T, truth) - 2 * near
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def embed(encoder: SenseEncoder, samples: Sequence[Tensor]) -> Tensor:
    """Unit rows [n, dim] of batches of samples as the encoder reads them."""
    return torch.cat([encoder.embed(x) for x in samples])


def prototypes(embeddings: Tensor, rows: np.ndarray, n: int) -> Tensor:
    """Unit rows [n, dim]: the mean of the embeddings of each row number."""
    sums = torch.zeros(n, embeddings.shape[1]).index_add_(0, torch.from_numpy(rows), embeddings)
    return F.normalize(sums, dim=1)


def picture_prototypes(
    encoder: SenseEncoder, listed: Sequence[Picture], arrays: np.ndarray, seed: int
) -> tuple[dict[str, int], Tensor]:
    """Row of every training label, and prototypes [n, dim]. A drawing counts with variations of itself as well."""
    rows = [row for row, picture in enumerate(listed) if picture.role == "train"]
    labels = {name: i for i, name in enumerate(sorted({listed[row].label for row in rows}))}
    drawn = [row for row in rows if not listed[row].label.startswith("photograph ")]
    rng = torch.Generator().manual_seed(seed)
    samples = [pictures.plain(arrays[rows[at : at + 64]]) for at in range(0, len(rows), 64)]
    repeated = drawn * DRAWN_VIEWS
    samples += [
        pictures.vary(torch.from_numpy(arrays[repeated[at : at + 64]]), rng) for at in range(0, len(repeated), 64)
    ]
    of = np.array([labels[listed[row].label] for row in rows + repeated])
    return labels, prototypes(embed(encoder, samples), of, len(labels))


def words_for_pictures(
    encoder: SenseEncoder, listed: Sequence[Picture], arrays: np.ndarray, seed: int, report: Callable[[str], None],
    n_steps: int,
) -> tuple[Words, dict]:  # fmt: skip
    """The text source of the bundle `image`, and its vocabulary: names of training pictures in every language."""
    labels, targets = picture_prototypes(encoder, listed, arrays, seed)
    named = sorted({
        (text, labels[picture.label]) for picture in listed if picture.role == "train" for _, text in picture.names
    })  # fmt: skip
    texts, rows = zip(*named, strict=True)
    vocab = vocabulary(texts)
    return train_words(Named(texts, np.array(rows), targets), vocab, seed, report, n_steps), vocab


def sources_for_sounds(
    encoder: SenseEncoder, listed: Sequence[Sound], mels: LogMels, picture_encoder: SenseEncoder,
    listed_pictures: Sequence[Picture], arrays: np.ndarray, shown: Mapping[str, Sequence[int]], seed: int,
    report: Callable[[str], None], n_steps: int,
) -> tuple[PictureMap, Words, dict]:  # fmt: skip
    """The picture source and the text source of the bundle `audio`, and the vocabulary of the latter.

    shown   the rows of `listed_pictures` that show what makes a sound, by the label of the sound

    A word whose sound is not in training gives what a picture of it would give.
    """
    names = sorted({sound.label for sound in listed if sound.role == "train"} & {k for k, v in shown.items() if v})
    rows = [(row, names.index(sound.label)) for row, sound in enumerate(listed) if sound.label in names]
    heard = embed(encoder, [torch.from_numpy(mels.whole(row))[None] for row, _ in rows])
    targets = prototypes(heard, np.array([i for _, i in rows]), len(names))
    pairs = [(row, i) for i, name in enumerate(names) for row in shown[name]]
    own = [row for row, _ in pairs]
    of = np.array([i for _, i in pairs])
    rng = torch.Generator().manual_seed(seed)
    seen = [embed(picture_encoder, [pictures.plain(arrays[own])])]
    seen += [embed(picture_encoder, [pictures.vary(torch.from_numpy(arrays[own]), rng)]) for _ in range(DRAWN_VIEWS)]
    mapped = train_map(torch.cat(seen), np.tile(of, 1 + DRAWN_VIEWS), targets, seed)
    labels, picture_targets = picture_prototypes(picture_encoder, listed_pictures, arrays, seed)
    with torch.no_grad():
        all_targets = F.normalize(mapped(picture_targets), dim=1)
    row_of = dict(labels)
    sounding = {}
    for row, i in pairs:
        sounding[listed_pictures[row].label] = i
    named = set()
    for picture in listed_pictures:
        if picture.label in sounding:
            named |= {(text, len(labels) + sounding[picture.label]) for _, text in picture.names}
        elif picture.label in row_of:
            named |= {(text, row_of[picture.label]) for _, text in picture.names}
    named |= {(name.replace("_", " "), len(labels) + i) for i, name in enumerate(names)}
    texts, targets_of = zip(*sorted(named), strict=True)
    vocab = vocabulary(texts)
    words = train_words(
        Named(texts, np.array(targets_of), torch.cat([all_targets, targets])), vocab, seed, report, n_steps
    )
    return mapped, words, vocab
