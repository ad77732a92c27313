"""The rendered corpus: what is in it, what is not, and that an interrupted rendering goes on."""

import hashlib
import json

import numpy as np
import pytest
import torch
from tiny_run import InThisProcess, rendering_here, small_files

from edgealign import workers
from edgealign.errors import EdgealignError, InvalidInput
from edgealign.train import corpus as corpora
from edgealign.train.augment import decode_power
from edgealign.train.corpus import (
    CLIP,
    CROSSED,
    N_BINS,
    STRETCHES,
    TESTED,
    Corpus,
    CorpusConfig,
    build,
    encode_power,
)
from edgealign.train.synthesis import ACCENTS, Espeak
from edgealign.train.words import reserved_sounds, sound_of

WORDS = (
    "maji\tsw\tmˈaɟi\n" "kitabu\tsw\tkitˈabu\n" "majee\ten\tmaːɟˈi\n" "lamp\ten\tlˈamp\n" "moto\tsw\tmˈoto\n"
    "ndege\tsw\tndˈeɡe\n" "garden\ten\tɡˈɑːdən\n"
)  # fmt: skip


def silent(_line: str) -> None:
    pass


@pytest.fixture
def given_words(tmp_path):
    """A corpus folder whose words are chosen already; two of them sound the same in two languages."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "words.tsv").write_text(WORDS, encoding="utf-8")
    return folder


def assert_hashes_match(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["sha256"]) == {"labels.tsv", "clips.npy", "spectra.u8", "noise.u8", "words.tsv"}
    for name, expected in manifest["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected, name


def test_power_survives_the_bytes_within_half_a_step():
    power = 10 ** np.random.default_rng(0).uniform(-9.9, 5, (50, N_BINS))
    back = decode_power(torch.from_numpy(encode_power(power)).float()).numpy()
    assert np.abs(10 * np.log10(back / power)).max() <= 0.3 + 1e-4


def test_silence_is_silence_after_the_bytes():
    assert not decode_power(torch.from_numpy(encode_power(np.zeros((3, N_BINS)))).float()).any()


def test_every_clip_lies_inside_the_spectra_and_its_word_inside_the_clip(recorded_corpus):
    corpus = recorded_corpus.corpus
    clips = corpus.clips
    assert clips.dtype == CLIP
    assert np.array_equal(clips["offset"], np.concatenate([[0], np.cumsum(clips["n_frames"])[:-1]]))
    assert clips["n_frames"].sum() == len(corpus.spectra) == corpus.manifest["n_frames"]
    assert ((clips["first"] >= 0) & (clips["first"] < clips["end"]) & (clips["end"] <= clips["n_frames"])).all()
    assert sum(map(len, corpus.clips_of)) == len(clips) == corpus.manifest["n_clips"]
    for label, own in enumerate(corpus.clips_of):
        assert (clips["label"][own] == label).all()


def test_training_and_validation_words_never_sound_the_same(spoken_corpus):
    corpus = spoken_corpus.corpus
    sounds = {role: {sound_of(label.ipa) for label in corpus.labels if label.role == role} for role in ("train", "val")}
    assert len(sounds["train"]) > 50
    assert len(sounds["val"]) > 10
    assert sounds["train"].isdisjoint(sounds["val"])


def test_the_languages_are_those_that_were_asked_for(spoken_corpus):
    assert {label.language for label in spoken_corpus.corpus.labels} == {"sw", "en"}


def test_no_reserved_word_is_in_the_corpus(spoken_corpus):
    reserved = reserved_sounds(Espeak())
    assert reserved.isdisjoint(sound_of(label.ipa) for label in spoken_corpus.corpus.labels)


def test_validation_words_are_said_by_voices_that_training_does_not_hear(spoken_corpus):
    corpus = spoken_corpus.corpus
    speakers = {
        role: {
            int(speaker)
            for label in corpus.select(role, synthetic=True)
            for speaker in corpus.clips["speaker"][corpus.clips_of[label]]
        }
        for role in ("train", "val")
    }
    assert speakers["train"].isdisjoint(speakers["val"])
    assert len(speakers["val"]) > 1


def test_words_that_sound_the_same_in_two_languages_are_one_label(given_words):
    with rendering_here():
        build(given_words, CorpusConfig(renders_per_word=2), None, 1, silent)
    corpus = Corpus(given_words)
    sounds = [sound_of(label.ipa) for label in corpus.labels]
    assert len(sounds) == len(set(sounds)) == 6
    assert len(corpus.clips_of[sounds.index("maɟi")]) == 4
    assert len(corpus.clips_of[sounds.index("kitabu")]) == 2


def test_recorded_words_keep_their_speakers_and_the_roles_of_their_split(recorded_corpus):
    corpus = recorded_corpus.corpus
    arabic = {role: set() for role in ("train", "val", TESTED, CROSSED)}
    for label in corpus.labels:
        if label.source.startswith("arabic_sc"):
            arabic[label.role].add(label.source.removeprefix("arabic_sc:word"))
    assert arabic["train"] == {"0", "1", "5", "6"}
    assert arabic["val"] == {"2", "3", "7", "8", "10", "11"}
    assert arabic[TESTED] == {"4", "9"}
    # Training words by the test's speaker and the other way round; validation words by them are not rendered.
    assert arabic[CROSSED] == arabic["train"] | arabic[TESTED]
    for role, n_speakers in (("train", 3), (CROSSED, 1)):
        label = next(i for i, x in enumerate(corpus.labels) if (x.source, x.role) == ("arabic_sc:word0", role))
        own = corpus.clips_of[label]
        assert len(set(corpus.clips["speaker"][own].tolist())) == n_speakers
        assert len(own) == 2 * n_speakers
        assert corpus.labels[label].text == ""
    spelled = next(label for label in corpus.labels if label.source == "wakewords_en:computer")
    assert spelled.text == "computer"


def test_recorded_words_are_found_in_the_silence_around_them(recorded_corpus):
    """The clips of toy_bundle have a quarter of a second of silence before and after: 25 frames."""
    corpus = recorded_corpus.corpus
    words = [i for i in corpus.select("train", synthetic=False) if not corpus.labels[i].source.startswith(STRETCHES)]
    rows = corpus.clips[[c for i in words for c in corpus.clips_of[i]]]
    assert (np.abs(rows["first"] - 25) < 15).all()
    assert (np.abs(rows["n_frames"] - rows["end"] - 25) < 15).all()


def test_speech_whose_words_are_unknown_is_cut_at_its_pauses(recorded_corpus):
    """Two recordings of four words without a pause: a stretch each, and no spelling."""
    corpus = recorded_corpus.corpus
    stretches = [i for i, label in enumerate(corpus.labels) if label.source.startswith(STRETCHES)]
    assert [corpus.labels[i].text for i in stretches] == ["", ""]
    assert all(len(corpus.clips_of[i]) == 1 for i in stretches)
    rows = corpus.clips[[corpus.clips_of[i][0] for i in stretches]]
    assert (rows["end"] - rows["first"] > 100).all()


def test_a_word_is_said_in_the_accents_of_its_language(given_words, monkeypatch):
    heard = []
    set_voice = Espeak.set_voice

    def listen(self, language, *manner):
        heard.append(language)
        return set_voice(self, language, *manner)

    monkeypatch.setattr(Espeak, "set_voice", listen)
    (given_words / "words.tsv").write_text("lamp\ten\tlamp\nkitabu\tsw\tkitabu\n", encoding="utf-8")
    with rendering_here():
        build(given_words, CorpusConfig(renders_per_word=60), None, 1, silent)
    assert {"en-us", "en-gb-scotland"} < set(heard) <= {"en", "sw", *ACCENTS["en"]}


def test_noise_is_kept_apart_and_only_where_its_license_is_free(recorded_corpus):
    # Two clips of rain of one second each; the clips that are not free are 0.9 s or longer and would add to it.
    assert recorded_corpus.corpus.noise.shape == (2 * 98, N_BINS)


def test_the_manifest_has_the_hashes_of_the_files(recorded_corpus):
    assert_hashes_match(recorded_corpus.folder)
    assert not list((recorded_corpus.folder / "shards").iterdir())


class StopsAfterOne(InThisProcess):
    """The machine goes down when one shard is done."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.done = 0

    def submit(self, function: object, *arguments: object) -> object:
        if self.done:
            raise KeyboardInterrupt
        self.done += 1
        return super().submit(function, *arguments)


