"""The command that trains: batches, losses that fall, validation, checkpoints, resuming, refusals."""

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_run import STEPS, small_files, tiny_config
from torch import nn

from edgealign.errors import EdgealignError, InvalidInput
from edgealign.train import updates
from edgealign.train.batches import RECORDED_SHARES, Batch, Batches, build_vocabulary
from edgealign.train.config import TrainConfig
from edgealign.train.corpus import STRETCHES, TESTED, Corpus, Label
from edgealign.train.encoders import TEACHER, AlignedEncoders
from edgealign.train.text_to_speech import Checkpoint, Trainer, in_parts, joint_losses, load_state, source_task
from edgealign.train.validation import Validation
from edgealign.train.words import sound_of


def silent(_line: str) -> None:
    pass


def batches_of(corpus: Corpus, **fields: object) -> Batches:
    return Batches(corpus, build_vocabulary(corpus), tiny_config(**fields))


def equal(one: Batch, other: Batch) -> bool:
    def tensors(batch: Batch) -> list[torch.Tensor]:
        return [
            tensor
            for value in vars(batch).values()
            for tensor in (value if isinstance(value, tuple) else (value,))
        ]  # fmt: skip

    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


@pytest.fixture(scope="module")
def batches(recorded_corpus) -> Batches:
    return batches_of(recorded_corpus.corpus, recorded_words=6, takes=3)


# ---- vocabulary ----


def test_the_vocabulary_has_the_code_points_that_three_labels_are_written_with():
    labels = [Label(text, "sw", ipa, "synthetic", "train") for text, ipa in (("ab", "ˈa"), ("aB", "a"), ("b", "x"))]
    vocabulary = build_vocabulary(SimpleNamespace(labels=[*labels, Label("", "", "", "arabic_sc:qqq", "train")]))
    assert set(vocabulary["tokens"]) == {"b"}  # "a" is in two labels only


def test_every_token_has_an_id_of_its_own_and_none_is_the_padding(recorded_corpus):
    vocabulary = build_vocabulary(recorded_corpus.corpus)
    ids = [i for table in ("tokens", "languages", "kinds") for i in vocabulary[table].values()]
    assert len(ids) == len(set(ids))
    assert min(ids) > max(vocabulary["pad"], vocabulary["unknown"])
    assert {"sw", "en", "und"} <= set(vocabulary["languages"])


def test_a_macrolanguage_shares_the_token_of_its_voice():
    labels = [Label("a", voice, "a", "synthetic", "train") for voice in ("cmn", "nb")]
    languages = build_vocabulary(SimpleNamespace(labels=labels))["languages"]
    assert languages["zh"] == languages["cmn"] != languages["no"] == languages["nn"] == languages["nb"]


# ---- batches ----


def test_a_batch_of_a_step_is_always_the_same(recorded_corpus, batches):
    again = batches_of(recorded_corpus.corpus, recorded_words=6, takes=3)
    assert equal(batches.draw(3), again.draw(3))
    for step in range(3):
        again.draw(step)
    assert equal(batches.draw(3), again.draw(3))


def test_batches_of_other_steps_and_other_seeds_differ(recorded_corpus, batches):
    assert not equal(batches.draw(3), batches.draw(4))
    assert not equal(batches.draw(3), batches_of(recorded_corpus.corpus, recorded_words=6, takes=3, seed=1).draw(3))


def test_batches_drawn_ahead_are_the_batches(batches):
    ahead = list(batches.ahead(2, 5))
    assert len(ahead) == 3
    assert all(equal(batch, batches.draw(step)) for step, batch in enumerate(ahead, 2))


def test_an_error_while_drawing_ahead_reaches_the_training_thread(batches, monkeypatch):
    def draw(step: int) -> Batch:
        raise ValueError(f"no batch {step}")

    monkeypatch.setattr(batches, "draw", draw)
    with pytest.raises(ValueError, match="no batch 7"):
        list(batches.ahead(7, 9))


def test_training_that_stops_early_is_not_held_up_by_an_error_of_a_batch_it_will_not_use(batches, monkeypatch):
    """The queue holds one batch and the second fails: the drawing thread must end although nobody takes its error."""

    def draw(step: int) -> Batch:
        if step:
            raise ValueError("spoiled")
        return None

    monkeypatch.setattr(batches, "draw", draw)
    ahead = batches.ahead(0, 9, depth=1)
    next(ahead)
    ahead.close()  # joins the thread


