"""Alignment and classification losses. Embeddings are unit rows: float32 [n, dim]; a loss is a scalar to minimize."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cosine_alignment(source: Tensor, target: Tensor) -> Tensor:
    """1 - mean cosine of the pairs (row i with row i): the strong loss of the authors' code. Collapses when alone."""
    return 1 - (source * target).sum(dim=1).mean()


def centroid_hinge(source: Tensor, target: Tensor, labels: Tensor, margin: float = 0.5) -> Tensor:
    """Weak alignment of sets: (1/n) sum_c sum_c' [margin + <t_c', s_c> - <t_c, s_c>]_+ over the centroids of labels.

    labels   int64 [n]: which set a row of `source` and a row of `target` belong to; their order inside a set does not
             matter. `xmodal` calls this loss `tri`; the terms c' = c add the constant margin, as they do there.
    """
    sets = (labels[None] == labels.unique()[:, None]).to(source.dtype)
    sets = sets / sets.sum(dim=1, keepdim=True)
    similarity = (sets @ source) @ (sets @ target).T
    return F.relu(margin + similarity - similarity.diagonal()[:, None]).sum() / len(labels)


def contrastive(queries: Tensor, keys: Tensor, query_labels: Tensor, key_labels: Tensor, scale: Tensor) -> Tensor:
    """Noise-contrastive estimation with every key of a query's label as a positive (Khosla et al. 2020, L_out).

    scale    1 / temperature. With one key per label this is InfoNCE (van den Oord et al. 2018).
    """
    logits = scale * queries @ keys.T
    positive = (query_labels[:, None] == key_labels[None]).to(logits.dtype)
    log_probability = logits - logits.logsumexp(dim=1, keepdim=True)
    has_positive = positive.sum(dim=1) > 0
    per_query = -(log_probability * positive).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
    return _mean(per_query[has_positive])


def across_speakers(embeddings: Tensor, labels: Tensor, speakers: Tensor, scale: Tensor) -> Tensor:
    """Contrastive loss within one modality; positives are recordings of the same label by other speakers.

    Other takes of the same label by the same speaker are neither positives nor negatives: they are too easy.
    """
    same_label = labels[:, None] == labels[None]
    same_speaker = speakers[:, None] == speakers[None]
    positive = same_label & ~same_speaker
    logits = (scale * embeddings @ embeddings.T).masked_fill(same_label & same_speaker, -1e4)
    log_probability = logits - logits.logsumexp(dim=1, keepdim=True)
    n_positive = positive.sum(dim=1)
    per_row = -(log_probability * positive).sum(dim=1) / n_positive.clamp(min=1)
    return _mean(per_row[n_positive > 0])


def phone_ctc(logits: Tensor, lengths: Tensor, phones: Tensor, n_phones: Tensor) -> Tensor:
    """Connectionist temporal classification of the phonemes (Graves et al. 2006), per phoneme.

    logits   float32 [batch, n_classes, n_frames], class 0 is the blank
    phones   int64 [batch, longest], zero-padded
    """
    log_probability = F.log_softmax(logits, dim=1).permute(2, 0, 1)
    return F.ctc_loss(log_probability, phones, lengths, n_phones, blank=0, zero_infinity=True)


def _mean(values: Tensor) -> Tensor:
    """Zero, not NaN, where a batch has no positives: a NaN would be in every weight after the next step."""
    return values.mean() if len(values) else values.sum()


def temperature(log_scale: Tensor) -> Tensor:
    """The learned scale, kept in a range where training is stable."""
    return torch.clamp(log_scale, max=4.0).exp()
