"""The research tasks on the packs of $EDGEALIGN_DATA."""

from __future__ import annotations

import csv
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgealign.errors import InvalidInput
from edgealign.train import words as word_lists
from edgealign.train.corpus import EFFECT_VARIANTS, SPLITS
from edgealign.train.features import Spoken
from edgealign.train.listing import Listing
from edgealign.train.paired import split_labels
from edgealign.train.synthesis import Espeak, Manner

SEED = 0  # of splits and voices: the data of a task do not depend on the seed of a run
FEWEST_TARGETS = 20  # of a label that is kept aside: ten shots and ten queries
FEWEST_IN_TRAINING = 5
MOST_PER_LABEL = 120
LOCALES = ("en", "sw", "ha", "zu", "yo")  # whose names an emoji is described with

# How a category of photographs is written about. There is one name for each, so that these are its source samples.
PHRASES = ("{}", "a photo of a {}", "a picture of the {}", "one {}", "{} seen from the front", "a {} outdoors")

# Concepts of fewer pictures than this start no class; classes of sounds without a concept are asked without pictures.
FEWEST_PICTURES = 10


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a tab-separated table without quoting."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except OSError as error:
        raise InvalidInput(
            f"'{path}' cannot be read ({error.strerror}): --data, or $EDGEALIGN_DATA, is the folder of the packs"
        ) from None


def rows_of_label(data: Path, pack: str) -> dict[str, list[Path]]:
    """The files of a pack, by label, in the order of its manifest."""
    found: dict[str, list[Path]] = defaultdict(list)
    for row in read_table(data / pack / "manifest.tsv"):
        found[row["label"]].append(data / pack / row["file"])
    return found


# ---- text to image ----


def text_to_image(data: Path, _fold: int) -> Listing:
    """Emoji and their names and keywords (strong pairs), photographs and what their category is called (weak pairs).

    A label is a group of emoji, or a category of photographs; recipes are only retrieved. An emoji that shows what a
    category is called is no sample, but lends the category its names: nothing that is tested was seen as a drawing.
    """
    listing = Listing("text-to-image", ("text", "image"))
    names, keywords = defaultdict(dict), defaultdict(dict)
    for table, key, of in (("names.tsv", "name", names), ("keywords.tsv", "keywords", keywords)):
        for row in read_table(data / "openmoji_cldr" / table):
            of[row["hexcode"]][row["locale"]] = row[key]
    photographs = rows_of_label(data, "caltech101")
    for label, files in rows_of_label(data, "caltech101_train").items():
        photographs[label] += files
    emoji_called = {by_locale.get("en", "").casefold(): code for code, by_locale in names.items()}
    emoji_of = {label: emoji_called.get(words_of(label)) for label in photographs}
    drawn = defaultdict(list)
    for row in read_table(data / "openmoji_cldr" / "manifest.tsv"):
        code = Path(row["file"]).stem
        if code not in emoji_of.values():
            drawn[row["label"]].append((code, data / "openmoji_cldr" / row["file"]))
    _add_emoji(listing, drawn, names, keywords)
    roles = split_labels(photographs)
    for label, files in sorted(photographs.items()):
        name = f"photograph {label}"
        listing.roles[name] = roles[label]
        for phrase in PHRASES:
            listing.source(phrase.format(words_of(label)), name)
        code = emoji_of[label]
        for locale in LOCALES if code else ():
            if locale in names[code]:
                listing.source(_described(names[code], keywords[code], locale), name)
        for file in files[:MOST_PER_LABEL]:
            listing.target(file, name)
    _add_recipes(listing, data)
    return listing


def words_of(label: str) -> str:
    return label.replace("_", " ").casefold()


def _described(names: dict[str, str], keywords: dict[str, str], locale: str) -> str:
    return " ".join([names[locale], *keywords.get(locale, "").split(" | ")])


