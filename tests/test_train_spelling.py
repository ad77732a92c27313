"""The last stage of text-to-speech: what is heard of the words of the lists, and a text encoder that learns it."""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import InThisProcess, small_files, tiny_config

from edgealign import workers
from edgealign.errors import EdgealignError, InvalidInput
from edgealign.export import quantize
from edgealign.export.speech import export_speech
from edgealign.train import pronunciations, spelling, words
from edgealign.train.corpus import Corpus
from edgealign.train.spelling import SpellingConfig, SpellingTrainer
from edgealign.train.text_to_speech import Checkpoint, Trainer
from edgealign.train.words import Word, sound_of

WORDS_OF_A_LANGUAGE = 40
CONFIG = SpellingConfig(
    steps=90, words=64, learning_rate=1e-2, warm_up_steps=5, average_decay=0.8, validate_every=45, left_out=("fsdd",)
)


def silent(_line: str) -> None:
    pass


@pytest.fixture(scope="module", autouse=True)
def small_lists(spoken_corpus, recorded_corpus, trained_run) -> Iterator[None]:
    """A few words of each language, of which a quarter is for validation, heard in this process.

    What all tests share is made before: it has lists of its own.
    """
    whole = words._cldr_words
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "ProcessPoolExecutor", InThisProcess)
        patch.setattr(spelling, "festival_voices_installed", frozenset)
        patch.setattr(spelling, "WORDS_PER_SHARD", 50)
        patch.setattr(words, "_listed_words", lambda language, drawn=None: [])
        patch.setattr(words, "_cldr_words", lambda language: islice(whole(language), WORDS_OF_A_LANGUAGE))
        patch.setattr(words, "VALIDATION_SHARE", 1 / 4)
        yield


@pytest.fixture(scope="module")
def checkpoint(trained_run: Path) -> Checkpoint:
    return Checkpoint.load(trained_run / "best.pt")


def trainer_in(folder: Path, checkpoint: Checkpoint, corpus: Path, **fields: object) -> SpellingTrainer:
    return SpellingTrainer(folder, checkpoint, corpus, replace(CONFIG, **fields), 1, silent)


@pytest.fixture(scope="module")
def taught(checkpoint, spoken_corpus, tmp_path_factory) -> Path:
    """Folder of a whole run."""
    folder = tmp_path_factory.mktemp("spelling") / "run"
    trainer_in(folder, checkpoint, spoken_corpus.folder).run(silent)
    return folder


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# ---- which words ----


def test_the_words_of_a_language_are_its_lists_its_reserved_words_and_phrases():
    from edgealign.train.synthesis import Espeak

    found = [word.text for word in words.spellings(Espeak(), "en")]
    assert len(found) == len(set(found))
    assert set(words.RESERVED["en"].split()) <= set(found)
    phrases = [text for text in found if " " in text]
    alone = {text for text in found if " " not in text}
    assert phrases
    assert all(part in alone for text in phrases for part in text.split())
    assert found == [word.text for word in words.spellings(Espeak(), "en")]


@pytest.mark.parametrize(("left_out", "read"), [(("fsdd",), False), ((), True)])
def test_words_that_accuracy_is_measured_on_are_read_only_where_no_pack_is_left_out(
    checkpoint, spoken_corpus, tmp_path, left_out, read
):
    heard = trainer_in(tmp_path / "run", checkpoint, spoken_corpus.folder, left_out=left_out).heard
    reserved = set(words.RESERVED["en"].split())
    with_reserved = [word.text for word in heard.words if reserved & set(word.text.split())]
    assert bool(with_reserved) == read
    assert ("two" in with_reserved) == read


def test_a_homophone_of_a_reserved_word_and_a_phrase_with_one_are_reserved():
    sounds = frozenset({sound_of("tˈuː")})
    assert words.is_reserved(Word("too", "en", "tuː"), sounds)
    assert words.is_reserved(Word("two by", "en", "tuː baɪ"), frozenset())
    assert not words.is_reserved(Word("toe", "en", "təʊ"), sounds)


# ---- what is heard of them ----


def test_all_that_sounds_alike_has_one_target_and_validation_words_are_told_by_their_sound(taught, spoken_corpus):
    heard = spelling.listen(taught, spoken_corpus.folder, ("fsdd",), 1, silent)
    row_of: dict[str, int] = {}
    for word, row, validation in zip(heard.words, heard.row, heard.validation, strict=True):
        assert row_of.setdefault(word.sound, row) == row
        assert validation == words.is_validation(word.sound)
    assert len(set(row_of.values())) == len(row_of)
    np.testing.assert_allclose(np.linalg.norm(heard.targets[heard.row], axis=1), 1, atol=1e-3)


