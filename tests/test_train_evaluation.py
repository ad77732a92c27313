"""Meta-test: episodes, both heads, label noise, retrieval; and what they say about spaces that are aligned."""

from dataclasses import replace
from math import comb

import numpy as np
import pytest
import torch
from tiny_pairs import tiny_loop, tiny_paired

from edgealign.episodes import mean_and_ci95
from edgealign.errors import InvalidInput
from edgealign.train import evaluation as evaluation_module
from edgealign.train import research
from edgealign.train.evaluation import Evaluation, Retrieval, ranks, retrieval
from edgealign.train.loop import Loop, build_model
from edgealign.train.networks import GradientReversal
from edgealign.train.paired import Paired, Protocol, split_labels
from edgealign.train.tasks import as_input, modality_confusion, reconstruction_loss, set_nce


@pytest.fixture(scope="module")
def data() -> Paired:
    return tiny_paired(n_labels=24, n_each=16)


@pytest.fixture(scope="module")
def model(data):
    return build_model(data, tiny_loop()).eval()


@pytest.fixture(scope="module")
def aligned(data, tmp_path_factory):
    """A model whose spaces are aligned, trained in seconds."""
    config = tiny_loop(method="align-classify", steps=60, inner_steps=4, align_way=10, outer_learning_rate=1e-2)
    loop = Loop(data, config, tmp_path_factory.mktemp("aligned"))
    for _ in range(config.steps):
        loop.advance()
    return loop.model.eval()


# ---- episodes ----


def test_support_and_queries_are_different_samples_of_test_labels_and_queries_do_not_depend_on_k(data):
    (drawn,) = Evaluation(data, "test", 50, 5, (1, 3)).drawn
    test = set(data.with_role("test").tolist())
    for rows in drawn.rows:
        labels = data.target.labels[rows]
        assert (labels == labels[:, :1]).all()
        assert len(set(labels[:, 0].tolist())) == drawn.n_way == 3
        assert set(labels[:, 0].tolist()) <= test
        assert len(set(rows.ravel().tolist())) == rows.size
    assert (data.source.labels[drawn.sources] == data.target.labels[drawn.rows[:, :, :1]]).all()


def test_episodes_are_named_by_a_hash_that_only_data_and_seed_decide(data):
    one, same, other = (Evaluation(data, "test", 20, 5, (1, 3), seed).sha256 for seed in (0, 0, 1))
    assert one == same != other


def test_episodes_do_not_depend_on_the_process(data):
    """Golden value: methods on two machines must be asked the same."""
    (drawn,) = Evaluation(data, "test", 1, 2, (1,)).drawn
    assert drawn.rows[0].tolist() == [[262, 261, 260], [207, 196, 201], [1, 13, 8]]


def test_a_protocol_asks_only_labels_of_its_origin(data):
    named = tuple(("photo " if i < 8 else "drawing ") + name for i, name in enumerate(data.classes))
    apart = replace(data, classes=named, protocols=(Protocol("photographs", 5, True, "photo "),))
    (drawn,) = Evaluation(apart, "test", 20, 5, (1,)).drawn
    assert data.target.labels[drawn.rows].max() < 8


def test_labels_with_too_few_samples_are_not_asked_and_none_is_an_error(data):
    with pytest.raises(InvalidInput, match="no two test labels have 18 target samples"):
        Evaluation(data, "test", 5, 8, (10,))


def test_wrong_labels_are_as_many_as_asked_for_and_really_wrong(data):
    (drawn,) = Evaluation(data, "test", 400, 5, (5,)).drawn
    own = np.arange(drawn.n_way)[:, None]
    for noise in (0.0, 0.2, 0.4):
        slots = Evaluation._slots(drawn, 5, noise)
        assert (slots != own).mean() == pytest.approx(noise, abs=0.02)
        assert ((slots >= 0) & (slots < drawn.n_way)).all()
    fewer = Evaluation._slots(drawn, 5, 0.2) != own
    assert (fewer <= (Evaluation._slots(drawn, 5, 0.4) != own)).all()  # more noise keeps what was wrong


# ---- heads ----


def test_the_prototype_head_is_the_nearest_mean_of_unit_embeddings(data, model):
    """Against float64 numpy."""
    evaluation = Evaluation(data, "test", 12, 4, (1, 3))
    (drawn,) = evaluation.drawn
    x = torch.from_numpy(data.target.x.astype(np.float32) / 127.5 - 1)
    with torch.inference_mode():
        embedded = model.embed_target(x).double().numpy()
    cells = {cell.k: cell for cell in evaluation.prototype_cells(model)}
    for k in (1, 3):
        for rows, accuracy in zip(drawn.rows, cells[k].accuracies, strict=True):
            prototypes = embedded[rows[:, :k]].mean(axis=1)
            prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
            answers = (embedded[rows[:, 3:]] @ prototypes.T).argmax(axis=2)
            assert accuracy == pytest.approx((answers == np.arange(3)[:, None]).mean())


