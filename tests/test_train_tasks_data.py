"""Where the data of the research tasks come from: a user's table, published layouts, the packs; and their features."""

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from tiny_pairs import N_BUCKETS
from toy_bundle import word_clip

from edgealign.cli import app
from edgealign.errors import InputUnreadable, InvalidInput
from edgealign.train import features as features_module
from edgealign.train import packs, pairs_table, published, research
from edgealign.train.features import FeatureConfig, Samples, Spoken, features, frames, pixels, tokens
from edgealign.train.synthesis import Manner

DATA = os.environ.get("EDGEALIGN_DATA")
needs_packs = pytest.mark.skipif(not DATA, reason="EDGEALIGN_DATA does not name the folder of the packs")
SMALL = FeatureConfig(n_tokens=8, n_buckets=N_BUCKETS, size_px=16, n_frames=10, frames_pooled=4)


def picture(path: Path, color: tuple[int, int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 24), color).save(path)
    return path


# ---- features ----


def test_words_come_before_trigrams_and_the_rest_is_padding():
    ids = tokens("Cat cat", FeatureConfig(n_tokens=12))
    assert ids[0] == ids[1]
    assert ids[2:5] == ids[5:8]  # <ca, cat, at> of either word
    assert ids[8:] == [0, 0, 0, 0] and 0 not in ids[:8]
    assert tokens("a b c", FeatureConfig(n_tokens=2)) == tokens("a b", FeatureConfig(n_tokens=2))