def test_a_batch_has_only_training_words_and_what_is_said_of_each_row_is_true(recorded_corpus, batches):
    corpus = recorded_corpus.corpus
    for step in range(5):
        batch = batches.draw(step)
        n = len(batch.log_mels)
        assert n == 8 * 2 + 6 * 3
        assert {len(t) for t in (batch.mask, batch.label, batch.speaker, batch.phones, batch.n_phones)} == {n}
        lengths = batch.mask.sum(dim=(1, 2))
        assert torch.equal(lengths, lengths.sort().values)  # as `in_parts` needs it
        for row, label in enumerate(batch.label.tolist()):
            if label >= len(corpus.labels):
                assert batch.n_phones[row] == 0  # a splice: nobody knows how it is written
                continue
            assert corpus.labels[label].role == "train"
            sound = sound_of(corpus.labels[label].ipa)
            ids = batch.phones[row, : batch.n_phones[row]].tolist()
            assert ids == [batches.phone_ids[c] for c in sound if c in batches.phone_ids]
            assert int(batch.speaker[row]) in corpus.clips["speaker"][corpus.clips_of[label]]
        spelled = {i for i in batch.label.tolist() if i < len(corpus.labels) and corpus.labels[i].text}
        assert sorted(batch.text_label.tolist()) == sorted(spelled)
        assert len(batch.graphemes[0]) == len(batch.ipa[0]) == len(spelled)


def test_a_splice_is_one_new_label_said_by_several_people(recorded_corpus):
    corpus = recorded_corpus.corpus
    batch = batches_of(corpus, whole_share=0.0, recorded_words=6, takes=3).draw(0)
    spliced = batch.label >= len(corpus.labels)
    assert spliced.sum() == 6 * 3
    for label in batch.label[spliced].unique():
        assert (batch.label == label).sum() == 3
        assert len(batch.speaker[batch.label == label].unique()) > 1


def test_windows_of_unknown_words_are_one_label_in_as_many_voices_as_takes(recorded_corpus, monkeypatch):
    monkeypatch.setitem(RECORDED_SHARES, STRETCHES, 1e9)
    batch = batches_of(recorded_corpus.corpus, recorded_words=3, takes=4).draw(0)
    heard = batch.label >= len(recorded_corpus.corpus.labels)
    assert heard.sum() == 3 * 4
    for label in batch.label[heard].unique():
        assert len(batch.speaker[batch.label == label].unique()) == 4


def test_takes_of_a_recorded_word_are_by_different_speakers_as_far_as_there_are_any(recorded_corpus, batches):
    corpus = recorded_corpus.corpus
    label = next(i for i in batches.recorded if corpus.labels[i].source == "arabic_sc:word0")
    for n in (2, 3, 6):
        takes = batches._takes(random.Random(n), label, n)
        assert len(takes) == len(set(takes)) == n
        assert len({int(corpus.clips["speaker"][clip]) for clip in takes[:3]}) == min(n, 3)
    assert len(batches._takes(random.Random(0), label, 8)) == 8  # there are six: two come again


def test_a_pack_that_is_not_left_out_is_heard_with_all_of_its_speakers(recorded_corpus):
    corpus = recorded_corpus.corpus
    heard = batches_of(corpus, left_out=("dspspeech20", "fsdd"))
    speakers = {corpus.labels[label].source: len(of) for label, of in heard.clips_by_speaker.items()}
    arabic = {name.removeprefix("arabic_sc:word"): n for name, n in speakers.items() if name.startswith("arabic_sc")}
    assert arabic == {"0": 4, "1": 4, "5": 4, "6": 4, "4": 4, "9": 4}  # one label each; validation words stay apart
    assert {corpus.labels[label].role for label in heard.recorded} == {"train", TESTED}


def test_a_pack_that_cannot_be_left_out_is_refused():
    with pytest.raises(InvalidInput, match=r"'esc50' cannot be left out: expected some of arabic_sc"):
        tiny_config(left_out=("esc50",))


