"""Losses against closed forms, written out in numpy with loops, in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from edgealign.train import losses

ROOT_HALF = math.sqrt(0.5)


def unit_rows(n: int, seed: int, dim: int = 6) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, dim))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def tensor(values: object) -> Tensor:
    return torch.tensor(np.asarray(values))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - math.log(sum(math.exp(x) for x in logits))


def test_cosine_alignment_is_zero_for_equal_pairs_one_for_orthogonal_and_two_for_opposite_ones():
    a, b = tensor([[1.0, 0], [0, 1]]), tensor([[0.0, 1], [1, 0]])
    assert losses.cosine_alignment(a, a) == 0
    assert losses.cosine_alignment(a, b) == 1
    assert losses.cosine_alignment(a, -a) == 2


def test_cosine_alignment_is_one_minus_the_mean_cosine_of_the_pairs():
    source, target = unit_rows(5, 1), unit_rows(5, 2)
    expected = 1 - sum(float(s @ t) for s, t in zip(source, target, strict=True)) / 5
    assert float(losses.cosine_alignment(tensor(source), tensor(target))) == pytest.approx(expected, abs=1e-12)


def hinge_by_hand(source: np.ndarray, target: np.ndarray, labels: list[int], margin: float) -> float:
    sets = sorted(set(labels))
    s = {c: np.mean([source[i] for i, label in enumerate(labels) if label == c], axis=0) for c in sets}
    t = {c: np.mean([target[i] for i, label in enumerate(labels) if label == c], axis=0) for c in sets}
    terms = (max(0.0, margin + t[other] @ s[c] - t[c] @ s[c]) for c in sets for other in sets)
    return sum(terms) / len(labels)


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [4, 7, 4, 4, 7, 4], [0, 1, 2, 3, 4, 5]])
def test_centroid_hinge_is_the_sum_over_all_pairs_of_sets(labels):
    source, target = unit_rows(6, 3), unit_rows(6, 4)
    loss = losses.centroid_hinge(tensor(source), tensor(target), torch.tensor(labels), margin=0.3)
    assert float(loss) == pytest.approx(hinge_by_hand(source, target, labels, 0.3), abs=1e-12)


def test_centroid_hinge_does_not_see_the_order_inside_a_set():
    source, target = tensor(unit_rows(6, 5)), tensor(unit_rows(6, 6))
    labels = torch.tensor([0, 1, 0, 1, 0, 2])
    shuffled = target[torch.tensor([4, 3, 0, 1, 2, 5])]  # rows 0, 2, 4 and rows 1, 3 among themselves
    assert not torch.equal(shuffled, target)
    before, after = (losses.centroid_hinge(source, t, labels) for t in (target, shuffled))
    assert float(before) == pytest.approx(float(after), abs=1e-12)


def test_centroid_hinge_of_perfectly_separated_sets_is_the_constant_margin_term_alone():
    """Every term c' != c is cut off at zero; each c' = c leaves the margin: n_sets * margin / n."""
    rows = tensor(np.eye(3)[[0, 0, 1, 2]])
    assert float(losses.centroid_hinge(rows, rows, torch.tensor([0, 0, 1, 2]), margin=0.5)) == 3 * 0.5 / 4


def contrastive_by_hand(
    queries: np.ndarray, keys: np.ndarray, query_labels: list[int], key_labels: list[int], scale: float
) -> float:
    per_query = []
    for query, label in zip(queries, query_labels, strict=True):
        log_probability = log_softmax(scale * keys @ query)
        positive = [log_probability[i] for i, key_label in enumerate(key_labels) if key_label == label]
        if positive:
            per_query.append(-sum(positive) / len(positive))
    return sum(per_query) / len(per_query)


def test_contrastive_with_one_key_per_label_is_info_nce():
    """Cross-entropy of naming each query's own key: van den Oord et al. 2018."""
    queries, keys = unit_rows(4, 7), unit_rows(4, 8)
    expected = np.mean([-log_softmax(9.0 * keys @ query)[i] for i, query in enumerate(queries)])
    loss = losses.contrastive(tensor(queries), tensor(keys), torch.arange(4), torch.arange(4), tensor(9.0))
    assert float(loss) == pytest.approx(expected, abs=1e-12)


def test_contrastive_averages_over_all_keys_of_the_label_and_leaves_out_queries_without_any():
    queries, keys = unit_rows(4, 9), unit_rows(5, 10)
    query_labels, key_labels = [0, 1, 1, 9], [1, 0, 1, 2, 1]
    loss = losses.contrastive(
        tensor(queries), tensor(keys), torch.tensor(query_labels), torch.tensor(key_labels), tensor(5.0)
    )
    expected = contrastive_by_hand(queries, keys, query_labels, key_labels, 5.0)
    assert float(loss) == pytest.approx(expected, abs=1e-12)