def test_an_interrupted_rendering_goes_on_where_it_stopped(given_words):
    config, lines = CorpusConfig(renders_per_word=2), []
    with rendering_here() as patch:
        patch.setattr(corpora, "WORDS_PER_SHARD", 3)
        patch.setattr(workers, "ProcessPoolExecutor", StopsAfterOne)
        with pytest.raises(KeyboardInterrupt):
            build(given_words, config, None, 1, silent)
        with np.load(given_words / "shards" / "espeak-000000.npz") as shard:
            first = shard["spectra"]
        assert not (given_words / "manifest.json").exists()
        patch.setattr(workers, "ProcessPoolExecutor", InThisProcess)
        build(given_words, config, None, 1, lines.append)
    assert sorted(line.split(":")[0] for line in lines) == ["rendered espeak-000003", "rendered espeak-000006"]
    assert_hashes_match(given_words)
    corpus = Corpus(given_words)
    assert np.array_equal(corpus.spectra[: len(first)], first)
    assert len(corpus.clips) == 14


@pytest.mark.parametrize("asked", [{"languages": ("en",)}, {"renders_per_word": 2}])
def test_an_interrupted_rendering_does_not_go_on_with_other_options(tmp_path, asked):
    small = {"languages": ("sw",), "words_per_language": 20, "longer_lists": (), "renders_per_word": 1}
    with rendering_here() as patch:
        patch.setattr(corpora, "WORDS_PER_SHARD", 10)
        patch.setattr(workers, "ProcessPoolExecutor", StopsAfterOne)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "corpus", CorpusConfig(**small), None, 1, silent)
        patch.setattr(workers, "ProcessPoolExecutor", InThisProcess)
        with pytest.raises(InvalidInput, match=rf"was begun with {next(iter(asked))} = .*name another corpus folder"):
            build(tmp_path / "corpus", CorpusConfig(**small | asked), None, 1, silent)
        build(tmp_path / "corpus", CorpusConfig(**small), None, 1, silent)
    assert {label.language for label in Corpus(tmp_path / "corpus").labels} == {"sw"}