def test_a_picture_is_its_middle_square_on_white(tmp_path):
    Image.new("RGBA", (8, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert pixels(tmp_path / "clear.png", SMALL).min() == 255
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = (10, 20, 30)
    assert (pixels(Samples(wide), SMALL) == np.array([10, 20, 30])[:, None, None]).all()
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputUnreadable, match="cannot be read as a picture"):
        pixels(tmp_path / "text.png", SMALL)


def test_a_sound_is_its_loudest_stretch_whatever_its_length_and_level():
    word = word_clip(0, 0)
    around = np.concatenate([np.zeros(40_000, np.float32), word, np.zeros(40_000, np.float32)])
    config = FeatureConfig(n_frames=20, frames_pooled=3)
    made = frames(around, config)
    assert made.shape == (48, 20) and made.dtype == np.float16
    assert abs(float(made.astype(np.float32).mean())) < 0.01
    assert np.allclose(made, frames(around * 0.1, config), atol=0.2)
    assert np.isfinite(frames(np.zeros(0, np.float32), config)).all()


def test_features_are_computed_once(tmp_path, monkeypatch):
    items = [picture(tmp_path / f"{i}.png", (i, 0, 0)) for i in range(3)]
    first = features(items, "image", SMALL, tmp_path / "cache", "some")
    monkeypatch.setattr(features_module, "pixels", None)
    assert np.array_equal(features(items, "image", SMALL, tmp_path / "cache", "some"), first)
    picture(items[0], (200, 0, 0))
    with pytest.raises(TypeError):  # a file that changed is read again
        features(items, "image", SMALL, tmp_path / "cache", "some")


def test_speech_is_rendered_where_a_sample_is_a_text():
    pytest.importorskip("espeakng_loader")
    made = features([Spoken("maji", "sw", Manner())], "sound", SMALL, None, "spoken")
    assert made.shape == (1, 48, 10) and made.std() > 0.5
    with pytest.raises(InvalidInput, match="no voice 'xx'"):
        features([Spoken("maji", "xx", Manner())], "sound", SMALL, None, "spoken")


# ---- a user's table ----


def write_table(folder: Path, rows: list[dict[str, str]], header: tuple[str, ...] = pairs_table.COLUMNS) -> Path:
    path = folder / "pairs.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, str]]:
    """Eight labels of six pictures each: four for training, two for validation, two for the test."""
    made = []
    for label, split in enumerate(("train",) * 4 + ("val",) * 2 + ("test",) * 2):
        for i in range(6):
            file = picture(tmp_path / f"{label}/{i}.png", (30 * label, 250 - 30 * label, 40 * i)).relative_to(tmp_path)
            made.append({
                "source": f"word{label} number{i}", "target": str(file), "label": f"label {label}",
                "pairing": "strong", "split": split,
            })  # fmt: skip
    return made


def test_a_table_becomes_pairs_and_sets(tmp_path, rows):
    for row in rows[:6]:
        row["pairing"] = "weak"
    rows += [{**rows[0], "source": ""}]  # the same picture again, alone
    listing = pairs_table.read(write_table(tmp_path, rows), "own", ("text", "image"))
    assert len(listing.sources) == len(listing.targets) == 48
    assert len(listing.pairs) == 42
    data = listing.paired(SMALL, None, research.OWN)
    assert np.array_equal(data.set_of, data.target.labels)
    assert (data.source.labels[data.pairs[:, 0]] == data.target.labels[data.pairs[:, 1]]).all()


@pytest.mark.parametrize(
    ("row", "change", "error", "sentence"),
    [
        (3, {"target": "none.png"}, InputUnreadable, r"row 5: there is no target '.*none.png'"),
        (6, {"split": "test", "label": "label 0"}, InvalidInput, "row 8: .* test, and in train in row 2"),
        (1, {"source": ""}, InvalidInput, "row 3: a strong row without a source"),
        (1, {"source": "", "target": "", "pairing": "weak"}, InvalidInput, "row 3: a weak row without a source or a"),
        (0, {"pairing": "firm"}, InvalidInput, "row 2: the pairing 'firm' is not one of strong, weak"),
        (0, {"split": "dev"}, InvalidInput, "row 2: the split 'dev' is not one of train, val, test"),
        (0, {"label": " "}, InvalidInput, "row 2: the label is empty"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_named_with_the_remedy(tmp_path, rows, row, change, error, sentence):
    rows[row] |= change
    with pytest.raises(error, match=sentence):
        pairs_table.read(write_table(tmp_path, rows), "own", ("text", "image"))


def test_a_label_without_partners_is_refused(tmp_path, rows):
    for row in rows[:6]:
        row |= {"pairing": "weak", "target": ""}
    with pytest.raises(InvalidInput, match="row 2: the train label 'label 0' has no target"):
        pairs_table.read(write_table(tmp_path, rows), "own", ("text", "image"))


def test_a_table_that_is_none_is_refused(tmp_path, rows):
    renamed = [{("kind" if k == "pairing" else k): v for k, v in row.items()} for row in rows]
    header = ("source", "target", "label", "kind", "split")
    with pytest.raises(InvalidInput, match="row 1: unknown column 'kind', no column 'pairing'"):
        pairs_table.read(write_table(tmp_path, renamed, header), "own", ("text", "image"))
    with pytest.raises(InvalidInput, match="no rows"):
        pairs_table.read(write_table(tmp_path, []), "own", ("text", "image"))
    (tmp_path / "pairs.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputUnreadable, match="not a CSV file"):
        pairs_table.read(tmp_path / "pairs.csv", "own", ("text", "image"))
    with pytest.raises(InputUnreadable, match="cannot be read"):
        pairs_table.read(tmp_path / "none.csv", "own", ("text", "image"))


@pytest.fixture
def train(monkeypatch, capfd):
    """Runs `edgealign train` in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgealign", "train", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            app.main()
        captured = capfd.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run


def test_one_command_goes_from_a_table_to_results(tmp_path, rows, train):
    table, run = write_table(tmp_path, rows), tmp_path / "run"
    few = (
        "--quick",
        "--shots",
        "1,2",
        "--queries",
        3,
        "--episodes",
        20,
        "--phi-episodes",
        2,
        "--cache",
        tmp_path / "c",
    )
    small = "inner_steps=2,n_way=2,n_shot=2,align_way=3"
    code, out, err = train("text-to-image", run, "--pairs", table, "--steps", 2, "--set", small, *few)
    assert code == 0, err
    assert "labels, 2-way, prototype" in out and "labels, 2-way, phi" in out and "k=0" in out
    results = json.loads((run / "results.json").read_text())
    assert {cell["k"] for cell in results["accuracies"]} == {0, 1, 2}
    assert json.loads((run / "split.json").read_text())["label 7"] == "test"
    assert train("text-to-image", run, "--pairs", table, "--steps", 2, "--set", small, *few)[1] == out
    code, _, err = train("text-to-image", run, "--pairs", table, "--steps", 3, "--set", small, *few)
    assert code == 2 and "other settings (steps)" in err
    code, _, err = train("text-to-image", tmp_path / "other", "--pairs", table, "--cache", tmp_path / "c")
    assert code == 2 and "has 6 target samples" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("text-to-image", "run"), "give --data or set $EDGEALIGN_DATA"),
        (("text-to-image", "run", "--data", "nowhere"), "'nowhere/"),
        (("text-to-image", "run", "--yummly", "nowhere"), "has no folder 'metadata27638'"),
        (("text-to-image", "run", "--yummly", "a", "--pairs", "b"), "two sources of data"),
        (("image-to-audio", "run", "--esc50", "a"), "also needs --cifar10 and --cifar100"),
        (("text-to-image", "run", "--data", ".", "--method", "magic"), "no method 'magic'"),
        (("text-to-image", "run", "--data", ".", "--shots", "0"), "--shots is '0'"),
    ],
)
def test_a_command_that_cannot_work_says_why(train, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.delenv("EDGEALIGN_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    code, _, err = train(*arguments)
    assert code in (2, 4)
    assert sentence in err and err.count("\n") == 1


def test_the_methods_are_listed(train):
    code, out, _ = train("methods")
    assert code == 0 and "croma-strong" in out and "oracle" in out


# ---- published layouts ----


def test_yummly_is_read_as_it_is_published(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "FEWEST_PER_CLASS", 3)
    cuisines = ("Italian", "Thai", "Mexican", "Greek", "Indian", "French")
    for i in range(24):
        kinds = {"cuisine": [cuisines[i % 6]], "course": ["Soups", "Rare"][: 1 + (i == 0)]}
        recipe = {"name": f"Soup {i}", "ingredientLines": ["1 cup of water"], "attributes": kinds}
        if i == 23:
            recipe["attributes"] = {"course": ["Soups"]}  # without a cuisine: left out
        path = tmp_path / "metadata27638" / f"meta{i:05d}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(recipe))
        picture(tmp_path / "images27638" / f"img{i:05d}.jpg", (i, i, i))
    listing = published.yummly(tmp_path, 0)
    assert set(listing.roles) == {f"{cuisine} Soups" for cuisine in cuisines}
    assert sorted(listing.roles.values()) == ["test", "test", "train", "train", "val", "val"]
    assert len(listing.pairs) == 23  # the largest class, 4, is no larger than mean + standard deviation: 3.8 + 0.4
    text, image = listing.sources[0][0], listing.targets[0][0]
    assert "1 cup of water" in text and image.is_file()
    (tmp_path / "metadata27638" / "meta00000.json").write_text("{")
    with pytest.raises(InputUnreadable, match=r"meta00000\.json' is no recipe"):
        published.yummly(tmp_path, 0)


def test_cifar_and_esc50_are_joined_by_concepts(tmp_path):
    names10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    names100 = ["baby", "bottle", "bowl", "clock", "keyboard", "sea", "apple", "can", "train", "bee"]
    for folder, table, files, n in (
        ("c10", "batches.meta.txt", [f"data_batch_{i}.bin" for i in range(1, 6)], 1),
        ("c100", "fine_label_names.txt", ["train.bin"], 2),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / table).write_text("\n".join(names10 if n == 1 else names100) + "\n")
        for name in files:
            records = np.zeros((10, n + 3072), np.uint8)
            records[:, n - 1] = np.arange(10)
            records[:, n : n + 1024] = 200  # the red plane comes first
            records.tofile(tmp_path / folder / name)
    (tmp_path / "esc" / "meta").mkdir(parents=True)
    heard = ["dog", "cat", "engine", "rooster", "frog", "pig", "crying_baby", "clock_tick", "rain", "chainsaw", "train"]
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    lines += [f"{i}-{name}.wav,1,0,{name},False,1,A" for name in heard for i in range(2)]
    (tmp_path / "esc" / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    listing = published.cifar_esc50(tmp_path / "c10", tmp_path / "c100", tmp_path / "esc", 0)
    assert listing.pairs == []
    sounds = {label for _, label in listing.targets}
    assert {"automobile", "cattle", "bird", "sound rain", "sound chainsaw"} <= sounds
    pictured = {label for _, label in listing.sources}
    assert {"glass", "computer", "insect"} <= pictured and "apple" not in pictured and "sound rain" not in pictured
    assert listing.sources[0][0].values[0, 0].tolist() == [200, 0, 0]
    assert listing.roles["sound rain"] in ("val", "test")
    roles = [published.cifar_esc50(tmp_path / "c10", tmp_path / "c100", tmp_path / "esc", f).roles for f in range(3)]
    assert all(sum(found[name] == "test" for found in roles) == 1 for name in pictured)
    (tmp_path / "c100" / "train.bin").write_bytes(b"123")
    with pytest.raises(InputUnreadable, match="3 bytes, not records of 3074"):
        published.cifar_esc50(tmp_path / "c10", tmp_path / "c100", tmp_path / "esc", 0)
    with pytest.raises(InvalidInput, match="pickles can run code"):
        published.cifar_esc50(tmp_path, tmp_path / "c100", tmp_path / "esc", 0)


def test_wilderness_is_read_as_its_scripts_align_it(tmp_path):
    for n, name in enumerate(("ABIWBT", "AC1IBS", "ACCIBS", "ACDWBT", "ACHBSU", "ACMAS3")):
        etc = tmp_path / name / "aligned" / "etc"
        etc.mkdir(parents=True)
        etc.joinpath("txt.done.data").write_text(
            f'( {name}_00001 "a \\"word\\" of {n}" 0.93 )\n( {name}_00002 "another" 0.8 )\n', encoding="utf-8"
        )
    listing = published.wilderness(tmp_path, 0)
    assert len(listing.pairs) == 12 and listing.sources[0][0] == 'a "word" of 0'
    assert listing.targets[0][0] == tmp_path / "ABIWBT" / "aligned" / "wav" / "ABIWBT_00001.wav"
    with pytest.raises(InputUnreadable, match=r"ABIWBT_00001\.wav' cannot be read"):
        listing.paired(SMALL, tmp_path / "cache", research.OWN)
    for path, _ in listing.targets:
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, word_clip(0, 0), 16_000)
    assert listing.paired(SMALL, None, research.OWN).target.x.shape == (12, 48, 10)
    (etc / "txt.done.data").write_text("nothing")
    with pytest.raises(InputUnreadable, match="has no line"):
        published.wilderness(tmp_path, 0)
    with pytest.raises(InvalidInput, match="holds no LANGID"):
        published.wilderness(tmp_path / "ABIWBT", 0)


# ---- packs ----


@needs_packs
def test_no_drawing_of_a_tested_photograph_is_trained_on():
    listing = packs.text_to_image(Path(DATA), 0)
    drawn = {Path(item).stem for item, label in listing.targets if label.startswith("emoji")}
    names = {row["name"].casefold(): row["hexcode"] for row in packs.read_table(Path(DATA) / "openmoji_cldr/names.tsv")
             if row["locale"] == "en"}  # fmt: skip
    categories = {label.removeprefix("photograph ").replace("_", " ") for label in listing.roles}
    shared = [name for name in categories if name.casefold() in names]
    assert len(shared) >= 10
    assert not drawn & {names[name.casefold()] for name in shared}
    roles = [role for label, role in listing.roles.items() if label.startswith("photograph")]
    assert {role: roles.count(role) for role in set(roles)} == {"train": 50, "val": 10, "test": 10}
    labels = [label for _, label in listing.targets]
    assert all(labels.count(name) >= 20 for name, role in listing.roles.items() if role in ("val", "test"))


@needs_packs
@pytest.mark.parametrize("fold", range(3))
def test_concepts_are_tested_in_one_fold_each_and_sounds_have_weak_pairs_only(fold):
    listing = packs.image_to_audio(Path(DATA), fold)
    assert listing.pairs == []
    pictured = {label for _, label in listing.sources}
    other = packs.image_to_audio(Path(DATA), (fold + 1) % 3)
    tested, tested_there = ({label for label in pictured if found.roles[label] == "test"} for found in (listing, other))
    assert tested and not tested & tested_there
    assert all(listing.roles[label] != "train" for _, label in listing.targets if label not in pictured)
    with pytest.raises(InvalidInput, match="no fold 3"):
        packs.image_to_audio(Path(DATA), 3)


def test_recorded_labels_are_spelled_in_the_order_they_were_listed_in():
    """Whatever the seed of string hashes is: rows of the same data decide about its hash, and whether a run goes on."""
    labels = ["dspspeech20 上海", "fsdd 7", "arabic_sc no", "fsdd 0", "dspspeech20 Print", "en tree /tri/"]
    expected = {
        "dspspeech20 上海": ("上海", "cmn"), "fsdd 7": ("seven", "en"), "fsdd 0": ("zero", "en"),
        "dspspeech20 Print": ("Print", "en"),
    }  # fmt: skip
    for order in (labels, labels[::-1]):
        assert list(packs._spelled(order).items()) == [(k, expected[k]) for k in order if k in expected]


@needs_packs
def test_tested_words_are_recorded_and_trained_ones_synthetic(monkeypatch):
    pytest.importorskip("babel")
    monkeypatch.setattr(packs, "WORD_LANGUAGES", ("sw",))
    monkeypatch.setattr(packs, "WORDS_PER_LANGUAGE", 5)
    listing = packs.words(Path(DATA), 0)
    for item, label in listing.targets:
        assert isinstance(item, Spoken) == (listing.roles[label] == "train")
        assert isinstance(item, Spoken) or item.exists()
    assert {"fsdd 3", "arabic_sc backward"} & set(listing.roles)
    assert "three" in {item for item, label in listing.sources if label == "fsdd 3"}


@needs_packs
def test_there_are_twenty_spoken_languages_or_more():
    listing = packs.languages(Path(DATA), 0)
    assert len(listing.roles) >= 20
    assert len(listing.pairs) == len(listing.targets)
    assert all(isinstance(item, Spoken) for item, _ in listing.targets)