def test_a_target_is_near_to_what_the_speech_encoder_hears_of_that_word(taught, spoken_corpus):
    """The clips of the corpus, one of each word, embedded here once more, alone."""
    ear = Checkpoint.load(taught / "ear.pt")
    heard = spelling.listen(taught, spoken_corpus.folder, ("fsdd",), 1, silent)
    row_of = {word.sound: row for word, row in zip(heard.words, heard.row, strict=True)}
    clips = spelling_clips(spoken_corpus.corpus, ear)
    labels = [
        i for i in spoken_corpus.corpus.select("train", True) if sound_of(spoken_corpus.corpus.labels[i].ipa) in row_of
    ]
    samples = clips.plain([int(spoken_corpus.corpus.clips_of[i][0]) for i in labels])
    with torch.inference_mode():
        unit = torch.cat([ear.encoders.embed_speech(torch.from_numpy(x)[None]) for x in samples])
    unit = torch.nn.functional.normalize(unit - ear.finished.speech_center, dim=1).numpy()
    own = heard.targets[[row_of[sound_of(spoken_corpus.corpus.labels[i].ipa)] for i in labels]]
    likeness = unit @ own.T
    assert np.diag(likeness).mean() > likeness.mean() + 0.3


def spelling_clips(corpus: Corpus, ear: Checkpoint) -> spelling.Clips:
    config = tiny_config(left_out=ear.left_out)
    return spelling.Clips(corpus, spelling.Batches(corpus, ear.vocabulary, config), seed=0)


def test_shards_that_are_there_are_not_heard_again(taught, spoken_corpus, monkeypatch):
    shards = sorted((taught / "said").iterdir())
    assert {path.name.split("-")[0] for path in shards} == {"words", "clips"}
    content = shards[0].read_bytes()
    shards[0].unlink()
    others = {path: path.stat().st_mtime_ns for path in shards[1:]}
    lines: list[str] = []
    spelling.listen(taught, spoken_corpus.folder, ("fsdd",), 1, lines.append)
    assert [line.split(",")[0] for line in lines] == ["heard 1 of 1 shards of words"]
    assert {path: path.stat().st_mtime_ns for path in others} == others
    assert len(shards[0].read_bytes()) == len(content)


def test_shards_that_there_is_no_room_for_are_said_and_heard_by_the_same_line(taught, spoken_corpus):
    shard = min((taught / "said").iterdir())
    size = shard.stat().st_size
    shard.unlink()
    with small_files(size // 2), pytest.raises(EdgealignError, match=r"said' cannot be written \(File too large\)"):
        spelling.listen(taught, spoken_corpus.folder, ("fsdd",), 1, silent)
    spelling.listen(taught, spoken_corpus.folder, ("fsdd",), 1, silent)
    assert shard.stat().st_size == size


# ---- learning it ----


def test_texts_come_to_lie_where_their_words_are_heard_and_the_speech_encoder_stays(checkpoint, spoken_corpus, taught):
    assert [row["step"] for row in log_of(taught)] == [45, 90]
    trainer = trainer_in(taught, checkpoint, spoken_corpus.folder)
    trainer._miss(silent)
    # Of words that were learned; of words that have nothing to do with each other: 1.
    assert trainer.missing.mean() < 0.3
    ear, best = Checkpoint.load(taught / "ear.pt"), Checkpoint.load(taught / "spelling.pt")
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            ear.encoders.speech.state_dict().values(), best.encoders.speech.state_dict().values(), strict=True
        )
    )
    assert not torch.equal(ear.encoders.text.embedding.weight, best.encoders.text.embedding.weight)
    assert not best.finished.text_center.any()


def test_half_of_a_batch_are_the_words_that_are_missed_most_and_half_follow_them_in_the_alphabet(
    checkpoint, spoken_corpus, taught
):
    trainer = trainer_in(taught, checkpoint, spoken_corpus.folder)
    trainer.missing = np.full(len(trainer.learned), 0.1, np.float32)
    trainer.typed[:] = 1.0
    trainer.missing[5] = 2.0  # 400 times as often as any other
    drawn, following = np.split(trainer._draw(random.Random(0)), 2)
    assert np.bincount(drawn).argmax() == 5
    assert np.isin((following - drawn) % len(trainer.learned), (1, 2, 3)).all()
    texts = [trainer.heard.words[row].text for row in trainer.learned]
    assert texts == sorted(texts)


def test_a_short_english_word_is_drawn_more_often_than_a_long_or_a_foreign_one():
    drawn = [spelling._typed(Word(*word, "")) for word in (("one", "en"), ("throughout", "en"), ("uno", "it"))]
    assert drawn[0] > drawn[1] == drawn[2]