def test_zero_target_shots_tell_labels_apart_only_where_the_spaces_are_aligned(data, model, aligned):
    evaluation = Evaluation(data, "test", 200, 5, (1, 5))
    accuracy = {
        name: {cell.k: cell.accuracies.mean() for cell in evaluation.prototype_cells(m)}
        for name, m in (("never trained", model), ("aligned", aligned))
    }
    assert accuracy["never trained"][0] == pytest.approx(1 / 3, abs=0.12)
    assert accuracy["aligned"][0] > 0.5
    assert accuracy["aligned"][5] > 0.8


def test_phi_with_random_slots_is_at_chance_without_shots(data, aligned):
    (cell,) = Evaluation(data, "test", 150, 5, (1,)).phi_cells(aligned, tiny_loop(), (0,), 150)
    mean, ci95 = mean_and_ci95(cell.accuracies)
    assert abs(mean - 1 / 3) < 1.5 * ci95


def test_without_shots_phi_answers_as_the_model_does(data, aligned):
    evaluation = Evaluation(data, "test", 3, 5, (1,))
    (drawn,), (cell,) = evaluation.drawn, evaluation.phi_cells(aligned, tiny_loop(), (0,), 3)
    for i, accuracy in enumerate(cell.accuracies):
        slots = np.random.default_rng([i, 29]).permutation(4)[:3]
        rows = drawn.rows[i, :, 1:].ravel()
        with torch.inference_mode():
            answers = aligned.slots(aligned.embed_target(as_input(data.target.x[rows], "image", None)))[:, slots]
        assert accuracy == (answers.argmax(dim=1).numpy() == np.repeat(np.arange(3), 5)).mean()


def test_phi_learns_from_the_support(data, aligned):
    config = tiny_loop(test_steps=30, inner_learning_rate=3e-3)
    (cell,) = Evaluation(data, "test", 12, 5, (5,)).phi_cells(aligned, config, (5,), 12)
    assert cell.accuracies.mean() > 0.9


def test_alignment_steps_at_meta_test_need_source_samples(data, model):
    without = replace(data, protocols=(Protocol("labels", 3, False),))
    evaluation = Evaluation(without, "test", 2, 4, (1,))
    assert list(evaluation.phi_cells(model, tiny_loop(), (1,), 2, align="set")) == []
    assert {cell.k for cell in evaluation.prototype_cells(model)} == {1}


def test_noise_is_measured_at_one_shot_number_only(data, model):
    cells = list(Evaluation(data, "test", 5, 4, (1, 3, 5)).prototype_cells(model, (0.0, 0.4)))
    assert [(cell.k, cell.noise) for cell in cells] == [(0, 0), (1, 0), (3, 0), (3, 0.4), (5, 0)]


# ---- networks ----


@pytest.mark.parametrize("method", ["croma-weak-nce", "croma-shared"])
def test_embeddings_begin_in_all_directions(data, method):
    """With one direction for all of them, training ends in a point."""
    model = build_model(data, tiny_loop(method=method))
    for side, encode in ((data.source, model.source), (data.target, model.target)):
        train = np.isin(side.labels, data.with_role("train"))
        with torch.inference_mode():
            values = encode(as_input(side.x[train], side.kind, None))
        if method != "croma-shared":
            assert values.mean(dim=0).abs().max() < 0.1
            assert (values.std(dim=0) - 1).abs().max() < 0.1
        unit = torch.nn.functional.normalize(values, dim=1)
        assert float((unit @ unit.T).mean()) < 0.3


def test_only_training_samples_decide_how_networks_begin(data):
    unseen = ~np.isin(data.target.labels, data.with_role("train"))
    x = data.target.x.copy()
    x[unseen] = 0
    other = replace(data, target=replace(data.target, x=x))
    states = [build_model(d, tiny_loop()).state_dict() for d in (data, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# ---- losses of stages ----


def test_set_nce_of_orthogonal_sets_has_the_closed_form(model):
    """Two sets of two equal rows, orthogonal to each other: -log(s / (2 s + 2)) with s = exp(scale), both ways."""
    rows = torch.eye(model.config.dim)[[0, 0, 1, 1]]
    scale = float(torch.exp(model.log_scale.detach()))
    expected = np.log(2 * np.exp(scale) + 2) - scale
    loss = set_nce(model, rows, rows, torch.tensor([0, 0, 1, 1]))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_a_discriminator_that_knows_nothing_has_the_loss_log_2_and_its_gradient_is_reversed(data):
    model = build_model(data, tiny_loop())
    torch.nn.init.zeros_(model.discriminator[2].weight)
    torch.nn.init.zeros_(model.discriminator[2].bias)
    rows = torch.eye(model.config.dim)[:3]
    assert float(modality_confusion(model, rows, rows, None).detach()) == pytest.approx(np.log(2), rel=1e-6)
    x = torch.tensor([2.0], requires_grad=True)
    (3 * GradientReversal.apply(x)).sum().backward()
    assert x.grad.tolist() == [-3.0]


def test_reconstruction_is_exact_where_the_decoder_is():
    x = torch.rand(2, 1, 16, 16)
    cells = x.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5)).flatten(1)
    assert float(reconstruction_loss("sound", x, cells)) == pytest.approx(0, abs=1e-12)
    tokens = torch.tensor([[1, 3, 0]])
    assert float(reconstruction_loss("text", tokens, torch.zeros(1, 5))) == pytest.approx(np.log(5), rel=1e-6)