def test_words_and_speakers_that_are_left_out_cannot_change_a_batch(recorded_corpus, batches):
    """Poison the sound of every word that is validated, tested or said by a speaker of the test."""
    corpus = recorded_corpus.corpus
    poisoned = SimpleNamespace(**vars(corpus))
    poisoned.spectra = np.array(corpus.spectra)
    for label, clips in zip(corpus.labels, corpus.clips_of, strict=True):
        for row in corpus.clips[clips] if label.role != "train" else ():
            poisoned.spectra[row["offset"] : row["offset"] + row["n_frames"]] = 255
    poisoned.select = corpus.select
    other = Batches(poisoned, build_vocabulary(corpus), batches.config)
    assert all(equal(batches.draw(step), other.draw(step)) for step in range(3))


def test_a_corpus_with_fewer_words_than_a_batch_asks_for_gives_all_of_them(spoken_corpus):
    few = batches_of(spoken_corpus.corpus, synthetic_words=10_000)
    assert len(few.draw(0).text_label) == len(few.synthetic)


def test_half_of_the_words_of_a_batch_come_in_runs_that_begin_or_end_alike(spoken_corpus):
    """Runs of seven neighbors in the order of their sounds, read forwards or backwards, and shorter ones at its end."""
    batches = batches_of(spoken_corpus.corpus)
    orders = [
        sorted(batches.synthetic, key=lambda i: sound_of(spoken_corpus.corpus.labels[i].ipa)[::way]) for way in (1, -1)
    ]
    n_runs = 0
    for seed in range(30):
        words = batches._words(random.Random(seed), 14)
        assert len(set(words)) == 14
        n_runs += any(order[at : at + 7] == words[:7] for order in orders for at in range(len(order)))
    assert n_runs >= 24


@pytest.mark.parametrize("n", [1, 2, 5, 34])
def test_the_parts_of_a_batch_are_the_batch(n):
    parts = in_parts(torch.zeros(n, 1, 3))
    assert [i for part in parts for i in range(n)[part]] == list(range(n))


def test_the_slots_of_the_classifier_are_assigned_at_random_in_every_task(batches):
    batch = batches.draw(0)
    seen: list[list[int]] = []

    class Asked(nn.Module):
        classifier = nn.Linear(1, 5)

        def text(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(ids), 1, requires_grad=True)

    def record(_logits: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        seen.append(slots.tolist())
        return torch.zeros(())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "cross_entropy", record)
        for seed in (0, 0, 1, 2):
            source_task(batch, 5, random.Random(seed))(Asked())
    assert all(sorted(slots) == [0, 1, 2, 3, 4] for slots in seen)
    assert seen[0] == seen[2]  # the same task gives every copy the same slots
    assert len({tuple(slots) for slots in seen}) > 1


# ---- learning ----


def test_training_lowers_the_joint_loss_on_batches_that_it_did_not_see(trained_run, spoken_corpus):
    state = load_state(trained_run / "last.pt")
    config = tiny_config(synthetic_words=16)
    batches = Batches(spoken_corpus.corpus, state["vocabulary"], config)
    encoders = replace(config.encoders, n_tokens=state["config"]["encoders"]["n_tokens"])
    torch.manual_seed(0)
    untrained, trained = AlignedEncoders(encoders), AlignedEncoders(encoders)
    trained.load_state_dict(state["model"])
    with torch.no_grad():
        before, after = (
            np.mean(
                [float(sum(joint_losses(model, batches.draw(step), config).values())) for step in range(1000, 1004)]
            )
            for model in (untrained, trained)
        )
    assert after < 0.9 * before


def test_the_curve_is_logged_at_every_validation(trained_run):
    (row,) = [json.loads(line) for line in (trained_run / "log.jsonl").read_text().splitlines()]
    assert row["step"] == STEPS
    assert {"trained_s", "speakers", "text", "phones", "score", "synthetic_1shot", "text_grapheme", "text_ipa"} <= set(
        row
    )


def test_a_weight_of_zero_leaves_phonemes_out(batches):
    torch.manual_seed(0)
    model = AlignedEncoders(replace(batches.config.encoders, n_tokens=400))
    assert set(joint_losses(model, batches.draw(0), batches.config)) == {"speakers", "text", "phones"}
    without = joint_losses(model, batches.draw(0), replace(batches.config, phone_weight=0.0))
    assert set(without) == {"speakers", "text"}