def _add_emoji(listing: Listing, drawn: dict, names: dict, keywords: dict) -> None:
    big = {label for label, found in drawn.items() if len(found) >= FEWEST_TARGETS}
    roles = split_labels(big, shares=(0.3, 0.2))  # few groups are big enough to be asked
    for label, found in sorted(drawn.items()):
        if len(found) < FEWEST_IN_TRAINING:
            continue
        name = f"emoji {label}"
        listing.roles[name] = roles.get(label, "train")
        for code, file in found:
            target = listing.target(file, name)
            for locale in LOCALES:
                if locale in names[code]:
                    listing.pair(listing.source(_described(names[code], keywords[code], locale), name), target)


def _add_recipes(listing: Listing, data: Path) -> None:
    found = [row for row in read_table(data / "recipes_pd" / "recipes.tsv") if row["image"]]
    random.Random(SEED).shuffle(found)
    for i, row in enumerate(found):
        name = "recipes to retrieve" if i < 0.3 * len(found) else "recipes"
        listing.roles[name] = "retrieval" if name == "recipes to retrieve" else "train"
        source = listing.source(f"{row['title']} {row['text']}", name)
        listing.pair(source, listing.target(data / "recipes_pd" / row["image"], name))


# ---- image to audio ----


def image_to_audio(data: Path, fold: int) -> Listing:
    """Pictures and sounds of one concept: weak pairs by `concept_map.tsv`. Every third concept is tested, by fold.

    Sounds without a concept are asked in validation and test, without pictures.
    """
    listing = Listing("image-to-audio", ("image", "sound"))
    packs = {name: rows_of_label(data, name) for name in ("cifar10", "caltech101", "tiny_imagenet_esc")}
    pictures: dict[str, list[Path]] = defaultdict(list)
    for row in read_table(data / "concept_map.tsv"):
        label, found = row["label_or_hexcode"], pictures[row["esc50_class"]]
        if row["pack"] == "openmoji_cldr":
            found.append(data / "openmoji_cldr" / "img" / f"{label}.png")
        else:
            found += packs[row["pack"]].get(label, [])[: MOST_PER_LABEL // 3]
    sounds = rows_of_label(data, "esc50")
    concepts = [label for label in sounds if len(pictures[label]) >= FEWEST_PICTURES]
    fold_roles(listing, concepts, [label for label in sounds if label not in concepts], fold)
    for label in sounds:
        for file in pictures[label] if label in concepts else ():
            listing.source(file, label)
        for file in sounds[label]:
            listing.target(file, label)
    return listing


def fold_roles(listing: Listing, concepts: Sequence[str], unpaired: Sequence[str], fold: int) -> None:
    """Concepts in the order of a seeded shuffle: every third, from `fold` on, is tested; of the others every fourth
    validates. Of labels without a concept a third validates, and the rest is tested."""
    if not 0 <= fold < 3:
        raise InvalidInput(f"there is no fold {fold}: expected 0, 1 or 2")
    shuffled, others = sorted(concepts), sorted(unpaired)
    random.Random(SEED).shuffle(shuffled)
    random.Random(SEED).shuffle(others)
    rest = [label for i, label in enumerate(shuffled) if i % 3 != fold]
    listing.roles = dict.fromkeys(concepts, "test")
    listing.roles |= {label: "val" if i % 4 == 0 else "train" for i, label in enumerate(rest)}
    listing.roles |= {label: "val" if i % 3 == 0 else "test" for i, label in enumerate(others)}


# ---- text to speech ----

WORD_LANGUAGES = ("en", "sw", "es", "de", "id", "tr", "pl", "fi", "vi", "hi")
WORDS_PER_LANGUAGE = 40
RENDERINGS = 8


def words(data: Path, _fold: int) -> Listing:
    """Word classification: training words are synthetic (spelling and phonemes <-> what espeak-ng says), validation and
    test words are recorded by people: the roles val and test of the splits of the evaluation packs."""
    listing = Listing("text-to-speech-words", ("text", "sound"))
    espeak = Espeak()
    rng = random.Random(SEED)
    variants = [name for name in espeak.variants() if name not in EFFECT_VARIANTS]
    found = [word for name in WORD_LANGUAGES for word in word_lists.collect(espeak, name, WORDS_PER_LANGUAGE, SEED)]
    for word in found:
        label = f"{word.language} {word.text} /{word.ipa}/"
        listing.roles[label] = "train"
        for _ in range(RENDERINGS):
            manner = Manner(rng.choice(variants), rng.randint(110, 220), rng.randint(25, 75), rng.randint(30, 70))
            text = word.text if rng.random() < 0.5 else word.ipa
            target = listing.target(Spoken(word.text, word.language, manner), label)
            listing.pair(listing.source(text, label), target)
    for pack in ("arabic_sc", "dspspeech20", "fsdd"):
        for row in read_table(SPLITS / f"{pack}.tsv"):
            if row["role"] in ("val", "test"):
                label = f"{pack} {row['label']}"
                listing.roles[label] = row["role"]
                listing.target(recording(data, row), label)
    for label, (text, language) in _spelled(listing.roles).items():
        espeak.set_voice(language)
        for spelled in (text, espeak.phonemes(text)):
            listing.source(spelled, label)
    return listing


def recording(data: Path, row: dict[str, str]) -> Path:
    """A clip of a split lies in its pack, or in the pack's half that is for training."""
    path = data / row["pack"] / row["file"]
    return path if path.exists() else data / f"{row['pack']}_train" / row["file"]


def _spelled(labels: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Word and language of the recorded labels whose packs tell how they are spelled, in the order of the labels."""
    found = {}
    for label in labels:
        pack, _, word = label.partition(" ")
        if pack == "fsdd":
            found[label] = word_lists.DIGITS[int(word)], "en"
        elif pack == "dspspeech20":
            found[label] = word, "en" if word.isascii() else "cmn"
    return found


SPOKEN_LANGUAGES = {
    "afr": "af", "ben": "bn", "cat": "ca", "cym": "cy", "dan": "da", "deu": "de", "ekk": "et", "eng": "en", "epo": "eo",
    "eus": "eu", "fin": "fi", "gle": "ga", "hin": "hi", "hrv": "hr", "hun": "hu", "hye": "hy", "ind": "id", "isl": "is",
    "ita": "it", "kat": "ka", "kaz": "kk", "kir": "ky", "lat": "la", "lit": "lt", "mal": "ml", "mar": "mr", "nld": "nl",
    "por": "pt-br", "rus": "ru", "sin": "si", "spa": "es", "tam": "ta", "tat": "tt", "tel": "te", "tsn": "tn",
    "tur": "tr", "ukr": "uk", "vie": "vi", "yue": "yue",
}  # fmt: skip
SENTENCES_PER_LANGUAGE = 30
LONGEST_SENTENCE = 120  # characters


def languages(data: Path, _fold: int) -> Listing:
    """Language classification: sentences of the Universal Declaration of Human Rights <-> espeak-ng reading them.

    Synthetic speech, one kind of synthesizer: an accuracy here says nothing about recordings.
    """
    listing = Listing("text-to-speech-languages", ("text", "sound"))
    espeak = Espeak()
    rng = random.Random(SEED)
    variants = [name for name in espeak.variants() if name not in EFFECT_VARIANTS]
    sentences: dict[str, list[str]] = defaultdict(list)
    for row in read_table(data / "udhr_text" / "articles.tsv"):
        voice = SPOKEN_LANGUAGES.get(row["iso639_3"])
        if voice:
            pieces = row["text"].replace(";", ".").replace("।", ".").split(".")
            sentences[voice] += [piece.strip()[:LONGEST_SENTENCE] for piece in pieces if len(piece.strip()) >= 20]
    enough = {voice: found for voice, found in sentences.items() if len(found) >= FEWEST_TARGETS}
    if len(enough) < 20:
        raise InvalidInput(f"'{data / 'udhr_text'}' has {len(enough)} languages that espeak-ng speaks: 20 are needed")
    listing.roles = split_labels(enough)
    for voice, found in sorted(enough.items()):
        for sentence in found[:SENTENCES_PER_LANGUAGE]:
            manner = Manner(rng.choice(variants), rng.randint(130, 200), rng.randint(30, 70))
            target = listing.target(Spoken(sentence, voice, manner), voice)
            listing.pair(listing.source(sentence, voice), target)
    return listing