def test_contrastive_of_a_single_label_with_two_equal_keys_is_log_two():
    key = tensor([[ROOT_HALF, ROOT_HALF]] * 2)
    loss = losses.contrastive(key[:1], key, torch.tensor([3]), torch.tensor([3, 3]), tensor(4.0))
    assert float(loss) == pytest.approx(math.log(2), abs=1e-12)


def across_speakers_by_hand(rows: np.ndarray, labels: list[int], speakers: list[int], scale: float) -> float:
    per_row = []
    for i, row in enumerate(rows):
        others = [j for j in range(len(rows)) if (labels[j], speakers[j]) != (labels[i], speakers[i])]
        log_probability = dict(zip(others, log_softmax(scale * rows[others] @ row), strict=True))
        positive = [log_probability[j] for j in others if labels[j] == labels[i]]
        if positive:
            per_row.append(-sum(positive) / len(positive))
    return sum(per_row) / len(per_row)


LABELS, SPEAKERS = [0, 0, 0, 1, 1, 2], [5, 5, 6, 5, 7, 6]


def test_across_speakers_has_recordings_of_the_label_by_others_as_positives():
    rows = unit_rows(6, 11)
    loss = losses.across_speakers(tensor(rows), torch.tensor(LABELS), torch.tensor(SPEAKERS), tensor(6.0))
    assert float(loss) == pytest.approx(across_speakers_by_hand(rows, LABELS, SPEAKERS, 6.0), abs=1e-12)


def test_across_speakers_ignores_other_takes_of_the_label_by_the_same_speaker():
    """Three equal recordings of a label, two of them by one speaker, and one of another label at a right angle. The two
    takes see the third recording and the other label, nothing else; the third sees both takes and the other label."""
    rows = tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    loss = losses.across_speakers(rows, torch.tensor([0, 0, 0, 1]), torch.tensor([5, 5, 6, 8]), tensor(2.0))
    near = math.exp(2)
    expected = (2 * -math.log(near / (near + 1)) - math.log(near / (2 * near + 1))) / 3
    assert float(loss) == pytest.approx(expected, abs=1e-12)


def test_a_batch_without_positives_has_loss_zero_and_no_nan_in_its_gradient():
    rows = tensor(unit_rows(3, 14)).requires_grad_()
    labels, speakers = torch.tensor([0, 0, 1]), torch.tensor([4, 4, 4])
    loss = losses.across_speakers(rows, labels, speakers, tensor(6.0))
    loss = loss + losses.contrastive(rows, rows, labels, labels + 10, tensor(6.0))
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(rows.grad, torch.zeros_like(rows))


def ctc_by_brute_force(probability: np.ndarray, phones: list[int]) -> float:
    """-log of the summed probability of all paths [n_frames] that collapse to `phones`."""
    n_classes, n_frames = probability.shape
    total = 0.0
    for path in itertools.product(range(n_classes), repeat=n_frames):
        collapsed = [c for c, _ in itertools.groupby(path) if c != 0]
        if collapsed == phones:
            total += math.prod(probability[c, t] for t, c in enumerate(path))
    return -math.log(total)


def test_phone_ctc_is_the_probability_of_all_paths_that_collapse_to_the_phonemes():
    logits = np.random.default_rng(15).normal(size=(3, 3, 5))
    phones, lengths = [[1, 2], [2, 2], [1]], [5, 4, 3]
    expected = 0.0
    for row, length, word in zip(logits, lengths, phones, strict=True):
        probability = np.exp(row[:, :length]) / np.exp(row[:, :length]).sum(axis=0)
        expected += ctc_by_brute_force(probability, word) / len(word) / 3
    padded = torch.tensor([[1, 2], [2, 2], [1, 0]])
    loss = losses.phone_ctc(tensor(logits), torch.tensor(lengths), padded, torch.tensor([2, 2, 1]))
    assert float(loss) == pytest.approx(expected, rel=1e-9)


def test_phone_ctc_leaves_out_words_with_more_phonemes_than_frames():
    logits = torch.zeros(1, 3, 2, requires_grad=True)
    loss = losses.phone_ctc(logits, torch.tensor([2]), torch.tensor([[1, 2, 1]]), torch.tensor([3]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(("log_scale", "expected"), [(0.0, 1.0), (2.7, math.exp(2.7)), (9.0, math.exp(4.0))])
def test_temperature_stops_at_the_value_beyond_which_training_is_unstable(log_scale, expected):
    assert float(losses.temperature(torch.tensor(log_scale))) == pytest.approx(expected, rel=1e-6)