def test_batches_without_a_second_speaker_leave_the_weights_finite(spoken_corpus, tmp_path, quick_score):
    trainer = Trainer(spoken_corpus.corpus, tiny_config(renders=1, steps=2), tmp_path / "run")
    trainer.run(silent)
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


# ---- validation ----


@pytest.fixture(scope="module")
def validation(recorded_corpus, batches) -> Validation:
    return Validation(recorded_corpus.corpus, batches)


def test_validation_asks_for_validation_words_only(recorded_corpus, validation, batches):
    labels = recorded_corpus.corpus.labels
    asked = {label for rows in validation.labels.values() for label in rows.tolist()} | set(validation.synthetic)
    assert asked
    assert all(labels[i].role == "val" for i in asked)
    trained = set(batches.synthetic) | set(batches.recorded)
    assert {sound_of(labels[i].ipa) for i in asked if labels[i].ipa}.isdisjoint(
        sound_of(labels[i].ipa) for i in trained
    )


def test_training_words_cannot_change_the_score(recorded_corpus, validation, batches):
    corpus = recorded_corpus.corpus
    poisoned = SimpleNamespace(**vars(corpus), select=corpus.select)
    poisoned.spectra = np.array(corpus.spectra)
    for label, clips in zip(corpus.labels, corpus.clips_of, strict=True):
        for row in corpus.clips[clips] if label.role == "train" else ():
            poisoned.spectra[row["offset"] : row["offset"] + row["n_frames"]] = 255
    torch.manual_seed(0)
    model = AlignedEncoders(replace(batches.config.encoders, n_tokens=400))
    other = Validation(poisoned, Batches(poisoned, build_vocabulary(corpus), batches.config))
    assert validation.score(model) == other.score(model)