# ---- retrieval ----


def test_a_rank_counts_what_is_as_near_as_the_right_one():
    similarity = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.4, 0.4, 0.4]], np.float32)
    right = np.array([[True, False, False], [False, True, True], [False, True, False]])
    assert ranks(similarity, right).tolist() == [1, 2, 3]


def test_chance_is_that_of_a_random_order():
    """Exact by combinatorics; checked against 20,000 random orders."""
    one = Retrieval("test", "labels", "source to target", np.array([1, 3, 4]), 12, 3)
    rng = np.random.default_rng(0)
    first = np.array([1 + min(rng.permutation(12)[:3]) for _ in range(20_000)])
    for k in (1, 5, 10):
        assert one.recall_by_chance(k) == pytest.approx((first <= k).mean(), abs=0.01)
        assert one.recall_by_chance(k) == 1 - comb(9, k) / comb(12, k)
    assert one.median_rank_by_chance == np.median(first)
    assert (one.median_rank, one.recall(1), one.recall(5)) == (3.0, 1 / 3, 1.0)


def test_aligned_spaces_retrieve_and_a_collapsed_one_does_not(data, model, aligned, monkeypatch):
    found = {(one.what, one.direction): one for one in retrieval(data, aligned)}
    assert set(found) == {(w, d) for w in ("pairs", "labels") for d in ("source to target", "target to source")}
    for one in found.values():
        if one.what == "pairs":
            assert one.median_rank < 0.7 * one.median_rank_by_chance
        else:
            assert one.recall(1) > 1.5 * one.recall_by_chance(1)
    assert found["labels", "source to target"].n_gallery == 10 * len(data.with_role("test"))
    monkeypatch.setattr(evaluation_module.Embedded, "at", lambda _self, rows: torch.ones(*rows.shape, 4) / 2)
    assert all(one.recall(10) == 0 for one in retrieval(data, model) if one.what == "pairs")


# ---- data ----


def test_splits_are_the_same_on_every_machine_and_disjoint():
    labels = [f"label {i}" for i in range(20)]
    roles = split_labels(labels)
    assert roles == split_labels(reversed(labels))
    assert [sum(role == name for role in roles.values()) for name in ("train", "val", "test")] == [14, 3, 3]
    with pytest.raises(InvalidInput, match="5 labels cannot be split"):
        split_labels(labels[:5])


def test_the_hash_of_data_changes_with_pairs_and_split_but_not_with_target_labels(data):
    pairs, roles = data.pairs.copy(), list(data.roles)
    pairs[0, 1] += 1
    roles[2] = "val"
    assert len({data.sha256, replace(data, pairs=pairs).sha256, replace(data, roles=tuple(roles)).sha256}) == 3
    assert replace(data, target=replace(data.target, labels=data.target.labels * 0)).sha256 == data.sha256


@pytest.mark.parametrize(
    ("shots", "queries", "sentence"),
    [((1, 10), 10, r"test label 'label 00' has 16 target samples, but k \+ queries is 10 \+ 10: add 4 more")],
)
def test_a_label_with_too_few_samples_for_k_and_queries_is_named(data, shots, queries, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        data.check(shots, queries)


def test_roles_that_cannot_be_told_apart_are_refused(data):
    with pytest.raises(InvalidInput, match="0 labels have the split 'val'"):
        replace(data, roles=tuple("test" if role == "val" else role for role in data.roles)).check((1,), 1)


def test_results_are_told_with_intervals_and_chance(data, model):
    evaluation = Evaluation(data, "test", 20, 5, (1, 5))
    cells, found = list(evaluation.prototype_cells(model)), retrieval(data, model)
    table = research.results_table(cells)
    mean, ci95 = mean_and_ci95(100 * cells[-1].accuracies)
    assert f"{mean:.1f} ± {ci95:.1f}" in table
    assert "k=0" in table and "labels, 3-way, prototype" in table
    assert f"({found[0].n_gallery})" in research.retrieval_table(found)
    assert evaluation.sha256 in research.results_json(data, evaluation, cells, found)
