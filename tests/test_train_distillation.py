"""A student of finished encoders: what its target is, that it comes nearer to it, that a run goes on exactly."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from edgealign.errors import InvalidInput
from edgealign.train.distillation import VARIANTS, Distillation, DistillationConfig, toward_words, varied
from edgealign.train.encoders import AlignedEncoders
from edgealign.train.front_end import mel_filters
from edgealign.train.text_to_speech import Checkpoint

CONFIG = DistillationConfig(
    steps=20, synthetic_words=24, recorded_words=2, learning_rate=1e-2, warm_up_steps=4, average_decay=0.8,
    validate_every=10,
)  # fmt: skip


def silent(_line: str) -> None:
    pass


@pytest.fixture(scope="module")
def teacher(trained_run, spoken_corpus) -> Checkpoint:
    return Checkpoint.load(trained_run / "best.pt").finish(spoken_corpus.corpus)


def untrained(teacher: Checkpoint) -> Checkpoint:
    torch.manual_seed(3)
    return replace(teacher, encoders=AlignedEncoders(teacher.encoders.config).eval(), centers=None)


def student_in(folder: Path, teacher: Checkpoint, spoken_corpus, **fields: object) -> Distillation:
    """Of two teachers, which are one; the student was not trained before."""
    config = replace(CONFIG, **fields)
    return Distillation(folder, untrained(teacher), [teacher, teacher], spoken_corpus.corpus, config, silent)


@pytest.fixture(scope="module")
def taught(teacher, spoken_corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distillation") / "run"
    student_in(folder, teacher, spoken_corpus).run(silent)
    return folder


def test_a_warped_clip_is_what_filters_at_other_frequencies_would_have_heard():
    rng = np.random.default_rng(0)
    smooth = np.convolve(rng.random(257), np.ones(25) / 25, "same") + 0.1
    plain, warped = (torch.from_numpy(np.log(mel_filters(warp) @ smooth)).float() for warp in (1.0, 1.04))
    mask = torch.ones(1, 1, 30)
    heard, _ = varied(plain[None, :, None].expand(1, -1, 30), mask, (1.04, 1.0))
    middle = slice(8, 40)
    assert (heard[0, middle, 0] - warped[middle]).abs().max() < 0.5 * (plain - warped)[middle].abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_keeps_the_word_and_its_mask_together(variant):
    mask = (torch.arange(60) < torch.tensor([[60], [40]])).float().unsqueeze(1)
    log_mels = torch.randn(2, 48, 60, generator=torch.Generator().manual_seed(0)) * mask
    heard, of = varied(log_mels, mask, variant)
    assert heard.shape[0::2] == of.shape[0::2]
    assert of.sum(dim=(1, 2)).tolist() == [round(60 * variant[1]), round(40 * variant[1])]


def test_the_clip_as_it_is_is_its_own_first_variant():
    log_mels, mask = torch.randn(1, 48, 20), torch.ones(1, 1, 20)
    heard, of = varied(log_mels, mask, VARIANTS[0])
    assert torch.equal(heard, log_mels) and torch.equal(of, mask)


def test_what_was_heard_moves_to_the_words_near_it():
    words = torch.eye(4)
    heard = torch.tensor([[3.0, 1.5, 0.0, 0.0]])  # twice as near to the first word as to the second, far from the rest
    unit = F.normalize(heard, dim=1)
    assert torch.allclose(toward_words(heard, words, 0.0), unit)
    assert torch.allclose(toward_words(heard, words, 1.0), words[:1], atol=1e-4)
    assert torch.allclose(toward_words(heard, words, 0.25), 0.75 * unit + 0.25 * words[:1], atol=1e-4)
    between = toward_words(torch.tensor([[1.0, 1.0, 0.0, 0.0]]), words, 1.0)
    assert torch.allclose(between, F.normalize(words[:1] + words[1:2], dim=1), atol=1e-4)


def test_words_are_what_teachers_hear_of_them_and_none_where_no_target_is_moved(teacher, spoken_corpus, tmp_path):
    student = student_in(tmp_path / "moved", teacher, spoken_corpus)
    assert len(student.words) == len(student.drawn.synthetic)
    assert torch.allclose(student.words.norm(dim=1), torch.ones(len(student.words)), atol=1e-2)
    dim = teacher.encoders.config.dim
    assert torch.allclose(student.words[:, :dim], student.words[:, dim:], atol=1e-3)  # its two teachers are one
    assert len(student_in(tmp_path / "plain", teacher, spoken_corpus, word_share=0.0).words) == 0


def test_a_student_comes_nearer_to_its_teachers(teacher, spoken_corpus, tmp_path, monkeypatch):
    """On one batch, over and over: what the hardly trained teacher of these tests makes of others is nearly chance."""
    student = student_in(tmp_path, teacher, spoken_corpus, steps=80, validate_every=1)
    batch = student.drawn.draw(0)
    monkeypatch.setattr(student, "batches", lambda: [batch] * 80)
    student.run(silent)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 81))
    for term in ("cosine", "statistics", "phones"):
        values = [row[term] for row in rows]
        assert np.mean(values[-5:]) < 0.5 * np.mean(values[:3])


def test_a_student_is_a_checkpoint_whose_texts_lie_where_its_speech_does(taught, teacher, spoken_corpus):
    student = Checkpoint.load(taught / "student.pt")
    assert student.finished is None and student.left_out == teacher.left_out
    finished = student.finish(spoken_corpus.corpus)
    assert finished.finished is not None
    ids, mask = torch.randint(1, 30, (6, 7), generator=torch.Generator().manual_seed(0)), torch.ones(6, 1, 7)
    with torch.no_grad():
        was, now = (F.normalize(c.encoders.embed_text(ids, mask), dim=1) for c in (teacher, student))
    assert not torch.allclose(was, now)


def test_the_phoneme_head_is_kept_in_the_order_of_the_corpus(taught, teacher, spoken_corpus, tmp_path):
    phones = Checkpoint.load(taught / "student.pt").phones
    n = len(phones)
    assert phones == teacher.phones and n > 5
    turned = replace(untrained(teacher), phones=phones[::-1])
    begun = Distillation(tmp_path, turned, [teacher], spoken_corpus.corpus, CONFIG, silent).model
    for given, now in zip(turned.encoders.speech.phones.parameters(), begun.speech.phones.parameters(), strict=True):
        assert torch.equal(now[0], given[0]) and torch.equal(now[1 : n + 1], given[1 : n + 1].flip(0))


def test_an_interrupted_run_ends_in_the_weights_of_one_that_was_not(teacher, spoken_corpus, taught, tmp_path):
    first = student_in(tmp_path, teacher, spoken_corpus)
    first.run(silent, minutes=0.0)
    assert first.step == 1
    student_in(tmp_path, teacher, spoken_corpus).run(silent)
    whole, cut = (torch.load(path / "last.pt", weights_only=True) for path in (taught, tmp_path))
    for part in ("model", "average"):
        assert all(torch.equal(whole[part][name], cut[part][name]) for name in whole[part])


def test_a_run_is_not_continued_with_other_teachers_or_another_configuration(teacher, spoken_corpus, taught):
    with pytest.raises(InvalidInput, match="another configuration \\(learning_rate\\)"):
        student_in(taught, teacher, spoken_corpus, learning_rate=1e-3)
    other = replace(untrained(teacher), centers=teacher.centers)
    for teachers in ([teacher], [teacher, other]):
        with pytest.raises(InvalidInput, match="has other teachers: name them in their order"):
            Distillation(taught, untrained(teacher), teachers, spoken_corpus.corpus, CONFIG, silent)
    said: list[str] = []
    with pytest.raises(InvalidInput, match="has other teachers"):
        Distillation(taught, teacher, [replace(teacher, centers=None)], spoken_corpus.corpus, CONFIG, said.append)
    assert said == []  # before the last maps of one that has none are fitted


def test_what_a_student_left_out_is_what_all_of_them_left_out(teacher, spoken_corpus, tmp_path):
    heard = replace(untrained(teacher), config={**teacher.config, "left_out": ["fsdd"]})
    student = Distillation(tmp_path, heard, [teacher, teacher], spoken_corpus.corpus, CONFIG, silent)
    assert student.config.left_out == ("fsdd",)


def test_a_teacher_may_have_another_body_and_a_student_not(teacher, spoken_corpus, tmp_path):
    torch.manual_seed(4)
    recurrent = AlignedEncoders(replace(teacher.encoders.config, recurrent_units=8)).eval()
    other = replace(teacher, encoders=recurrent)
    config = replace(CONFIG, steps=2)
    Distillation(tmp_path, teacher, [teacher, other], spoken_corpus.corpus, config, silent).run(silent)
    assert not Checkpoint.load(tmp_path / "student.pt").encoders.config.recurrent_units
    with pytest.raises(InvalidInput, match="which no bundle holds: name it as --teacher"):
        Distillation(tmp_path, other, [teacher, other], spoken_corpus.corpus, config, silent)


@pytest.mark.parametrize(
    "field", [{"variants": 0}, {"variants": len(VARIANTS) + 1}, {"synthetic_words": 0}, {"word_share": 1.5}]
)
def test_a_number_that_cannot_be_is_one_sentence(field):
    with pytest.raises(InvalidInput, match=f"{next(iter(field))} is {next(iter(field.values()))}: expected a number"):
        DistillationConfig(**field)