class Knows(nn.Module):
    """Stands for encoders: every validation word and its spelling have the direction `directions[label]`."""

    def __init__(self, validation: Validation, directions: np.ndarray) -> None:
        super().__init__()
        self.config = SimpleNamespace(dim=directions.shape[1])
        self.directions = torch.from_numpy(directions)
        self.spoken = [label for rows in validation.labels.values() for label in rows.tolist()]
        self.written = list(validation.synthetic)
        self.at = 0

    def embed_speech(self, log_mels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows = self.spoken[self.at : self.at + len(log_mels)]
        self.at += len(log_mels)
        return self.directions[rows]

    def embed_text(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.directions[self.written]


def test_encoders_that_know_every_word_score_100_and_encoders_that_know_nothing_score_chance(
    recorded_corpus, validation
):
    n_labels = len(recorded_corpus.corpus.labels)
    perfect = validation.score(Knows(validation, np.eye(n_labels, dtype=np.float32)))
    assert set(perfect) == {"score", "synthetic_1shot", "recorded_1shot", "recorded_5shot", "text_grapheme", "text_ipa"}
    assert set(perfect.values()) == {100.0}
    same = validation.score(Knows(validation, np.ones((n_labels, 3), np.float32)))
    assert same["synthetic_1shot"] == pytest.approx(10, abs=3)
    assert same["recorded_1shot"] == pytest.approx(100 / 6, abs=3)
    assert same["score"] == pytest.approx(np.mean([v for name, v in same.items() if name != "score"]))


def test_scoring_leaves_the_model_as_it_was(validation, batches):
    model = AlignedEncoders(replace(batches.config.encoders, n_tokens=400)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    validation.score(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_best_checkpoint_is_that_of_the_best_validation_and_the_last_that_of_the_last(
    spoken_corpus, tmp_path, monkeypatch
):
    scores = iter([20.0, 30.0, 25.0])
    trainer = Trainer(spoken_corpus.corpus, tiny_config(steps=6), tmp_path)
    monkeypatch.setattr(trainer.validation, "score", lambda model: {"score": next(scores)})
    trainer.run(silent)
    assert load_state(tmp_path / "best.pt")["step"] == 4
    assert load_state(tmp_path / "best.pt")["best"] == 30.0
    assert load_state(tmp_path / "last.pt")["step"] == 6


def test_a_corpus_with_too_few_validation_words_is_refused(spoken_corpus, batches):
    alone = SimpleNamespace(**vars(spoken_corpus.corpus))
    alone.select = lambda role, synthetic: [] if role == "val" else [0, 1, 2]
    with pytest.raises(InvalidInput, match=r"0 validation words.*more words or languages"):
        Validation(alone, batches)


# ---- checkpoints and resuming ----


class PowerCut(Exception):
    pass


@pytest.fixture
def quick_score(monkeypatch):
    """Validation that asks nothing, where only what is saved matters."""
    monkeypatch.setattr(Validation, "score", lambda self, model: {"score": 1.0})


def weights(folder, part: str) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.pt", weights_only=True)[part]


@pytest.mark.parametrize("recipe", ["joint", "croma"])
def test_an_interrupted_run_ends_in_the_weights_of_one_that_was_not(
    recorded_corpus, tmp_path, quick_score, monkeypatch, recipe
):
    """Cut at step 3 of 4, where the last checkpoint is of step 2."""
    config = tiny_config(recipe=recipe)
    Trainer(recorded_corpus.corpus, config, tmp_path / "whole").run(silent)

    interrupted = Trainer(recorded_corpus.corpus, config, tmp_path / "cut")
    update = updates.follow

    def cut(*arguments: object) -> None:
        update(*arguments)
        if interrupted.step == 2:
            raise PowerCut

    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(updates, "follow", cut)
        interrupted.run(silent)
    early = weights(tmp_path / "cut", "model")
    resumed = Trainer(recorded_corpus.corpus, config, tmp_path / "cut")
    assert resumed.step == 2
    resumed.run(silent)

    for part in ("model", "average"):
        whole, cut_and_resumed = (weights(tmp_path / run, part) for run in ("whole", "cut"))
        assert whole.keys() == cut_and_resumed.keys()
        assert all(torch.equal(whole[name], cut_and_resumed[name]) for name in whole), part
        assert any(not torch.equal(early[name], cut_and_resumed[name]) for name in early)
    moments = [weights(tmp_path / run, "optimizer")["state"] for run in ("whole", "cut")]
    assert all(torch.equal(moments[0][i]["exp_avg"], moments[1][i]["exp_avg"]) for i in moments[0])


def test_a_run_that_is_out_of_time_leaves_a_checkpoint_and_goes_on(spoken_corpus, tmp_path, quick_score):
    first = Trainer(spoken_corpus.corpus, tiny_config(), tmp_path)
    first.run(silent, minutes=0.0)
    assert load_state(tmp_path / "last.pt")["step"] == first.step == 1
    again = Trainer(spoken_corpus.corpus, tiny_config(), tmp_path)
    again.run(silent)
    assert (again.step, load_state(tmp_path / "last.pt")["step"]) == (4, 4)


def test_a_checkpoint_that_there_is_no_room_for_leaves_the_old_one(spoken_corpus, tmp_path, quick_score):
    trainer = Trainer(spoken_corpus.corpus, tiny_config(), tmp_path)
    trainer.run(silent)
    before = (tmp_path / "last.pt").read_bytes()
    with small_files(len(before) // 2), pytest.raises(EdgealignError, match=r"last\.pt' cannot be written: File too"):
        trainer._save("last.pt")
    assert (tmp_path / "last.pt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "last.pt", "log.jsonl"]


def test_a_finished_run_can_be_made_longer_and_is_otherwise_left_alone(spoken_corpus, tmp_path, quick_score):
    Trainer(spoken_corpus.corpus, tiny_config(steps=2), tmp_path).run(silent)
    before = (tmp_path / "last.pt").read_bytes()
    Trainer(spoken_corpus.corpus, tiny_config(steps=2), tmp_path).run(pytest.fail)
    assert (tmp_path / "last.pt").read_bytes() == before
    longer = Trainer(spoken_corpus.corpus, tiny_config(steps=3), tmp_path)
    assert longer.step == 2
    longer.run(silent)
    assert load_state(tmp_path / "last.pt")["step"] == 3


def test_a_checkpoint_holds_nothing_but_tensors_and_plain_values(trained_run, spoken_corpus):
    state = torch.load(trained_run / "best.pt", weights_only=True)
    assert state["corpus_sha256"] == spoken_corpus.corpus.sha256
    assert state["vocabulary"] == build_vocabulary(spoken_corpus.corpus)
    assert state["config"]["recipe"] == "joint"
    assert not (trained_run / "best.pt.partial").exists()


def test_a_new_run_starts_from_the_average_of_another(trained_run, spoken_corpus, tmp_path):
    trainer = Trainer(spoken_corpus.corpus, tiny_config(), tmp_path / "next")
    trainer.start_from(trained_run / "best.pt")
    assert trainer.step == 0
    average = load_state(trained_run / "best.pt")["average"]
    for model in (trainer.model, trainer.average):
        assert all(torch.equal(value, average[name]) for name, value in model.state_dict().items())


def test_weights_of_another_vocabulary_go_to_the_same_code_points(trained_run, spoken_corpus, tmp_path):
    state = load_state(trained_run / "best.pt")
    tokens = state["vocabulary"]["tokens"]
    first, second, forgotten = list(tokens)[:3]
    tokens[first], tokens[second] = tokens[second], tokens[first]
    del tokens[forgotten]
    torch.save(state, tmp_path / "swapped.pt")
    trainer = Trainer(spoken_corpus.corpus, tiny_config(), tmp_path / "another")
    mine, own = trainer.vocabulary["tokens"], trainer.model.text.embedding.weight.detach().clone()
    trainer.start_from(tmp_path / "swapped.pt")
    theirs, weight = state["average"]["text.embedding.weight"], trainer.model.text.embedding.weight
    assert torch.equal(weight[mine[first]], theirs[tokens[first]])
    assert torch.equal(weight[mine[second]], theirs[tokens[second]])
    assert torch.equal(weight[mine[forgotten]], own[mine[forgotten]])


def test_weights_are_not_taken_over_into_encoders_of_other_sizes(trained_run, spoken_corpus, tmp_path):
    config = tiny_config(encoders=replace(tiny_config().encoders, dim=16))
    with pytest.raises(InvalidInput, match="other encoders than this run"):
        Trainer(spoken_corpus.corpus, config, tmp_path / "other").start_from(trained_run / "best.pt")


def test_a_run_on_another_corpus_is_refused(trained_run, recorded_corpus):
    with pytest.raises(InvalidInput, match=r"was trained on another corpus .*name the corpus it was made with"):
        Trainer(recorded_corpus.corpus, tiny_config(), trained_run)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"recipe": "croma"}, {"synthetic_words": 9}])
def test_a_run_with_another_configuration_is_refused(spoken_corpus, tmp_path, quick_score, changed):
    Trainer(spoken_corpus.corpus, tiny_config(steps=1), tmp_path).run(silent)
    sentence = rf"trained with another configuration \({next(iter(changed))}\): name another run folder"
    with pytest.raises(InvalidInput, match=sentence):
        Trainer(spoken_corpus.corpus, tiny_config(steps=1, **changed), tmp_path)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"], ids=["empty", "text", "cut off"])
def test_a_damaged_checkpoint_is_refused_by_name(spoken_corpus, tmp_path, content):
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"last\.pt' is not a checkpoint of `edgealign train`"):
        Trainer(spoken_corpus.corpus, tiny_config(), tmp_path)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(InvalidInput, match="is not a checkpoint of `edgealign train`"):
        load_state(tmp_path / "other.pt")


class Evil:
    def __reduce__(self) -> tuple:
        return print, ("this was executed",)


def test_a_checkpoint_that_would_execute_code_is_refused(tmp_path, capsys):
    torch.save({"average": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InvalidInput, match="is not a checkpoint"):
        load_state(tmp_path / "evil.pt")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "value", "lowest"),
    [("steps", 0, 1), ("validate_every", 0, 1), ("learning_rate", float("nan"), 0), ("weight_decay", -1.0, 0),
     ("average_decay", float("inf"), 0), ("synthetic_words", 0, 1)],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_refused(field, value, lowest):
    with pytest.raises(InvalidInput, match=rf"{field} is {value}: expected a number from {lowest} on"):
        TrainConfig(**{field: value})


# ---- the command ----


@pytest.fixture
def train(edgealign, spoken_corpus, tmp_path, monkeypatch):
    """`edgealign train text-to-speech RUN --corpus CORPUS` with more arguments."""
    monkeypatch.delenv("EDGEALIGN_DATA", raising=False)

    def run(*arguments: object, run=tmp_path / "run", corpus=spoken_corpus.folder):
        return edgealign("train", "text-to-speech", run, "--corpus", corpus, *arguments)

    return run


def test_the_command_trains_says_how_it_goes_and_where_the_checkpoint_is(train, tmp_path):
    line = ("--steps", 2, "--set", "synthetic_words=6,warm_up_steps=1,phone_weight=0")
    ran = train(*line)
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'run' / 'best.pt'}\n")
    assert ran.err.startswith("validation score ")
    config = load_state(tmp_path / "run" / "best.pt")["config"]
    assert (config["synthetic_words"], config["steps"], config["phone_weight"]) == (6, 2, 0.0)
    again = train(*line)
    assert (again.code, again.out, again.err) == (0, ran.out, "")
    started = train("--start-from", tmp_path / "run" / "best.pt", *line, run=tmp_path / "second")
    assert started.code == 0


def test_a_teacher_is_no_bundle_and_no_student(train, edgealign, spoken_corpus, tmp_path):
    few = ("--steps", 1, "--set", "synthetic_words=6,warm_up_steps=1,phone_weight=0")
    plain = Path(train(*few).out.strip())
    teacher = Path(train("--teacher", *few, run=tmp_path / "teacher").out.strip())
    assert Checkpoint.load(teacher).encoders.config.recurrent_units == TEACHER.recurrent_units
    rest = ("--corpus", spoken_corpus.folder)
    for line in (
        ("export", teacher, *rest, "-o", tmp_path / "bundle"),
        ("train", "spelling", tmp_path / "spelling", "--checkpoint", teacher, *rest),
    ):
        one_sentence(edgealign(*line), "of `text-to-speech --teacher`, which no bundle holds: name it as --teacher of")
    distill = ("train", "distill", tmp_path / "student", "--teacher", plain, "--teacher", teacher, *rest, *few[:2])
    one_sentence(edgealign(*distill), "of `text-to-speech --teacher`, which no bundle holds")
    too_few = edgealign(*distill, "--start-from", plain)
    assert (too_few.code, too_few.out) == (2, "")
    assert "clips to fit the last maps on, which takes 192 and more" in too_few.err


def one_sentence(ran, *parts: str) -> None:
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    for part in parts:
        assert part in ran.err


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("momentum=1", "'momentum' cannot be set: expected one of seed, steps"),
        ("recipe=croma", "'recipe' cannot be set"),
        ("__class__=1", "'__class__' cannot be set"),
        ("steps=2.5", "'steps=2.5': expected steps= and a whole number"),
        ("learning_rate", "'learning_rate': expected learning_rate= and a number"),
        ("learning_rate=nan", "learning_rate is nan: expected a number from 0 on"),
        ("validate_every=0", "validate_every is 0: expected a number from 1 on"),
    ],
)
def test_the_command_refuses_settings_that_are_unknown_or_make_no_sense(train, setting, sentence):
    one_sentence(train("--set", setting), sentence)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoints_of_before(train, tmp_path):
    line = ("--steps", 6, "--set", "synthetic_words=6,warm_up_steps=1,validate_every=1,learning_rate=1e30")
    ran = train(*line)
    assert ran.code == 1
    assert "the loss is no finite number (speakers nan" in ran.err
    for name in ("best.pt", "last.pt"):
        assert all(tensor.isfinite().all() for tensor in load_state(tmp_path / "run" / name)["average"].values())


def test_the_command_refuses_wrong_input_in_one_sentence(train, tmp_path):
    (tmp_path / "taken").write_text("")
    one_sentence(train("--recipe", "magic"), "recipe is 'magic': expected one of joint, croma")
    one_sentence(train("--start-from", tmp_path / "none.pt"), "there is no checkpoint", "none.pt")
    one_sentence(train("--start-from", tmp_path / "taken"), "is not a checkpoint of `edgealign train`")
    one_sentence(train(run=tmp_path / "taken" / "run"), "cannot hold a run")
    one_sentence(train(corpus=tmp_path / "taken" / "corpus"), "cannot hold a corpus")
    one_sentence(train("--languages", "sw,qqq", corpus=tmp_path / "corpus"), "no voice 'qqq'")
    one_sentence(train("--data", tmp_path / "none"), "is not a folder", "--data")