def test_an_interrupted_run_ends_in_the_weights_of_one_that_was_not(checkpoint, spoken_corpus, taught, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("ear.pt", "corpus.sha256", "words.tsv", "said"):
        (folder / name).symlink_to(taught / name)
    first = trainer_in(folder, checkpoint, spoken_corpus.folder)
    first.run(silent, minutes=0.0)
    assert first.step == 1
    trainer_in(folder, checkpoint, spoken_corpus.folder).run(silent)
    whole, cut = (torch.load(path / "last.pt", weights_only=True) for path in (taught, folder))
    for part in ("model", "average"):
        assert all(torch.equal(whole[part][name], cut[part][name]) for name in whole[part])


def test_a_run_with_another_configuration_or_encoder_is_refused(checkpoint, spoken_corpus, taught, tmp_path):
    with pytest.raises(InvalidInput, match=r"another configuration \(learning_rate\)"):
        trainer_in(taught, checkpoint, spoken_corpus.folder, learning_rate=1e-4)
    Trainer(spoken_corpus.corpus, tiny_config(seed=5), tmp_path).run(silent)
    with pytest.raises(InvalidInput, match="another speech encoder"):
        trainer_in(taught, Checkpoint.load(tmp_path / "best.pt"), spoken_corpus.folder)


def test_a_run_does_not_go_on_with_another_corpus(checkpoint, spoken_corpus, taught, tmp_path):
    other = tmp_path / "corpus"
    shutil.copytree(spoken_corpus.folder, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["sha256"]["clips.npy"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidInput, match="heard another corpus"):
        trainer_in(taught, checkpoint, other)


def test_a_folder_that_is_no_corpus_is_refused_before_anything_is_made(checkpoint, tmp_path):
    with pytest.raises(InvalidInput, match="is not a rendered corpus"):
        trainer_in(tmp_path / "run", checkpoint, tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_corpus_that_was_not_rendered_as_that_of_training_is_refused(recorded_corpus, checkpoint, tmp_path):
    other = replace(checkpoint, corpus_sha256="0" * 64, corpus={**checkpoint.corpus, "words_per_language": 7})
    with pytest.raises(InvalidInput, match="words_per_language = 60 where it was 7"):
        trainer_in(tmp_path / "run", other, recorded_corpus.folder)


# ---- the bundle of it ----


def test_the_bundle_has_the_speech_encoder_that_export_would_have_fitted_and_the_new_text_encoder(
    checkpoint, taught, spoken_corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(quantize, "MIN_SNR_DB", 3.0)
    made = export_speech(Checkpoint.load(taught / "spelling.pt"), spoken_corpus.folder, tmp_path / "taught", silent)
    plain = export_speech(checkpoint, spoken_corpus.folder, tmp_path / "plain", silent)
    frames = np.random.default_rng(0).normal(-6, 3, (1, 48, 60)).astype(np.float32)
    np.testing.assert_allclose(made.encode(frames, "fp32"), plain.encode(frames, "fp32"), atol=2e-3)
    tokens = made.tokenizer.encode("maji", language="sw")
    assert np.abs(made.encode_text(tokens) - plain.encode_text(tokens)).max() > 0.01
    assert (made.tokenizer.pronunciations != {}, plain.tokenizer.pronunciations) == (True, {})


# ---- what is looked up ----


def test_words_whose_ipa_is_read_otherwise_are_looked_up_and_short_english_ones_sooner():
    said = [
        Word("two", "en", "tˈuː"), Word("yacht", "en", "jˈɒt"), Word("through", "en", "θɹˈuː"), Word("two", "en", "x"),
        Word("Jour", "fr", "ʒˈuʁ"), Word("mot", "fr", "mo"), Word("to by", "en", "tə baɪ"), Word("二", "cmn", "ər"),
        Word("iv", "en", "ɹˌəʊmən fˈɔː"),
    ]  # fmt: skip
    apart = np.array([0.07, 0.05, 0.07, 0.9, 0.19, 0.07, 0.9, 0.9, 0.9])
    assert pronunciations.of_words(said, apart) == {"en": {"two": "tˈuː"}, "fr": {"jour": "ʒˈuʁ"}}


def test_chinese_characters_are_what_espeak_ng_says_alone():
    from edgealign.train.synthesis import Espeak

    espeak = Espeak()
    found = pronunciations.of_chinese(espeak)
    assert set(found) == {"cmn", "yue"}
    espeak.set_voice("cmn")
    assert "水" in found["cmn"][espeak.phonemes("水")]
    assert any({"語", "语"} <= set(characters) for characters in found["cmn"].values())
    for table in found.values():
        characters = "".join(table.values())
        assert len(characters) == len(set(characters)) > 8000
        assert not any("(" in ipa for ipa in table)  # where it gives up it spells in English


def test_the_dictionary_of_a_run_has_none_of_the_words_that_accuracy_is_measured_on(taught, spoken_corpus):
    found = Checkpoint.load(taught / "spelling.pt").dictionary["pronunciations"]
    read = {word.text: word for word in spelling.listen(taught, spoken_corpus.folder, ("fsdd",), 1, silent).words}
    spelled = [text for table in found.values() for text in table]
    assert spelled
    assert not set(spelled) & set(words.RESERVED["en"].split())
    assert not any(text in read and words.is_validation(read[text].sound) for text in spelled)


def test_a_vocabulary_gets_the_languages_that_it_knows(checkpoint):
    found = {"pronunciations": {"sw": {"maji": "m"}, "en": {"two": "t"}, "da": {"to": "t"}}, "characters": {"cmn": {}}}
    made = pronunciations.with_dictionary(checkpoint.vocabulary, found)
    assert (made["format_version"], set(made["pronunciations"]), made["characters"]) == (2, {"sw", "en"}, {})
    assert made["unstated"] == ["en"]
    assert checkpoint.vocabulary["format_version"] == 1
    assert pronunciations.with_dictionary(checkpoint.vocabulary, {}) == checkpoint.vocabulary
