"""The benchmarks measure what they say: episodes, intervals, the DTW rival, rows and tables."""

import hashlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from toy_bundle import noise_clip, word_clip

# Benchmarks are not installed; they are run from the root of the repository.
sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import (
    episodes,
    fewshot,
    footprint,
    growth,
    held_out,
    imported,
    latency,
    listening,
    rivals,
    rows,
    tables,
    unheard_voices,
)
from benchmarks.episodes import Clip
from edgealign import Bundle
from edgealign.errors import InvalidInput
from edgealign.train.corpus import EVALUATION_PACKS
from edgealign.train.synthesis import Espeak

N_TAKES = 8


@pytest.fixture
def clips() -> list[Clip]:
    """12 labels x 4 speakers x 8 takes."""
    return [
        Clip("pack", f"{label}/{speaker}_{take}.flac", f"word{label:02d}", f"s{speaker}")
        for label in range(12)
        for speaker in range(4)
        for take in range(N_TAKES)
    ]


def shots(condition):
    return 3 if condition == "several speakers" else 5


@pytest.mark.parametrize("condition", episodes.CONDITIONS)
def test_the_same_seed_draws_the_same_episodes_and_another_seed_others(clips, condition):
    texts = [episodes.as_json(clips, episodes.draw(clips, condition, shots(condition), 20, seed)) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


def test_episodes_do_not_depend_on_the_process():
    """Golden value: the draw must be the same on every machine, or rows of two machines are not paired."""
    clips = [Clip("p", f"{w}{s}{t}", w, s) for w in "abcdef" for s in "xy" for t in "123"]
    first = episodes.draw(clips, "other speaker", 1, 1, seed=0)[0]
    assert first.labels == ("d", "b", "e", "a", "f", "c")
    assert first.queries[:4].tolist() == [19, 20, 18, 8]


@pytest.mark.parametrize("condition", ["same speaker", "other speaker", "open set"])
@pytest.mark.parametrize("n_shot", [1, 5])
def test_no_query_is_in_the_support_and_speakers_are_as_the_condition_says(clips, condition, n_shot):
    for episode in episodes.draw(clips, condition, n_shot, 50, seed=0):
        support = set(episode.support.ravel().tolist())
        assert len(support) == episode.support.size
        assert not support & set(episode.queries.tolist())
        assert len(set(episode.queries.tolist())) == len(episode.queries)
        (speaker,) = {clips[row].speaker for row in support}
        asking = {clips[row].speaker for row in episode.queries}
        assert asking == {speaker} if condition == "same speaker" else speaker not in asking


@pytest.mark.parametrize("condition", episodes.CONDITIONS)
def test_labels_of_support_and_queries_are_those_of_the_clips(clips, condition):
    for episode in episodes.draw(clips, condition, shots(condition), 50, seed=1):
        for label, support in zip(episode.labels, episode.support, strict=True):
            assert {clips[row].label for row in support} == {label}
        for row, position in zip(episode.queries, episode.query_labels, strict=True):
            if position >= 0:
                assert clips[row].label == episode.labels[position]
            else:
                assert condition == "open set" and clips[row].label not in episode.labels


def test_counts_follow_the_protocol(clips):
    conditions = ("same speaker", "other speaker", "open set")
    same, other, open_set = (episodes.draw(clips, condition, 5, 5, seed=0) for condition in conditions)
    for episode in same:
        assert episode.support.shape == (10, 5) and len(episode.queries) == 10 * (N_TAKES - 5)
    for episode in other:
        assert episode.support.shape == (10, 5)
        assert np.bincount(episode.query_labels).tolist() == [15] * 10
    for episode in open_set:
        assert episode.support.shape == (5, 5)
        assert (episode.query_labels >= 0).sum() == (episode.query_labels < 0).sum() == 5 * 15


def test_a_pack_that_cannot_give_an_episode_is_refused(clips):
    with pytest.raises(episodes.TooFewClips, match="no speaker has 10 labels of at least 9 clips"):
        episodes.draw(clips, "same speaker", N_TAKES, 1, seed=0)
    with pytest.raises(episodes.TooFewClips, match="more than 5 labels"):
        episodes.draw([clip for clip in clips if clip.label < "word05"], "open set", 5, 1, seed=0)


def test_saved_episodes_are_named_by_their_hash(clips, tmp_path):
    digest = episodes.save(clips, episodes.draw(clips, "same speaker", 1, 3, seed=0), tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.stem == digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_split_gives_the_clips_of_one_role(tmp_path):
    split = tmp_path / "pack.tsv"
    split.write_text('pack\tfile\tlabel\tspeaker\trole\np\ta.flac\tx "y\ts1\ttest\np\tb.flac\tx\ts2\ttrain\n')
    assert episodes.read_split(split, "test") == [Clip("p", "a.flac", 'x "y', "s1")]
    with pytest.raises(ValueError, match="'val'"):
        episodes.read_split(split, "val")


@pytest.mark.parametrize("split", sorted(fewshot.SPLITS.glob("*.tsv")), ids=lambda path: path.stem)
def test_no_test_word_and_no_test_speaker_is_in_training_or_validation(split):
    header, *lines = split.read_text(encoding="utf-8").splitlines()
    assert header == "pack\tfile\tlabel\tspeaker\trole"
    table = [line.split("\t") for line in lines]
    test = [row for row in table if row[4] == "test"]
    others = [row for row in table if row[4] in ("train", "val")]
    assert test and len(test) + len(others) == len(table)
    for column in (2, 3):
        assert not {row[column] for row in test} & {row[column] for row in others}


def test_words_that_training_heard_are_not_measured():
    from edgealign.export.speech import attribution

    def bundle(*left_out: str) -> SimpleNamespace:
        return SimpleNamespace(manifest={"attribution": attribution(left_out)})

    held_out.expect_unheard(bundle(*EVALUATION_PACKS), fewshot.PACKS)
    held_out.expect_unheard(bundle("fsdd"), ["fsdd", "czech_synthetic"])
    with pytest.raises(InvalidInput, match="trained on all of arabic_sc, its test words included"):
        held_out.expect_unheard(bundle("fsdd"), ["fsdd", "arabic_sc"])


@pytest.mark.parametrize("pack", fewshot.PACKS)
def test_each_pack_is_asked_of_a_bundle_that_does_not_know_its_words(pack):
    bundle = Bundle.open(held_out.bundle_for(pack))
    bundle.verify()
    held_out.expect_unheard(bundle, [pack])


def test_interval_is_that_of_a_mean_of_coin_flips():
    n, n_right = 400, 300
    mean, ci95 = episodes.mean_and_ci95(np.array([1.0] * n_right + [0.0] * (n - n_right)))
    share = n_right / n
    assert mean == share
    assert ci95 == pytest.approx(1.96 * math.sqrt(share * (1 - share) / (n - 1)), rel=1e-12)
    with pytest.raises(ValueError, match="at least 2"):
        episodes.mean_and_ci95(np.array([1.0]))


def naive_dtw(a: np.ndarray, b: np.ndarray) -> float:
    total = np.full((len(a), len(b)), np.inf)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            cost = math.dist(x, y)
            if i == j == 0:
                total[0, 0] = 2 * cost
            if i:
                total[i, j] = min(total[i, j], total[i - 1, j] + cost)
            if j:
                total[i, j] = min(total[i, j], total[i, j - 1] + cost)
            if i and j:
                total[i, j] = min(total[i, j], total[i - 1, j - 1] + 2 * cost)
    return total[-1, -1] / (len(a) + len(b))


def test_dtw_matrix_agrees_with_a_naive_dtw():
    rng = np.random.default_rng(0)
    sequences = [rng.standard_normal((n, 3)).astype(np.float32) for n in (7, 1, 12, 4, 9, 12)]
    expected = [[0.0 if i == j else naive_dtw(a, b) for j, b in enumerate(sequences)] for i, a in enumerate(sequences)]
    np.testing.assert_allclose(rivals.dtw_matrix(sequences, batch_size=2), expected, rtol=1e-5, atol=1e-6)


def test_mfcc_and_log_mel_statistics_ignore_the_gain():
    rng = np.random.default_rng(0)
    clip = rng.standard_normal(16_000).astype(np.float32) * 1e-4
    clip[6_000:9_000] += 0.1 * np.sin(np.arange(3_000) * 0.3).astype(np.float32)
    np.testing.assert_allclose(rivals.mfcc(clip / 2), rivals.mfcc(clip), atol=2e-2)
    np.testing.assert_allclose(rivals.log_mel_statistics(clip / 2), rivals.log_mel_statistics(clip), atol=2e-2)


@pytest.fixture(scope="module")
def toy_pack() -> fewshot.Pack:
    """Seven digits as made-up words by four speakers, six takes each."""
    made = [(word, speaker, take) for word in range(7) for speaker in range(4) for take in range(6)]
    clips = [Clip("toy", f"{word}/{speaker}_{take}", str(word), f"s{speaker}") for word, speaker, take in made]
    samples = [word_clip(word, 10 * speaker + take) for word, speaker, take in made]
    return fewshot.Pack("fsdd", clips, samples, "5" * 64)  # under this name the labels have texts


def test_a_bundle_is_measured_under_every_condition(toy_pack, toy_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "reader_of", lambda bundle: Path(bundle.path) / "text_encoder.onnx")
    cache = fewshot.Cache(tmp_path)
    embeddings = fewshot.bundle_embeddings(toy_bundle, "toy", toy_pack.samples, "", cache)
    assert np.array_equal(embeddings, fewshot.bundle_embeddings(toy_bundle, "toy", [], "", cache))  # from the cache
    methods = {
        "edgealign int8": fewshot.Answers(embeddings),
        "oracle": fewshot.Answers(
            distances=np.array([[a.label != b.label for b in toy_pack.clips] for a in toy_pack.clips])
        ),
    }
    measured = fewshot.measure_pack(toy_pack, methods, toy_bundle, 20, 0, tmp_path)
    cells = {(one.condition, one.k, one.method): one for one in measured}
    assert {(condition, k) for condition, k, _ in cells} == {
        cell for cell in tables.CONDITIONS if not cell[0].startswith("open set")
    }
    for (condition, k, method), one in cells.items():
        assert one.shares.shape == (20,) and one.way == 7
        if method == "oracle":
            assert one.shares.min() == 1
        elif condition not in ("text", "read text"):  # the text encoder of the toy bundle knows nothing
            assert one.shares.mean() > 3 / 7, f"{condition} k={k}"
    made = fewshot.to_rows(toy_pack, measured, [("edgealign int8", "oracle")], {"seed": 0})
    paired = {(row["condition"], row["k"]): row for row in made if row.get("minus") == "oracle"}
    here = cells["other speaker", 1, "edgealign int8"].shares
    assert paired["other speaker", 1]["mean"] == pytest.approx(100 * (here.mean() - 1), abs=1e-3)


def test_the_open_set_counts_what_the_calibration_decides(toy_pack, toy_bundle, tmp_path, monkeypatch):
    embeddings = np.stack([fewshot.embed_word(toy_bundle, samples) for samples in toy_pack.samples])
    quiet = np.stack([fewshot.embed_word(toy_bundle, noise_clip(seed)) for seed in range(15)])
    assert not quiet.any()
    strange = np.eye(15, toy_bundle.dim, dtype=np.float32)

    def shares() -> dict[tuple[str, str], float]:
        others = {"silences": quiet, "noises": strange}
        measured = fewshot.measure_open_set(toy_pack, embeddings, toy_bundle, others, 10, 0, tmp_path)
        assert {(one.condition, one.k) for one in measured} == {("open set", 1), ("open set", 5), ("open set, text", 0)}
        return {(one.measure, f"{one.condition} {one.k}"): one.shares.mean() for one in measured}

    def accept(accept_logit: float) -> None:
        calibration = type(toy_bundle.calibration)(**{**vars(toy_bundle.calibration), "accept_logit": accept_logit})
        monkeypatch.setattr(toy_bundle, "calibration", calibration)

    accept(-1e6)
    everything = shares()
    for (measure, of), share in everything.items():
        if measure == "enrolled right":
            assert share > (0 if "text" in of else 0.5)  # the text encoder of the toy bundle knows nothing
        else:
            assert share == (0 if measure == "silences accepted" else 1)  # no word is found in silences
    accept(1e6)
    assert set(shares().values()) == {0}


def test_texts_join_the_prototype_with_their_weight():
    rng = np.random.default_rng(0)
    rows_ = rng.standard_normal((4, 8))
    rows_ /= np.linalg.norm(rows_, axis=1, keepdims=True)
    support, query, text = rows_[:2], rows_[2], rows_[3]
    answers = fewshot.Answers(rows_[:3].astype(np.float32))
    episode = episodes.Episode(("word",), np.array([[0, 1]]), np.array([2]), np.array([0]))
    for weight, mean in ((0.5, support.sum(0) + 0.5 * text), (np.inf, text)):
        expected = 1 - query @ mean / np.linalg.norm(mean)
        found = fewshot.episode_distances(answers, episode, text[None].astype(np.float32), weight)
        assert found == pytest.approx(np.array([[expected]]), abs=1e-6)


def test_a_cold_process_is_timed_and_its_failure_told():
    seconds, cpu_seconds, megabytes = latency.run_cold(
        [sys.executable, "-c", "import time; time.sleep(1); x = b'x' * 40_000_000"]
    )
    assert seconds > 1 > cpu_seconds > 0
    assert 40 < megabytes < 65  # what this process holds besides is not counted
    with pytest.raises(RuntimeError, match="no such thing"):
        latency.run_cold([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_size_counts_files_and_no_links(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(bytes(1000))
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    assert footprint.tree_bytes(tmp_path) == 1000


def fewshot_row(**changes) -> dict:
    row = {
        "what": "fewshot", "pack": "fsdd", "condition": "other speaker", "k": 1, "way": 10, "method": "edgealign int8",
        "measure": "right", "mean": 80.0, "ci95": 0.3, "episodes": 600, "bundle": "b" * 64, "commit": "c" * 40,
        "command": "python -m benchmarks.fewshot", "machine": {"cpu": "cpu", "system": "os", "backend": "native"},
    }  # fmt: skip
    return row | changes


def test_new_rows_replace_those_of_the_same_cell_only(tmp_path):
    path = tmp_path / "rows.jsonl"
    key = ("pack", "k")
    rows.replace(path, [fewshot_row(mean=1.0), fewshot_row(k=5, mean=2.0)], key)
    rows.replace(path, [fewshot_row(mean=3.0)], key)
    assert [(row["k"], row["mean"]) for row in rows.read(path)] == [(5, 2.0), (1, 3.0)]


def test_tables_show_every_mean_and_the_mean_of_the_packs():
    found = [
        fewshot_row(),
        fewshot_row(pack="arabic_sc", mean=70.0, ci95=0.4),
        fewshot_row(method="openWakeWord", mean=75.0),
        fewshot_row(what="fewshot difference", minus="openWakeWord", mean=5.0, ci95=0.2),
        fewshot_row(condition="open set", k=5, way=5, measure="never enrolled accepted", mean=9.0),
    ]
    text = tables.render(found, [], [])
    assert "| edgealign int8 | 80.0 ± 0.3 | 70.0 ± 0.4 | 75.0 ± 0.2 |" in text  # sqrt(.3² + .4²) / 2 = .25
    assert "| openWakeWord | 75.0 ± 0.3 | – | – |" in text
    assert "| edgealign int8 − openWakeWord | +5.0 ± 0.2 |" in text
    assert "edgealign int8: never enrolled accepted" in text
    assert "bbbbbbbbbbbb" in text and "600 episodes" in text


def test_latency_rows_become_a_table_with_ratio_memory_and_accuracy():
    rows_ = latency.cold_rows(
        {"nothing": [sys.executable, "-c", ""], "a loop": [sys.executable, "-c", "sum(range(3_000_000))"]}, "nothing", 3
    )
    assert rows_[0]["cpu_ratio"] == 1 < rows_[1]["cpu_ratio"]
    fewshot_rows = [fewshot_row(k=5, mean=80.0), fewshot_row(k=5, mean=90.0, pack="other"), fewshot_row(k=1, mean=1.0)]
    accuracy = latency.other_speaker_accuracy(fewshot_rows)
    assert accuracy == {"edgealign int8": 85.0}
    common = {key: fewshot_row()[key] for key in ("bundle", "commit", "command", "machine")}
    text = tables.render([], [rows_[1] | common | {"accuracy_percent": 85.0}], [])
    (line,) = [line for line in text.splitlines() if line.startswith("| a loop")]
    assert f"{rows_[1]['ratio']:.2f} x nothing" in line and "| 85.0 |" in line and str(rows_[1]["peak_rss_mb"]) in line


def test_rows_of_imported_encoders_become_tables_of_windows_and_of_what_else_was_measured():
    common = {key: fewshot_row()[key] for key in ("bundle", "commit", "command", "machine")} | {"what": "ViT"}
    timed = {"stage": "window, edgealign", "median_ms": 4.5, "p95_ms": 5.0, "n_runs": 9, "threads": 1}
    text = tables.render([], [], [], imported=[
        common | timed | {"ratio": 1.004, "ratio_to": "bare"},
        common | {"stage": "import", "value": 3.5, "cpu_value": 2.25, "unit": "s"},
    ])  # fmt: skip
    assert "| ViT | window, edgealign | 4.500 | 5.000 |  | 9 | 1 | 1.00 x bare |  |  |" in text
    assert "| ViT | import | 3.50 | 2.25 | s |" in text


def test_committed_rows_hold_what_is_needed_to_measure_them_again():
    found = [row for path in sorted(rows.FOLDER.glob("*.jsonl")) for row in rows.read(path)]
    assert found
    for row in found:
        assert {"what", "machine", "commit", "command"} <= row.keys()
        if row["what"].startswith("fewshot"):
            assert row["episodes"] >= 600 and 0 <= row["ci95"] < 5
            assert len(row["episodes_sha256"]) == len(row["split_sha256"]) == 64


def test_several_teachers_give_a_clip_each_and_others_ask():
    speakers, labels = "abcde", [f"word {i}" for i in range(6)]
    clips = [
        episodes.Clip("toy", f"{speaker}/{label}/{take}", label, speaker)
        for speaker in speakers
        for label in labels
        for take in range(2)
    ]
    for episode in episodes.draw(clips, "several speakers", 3, 20, seed=1):
        taught_by = [{clips[row].speaker for row in support} for support in episode.support]
        assert all(len(teachers) == 3 and teachers == taught_by[0] for teachers in taught_by)
        assert not {clips[row].speaker for row in episode.queries} & taught_by[0]
    with pytest.raises(episodes.TooFewClips, match="nobody to ask"):
        episodes.draw(clips, "several speakers", 5, 1, seed=1)


def test_the_speed_table_of_the_readme_is_that_of_the_rows():
    readme = tables.README.read_text(encoding="utf-8")
    assert readme.count(tables.SPEED_BEGIN) == readme.count(tables.SPEED_END) == 1
    found = [rows.read(rows.FOLDER / f"{name}.jsonl") for name in ("latency", "footprint")]
    assert tables.with_speed(readme, *found) == readme, "run python -m benchmarks.tables"


def test_an_exponent_is_the_slope_of_the_upper_half():
    points = [{"x": x, "cpu_median_ms": 5 + 0.01 * x**1.5} for x in (1, 10, 100, 1000, 10_000, 100_000)]
    assert growth.exponent(points) == pytest.approx(1.5, abs=0.01)
    line = tables.growth_table(
        growth.with_exponents([{"what": "growth", "of": "labels", "stage": "m"} | p for p in points])
    )
    assert line.splitlines()[-1].startswith("| labels | m | 1: 5.01, 10:") and line.rstrip().endswith("| 1.5 |")


def test_delays_are_those_of_the_first_answer_after_each_word():
    heard = [(1.2, True), (2.9, False), (3.3, False), (9.0, True)]
    known, unknown, n_missed = listening.delays_ms(heard, [1.0, 3.0, 5.0])
    assert (known, unknown, n_missed) == (pytest.approx([200]), pytest.approx([300]), 1)


def test_a_timed_session_notes_what_it_takes_itself_and_nothing_else(monkeypatch):
    """On a made-up clock: 8 ms in the session, and 3 ms after it."""
    now = [0.0]

    class Session:
        def get_inputs(self):
            return ["x"]

        def run(self, outputs, inputs):
            now[0] += 0.008
            return [inputs["x"]]

    monkeypatch.setattr(imported.time, "perf_counter", lambda: now[0])
    timed = imported.TimedSession(Session())
    assert (timed.run(["embedding"], {"x": 7}), timed.get_inputs()) == ([7], ["x"])
    now[0] += 0.003
    assert timed.seconds == pytest.approx(0.008)


def test_the_variables_of_a_cold_process_are_its_own():
    words = [sys.executable, "-c", "import os, sys; sys.exit(os.environ.get('EDGEALIGN_TRIED') != 'once')"]
    latency.run_cold(words, EDGEALIGN_TRIED="once")
    with pytest.raises(RuntimeError, match="ended with 1"):
        latency.run_cold(words)


def test_a_word_is_enrolled_in_one_voice_and_asked_for_by_another():
    """What a voice adds to all of its words does not count; words that only one voice says apart are guessed."""
    rng = np.random.default_rng(0)
    words, voices = rng.standard_normal((30, 1, 64)), rng.standard_normal((1, 4, 64))
    assert unheard_voices.across_voices(words + 0.3 * voices, 50)[0] == 100
    own, ci95 = unheard_voices.across_voices(rng.standard_normal((30, 4, 64)), 400)
    assert own == pytest.approx(100 / unheard_voices.N_WAY, abs=2 * ci95) and 0 < ci95 < 1


def test_noise_has_the_spectrum_of_the_clip_and_a_telephone_no_high_bands():
    rng = np.random.default_rng(1)
    clip = np.convolve(rng.standard_normal(16_000), np.ones(4) / 4, "same").astype(np.float32)
    noise = unheard_voices.in_noise(clip, rng) - clip
    snr_db = 10 * np.log10((clip**2).mean() / (noise**2).mean())
    assert unheard_voices.SNR_DB[0] - 0.1 < snr_db < unheard_voices.SNR_DB[1] + 0.1
    tilts = [
        np.log(np.square(np.abs(np.fft.rfft(x))).reshape(-1)[:8000].reshape(8, -1).mean(axis=1)) for x in (clip, noise)
    ]
    assert np.ptp(tilts[0] - tilts[1]) < 0.01 < np.ptp(tilts[0])
    heard = np.abs(np.fft.rfft(unheard_voices.over_telephone(clip, rng))) ** 2
    assert heard[4200:].sum() < 1e-4 * heard[:3500].sum()


def test_validation_words_are_none_that_accuracy_is_measured_on():
    espeak = Espeak()
    texts = unheard_voices.validation_words(espeak)
    assert len(texts) == len(set(texts)) == unheard_voices.N_WORDS
    assert not {"zero", "two", "five", "water", "stone"} & set(texts)