def test_a_rendering_that_there_is_no_room_for_is_said_and_goes_on(given_words):
    with rendering_here():
        with small_files(2000), pytest.raises(EdgealignError, match=r"corpus' cannot be written \(File too large\)"):
            build(given_words, CorpusConfig(renders_per_word=1), None, 1, silent)
        build(given_words, CorpusConfig(renders_per_word=1), None, 1, silent)
    assert len(Corpus(given_words).clips) == 7


def test_recordings_are_not_passed_over_where_a_corpus_has_none(spoken_corpus, recorded_corpus, tmp_path):
    with pytest.raises(InvalidInput, match=r"was rendered without recordings.*name another corpus folder"):
        build(spoken_corpus.folder, CorpusConfig(), tmp_path, 1, silent)
    build(recorded_corpus.folder, CorpusConfig(), tmp_path, 1, pytest.fail)


def test_a_shard_that_was_cut_off_while_it_was_written_is_rendered_again(given_words):
    (given_words / "shards").mkdir()
    (given_words / "shards" / "espeak-000000.partial.npz").write_bytes(b"half")
    with rendering_here():
        build(given_words, CorpusConfig(renders_per_word=1), None, 1, silent)
    assert len(Corpus(given_words).clips) == 7


def test_a_rendered_corpus_is_not_rendered_again(spoken_corpus):
    before = spoken_corpus.corpus.sha256
    build(spoken_corpus.folder, CorpusConfig(), None, 1, pytest.fail)
    assert Corpus(spoken_corpus.folder).sha256 == before


@pytest.mark.parametrize("asked", [{"languages": ("sw",)}, {"words_per_language": 70}])
def test_a_rendered_corpus_does_not_pretend_to_hold_other_words(spoken_corpus, asked):
    with pytest.raises(InvalidInput, match=r"was rendered with .* asked for: name another corpus folder"):
        build(spoken_corpus.folder, CorpusConfig(**asked), None, 1, silent)


def test_worker_processes_render_what_was_asked_for(given_words, monkeypatch):
    """With real processes, which is how it runs outside of the tests."""
    monkeypatch.setattr(corpora, "festival_voices_installed", frozenset)
    build(given_words, CorpusConfig(renders_per_word=1), None, 1, silent)
    assert_hashes_match(given_words)
    assert len(Corpus(given_words).clips) == 7


def test_a_festival_voice_that_can_say_nothing_leaves_no_gap(given_words):
    with rendering_here() as patch:
        patch.setattr(corpora, "festival_voices_installed", lambda: frozenset({"ked_diphone", "lp_diphone"}))
        patch.setattr(corpora, "say_with_festival", lambda voice, texts, stretch: [None for _ in texts])
        lines = []
        build(given_words, CorpusConfig(renders_per_word=1), None, 1, lines.append)
    assert len(lines) == 2  # the Italian voice has no words here and is not asked
    assert len(Corpus(given_words).clips) == 7


def test_an_unknown_language_is_refused_even_beside_a_known_one(tmp_path):
    with pytest.raises(InvalidInput, match=r"no voice 'qqq'.*such as sw"):
        build(tmp_path / "corpus", CorpusConfig(languages=("sw", "qqq")), None, 1, silent)


def test_a_data_folder_without_the_packs_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"lacks wakewords_en/manifest\.tsv"):
        build(tmp_path / "corpus", CorpusConfig(), tmp_path, 1, silent)


def test_a_corpus_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InvalidInput, match="cannot hold a corpus"):
        build(tmp_path / "taken", CorpusConfig(), None, 1, silent)


def test_a_folder_that_is_no_corpus_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"not a rendered corpus \(no manifest\.json\)"):
        Corpus(tmp_path)
