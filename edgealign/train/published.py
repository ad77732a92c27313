"""Loaders of public data sets in the layout they are published in. Nothing is downloaded.

Yummly-28K   images27638/img00001.jpg, metadata27638/meta00001.json
CIFAR        the binary versions: cifar-10-batches-bin/data_batch_1.bin ..., cifar-100-binary/train.bin
ESC-50       meta/esc50.csv, audio/*.wav
Wilderness   LANGID/aligned/wav/*.wav, LANGID/aligned/etc/txt.done.data
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgealign.errors import InputUnreadable, InvalidInput
from edgealign.train.features import Samples
from edgealign.train.listing import Listing
from edgealign.train.packs import MOST_PER_LABEL, fold_roles
from edgealign.train.paired import split_labels

FEWEST_PER_CLASS = 100  # of Yummly-28K
CIFAR_PX = 32

# Labels of CIFAR-10 and CIFAR-100 | labels of ESC-50.
CONCEPTS = {
    "automobile": ("automobile truck streetcar bus motorcycle pickup_truck", "car_horn engine"),
    "baby": ("baby", "crying_baby"),
    "bird": ("bird", "rooster hen crow chirping_birds"),
    "cat": ("cat", "cat"),
    "cattle": ("cattle horse", "pig cow sheep"),
    "clock": ("clock", "clock_alarm clock_tick"),
    "computer": ("keyboard", "mouse_click keyboard_typing"),
    "can": ("can", "can_opening"),
    "glass": ("bottle bowl cup plate", "glass_breaking"),
    "dog": ("dog", "dog"),
    "frog": ("frog", "frog"),
    "furniture": ("chair table wardrobe", "door_wood_creaks door_wood_knock"),
    "human": (
        "boy girl man woman",
        "sneezing clapping breathing coughing footsteps laughing brushing_teeth snoring drinking_sipping",
    ),
    "insect": ("bee beetle butterfly cockroach", "insects crickets"),
    "airplane": ("airplane", "airplane"),
    "sea": ("sea", "sea_waves"),
    "train": ("train", "train"),
}


def yummly(folder: Path, _fold: int) -> Listing:
    """Recipe and photograph, strong pairs. A class is a cuisine and a course with at least FEWEST_PER_CLASS recipes,
    cut at mean + standard deviation of the class sizes; a recipe with several of either has the most frequent one."""
    listing = Listing("yummly-28k", ("text", "image"))
    recipes = []
    for path in sorted(_folder(folder, "metadata27638", "images27638").glob("meta*.json")):
        try:
            recipe = json.loads(path.read_text(encoding="utf-8"))
            attributes = recipe["attributes"]
            text = " ".join([recipe.get("name", ""), *recipe["ingredientLines"]])
        except (ValueError, KeyError, TypeError) as error:
            raise InputUnreadable(
                f"'{path}' is no recipe of Yummly-28K ({error!r}): unpack the archive again"
            ) from None
        image = folder / "images27638" / path.name.replace("meta", "img").replace(".json", ".jpg")
        if attributes.get("cuisine") and attributes.get("course"):
            recipes.append((text, image, attributes["cuisine"], attributes["course"]))
    frequent = [Counter(value for recipe in recipes for value in recipe[column]) for column in (2, 3)]
    of_class = defaultdict(list)
    for text, image, cuisines, courses in recipes:
        cuisine, course = (
            max(values, key=lambda value, counts=counts: (counts[value], value))
            for values, counts in zip((cuisines, courses), frequent, strict=True)
        )
        of_class[f"{cuisine} {course}"].append((text, image))
    of_class = {label: found for label, found in of_class.items() if len(found) >= FEWEST_PER_CLASS}
    if not of_class:
        raise InvalidInput(f"'{folder}' has no cuisine and course with {FEWEST_PER_CLASS} recipes: is it complete?")
    sizes = [len(found) for found in of_class.values()]
    cap = int(np.mean(sizes) + np.std(sizes))
    listing.roles = split_labels(of_class)
    for label, found in sorted(of_class.items()):
        for text, image in found[:cap]:
            listing.pair(listing.source(text, label), listing.target(image, label))
    return listing


def cifar_esc50(cifar10: Path, cifar100: Path, esc50: Path, fold: int) -> Listing:
    """Pictures and sounds of CONCEPTS, weak pairs; every third concept is tested, by fold, and with them the sounds
    without a picture."""
    listing = Listing("cifar-esc50", ("image", "sound"))
    concept_of_picture = {label: name for name, (labels, _) in CONCEPTS.items() for label in labels.split()}
    concept_of_sound = {label: name for name, (_, labels) in CONCEPTS.items() for label in labels.split()}
    n_pictures: Counter[str] = Counter()
    for label, picture in (*_cifar10(cifar10), *_cifar100(cifar100)):
        concept = concept_of_picture.get(label)
        if concept and n_pictures[concept] < 2 * MOST_PER_LABEL:
            n_pictures[concept] += 1
            listing.source(Samples(picture), concept)
    table = esc50 / "meta" / "esc50.csv"
    try:
        rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
        sounds = [(esc50 / "audio" / row["filename"], row["category"]) for row in rows]
    except (OSError, KeyError) as error:
        raise InvalidInput(f"'{table}' is no table of ESC-50 ({error!r}): name the folder ESC-50-master") from None
    for path, category in sounds:
        listing.target(path, concept_of_sound.get(category, f"sound {category}"))
    unpaired = {label for _, label in listing.targets} - set(CONCEPTS)
    fold_roles(listing, [name for name in CONCEPTS if n_pictures[name]], sorted(unpaired), fold)
    return listing


def _cifar10(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(label, uint8 [32, 32, 3]) of the training part."""
    folder = folder if (folder / "batches.meta.txt").exists() else folder / "cifar-10-batches-bin"
    names = _lines(folder / "batches.meta.txt", "CIFAR-10")
    for number in range(1, 6):
        for row in _records(folder / f"data_batch_{number}.bin", 1):
            yield names[row[0]], _picture(row[1:])


def _cifar100(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    folder = folder if (folder / "fine_label_names.txt").exists() else folder / "cifar-100-binary"
    names = _lines(folder / "fine_label_names.txt", "CIFAR-100")
    for row in _records(folder / "train.bin", 2):
        yield names[row[1]], _picture(row[2:])


def _records(path: Path, n_labels: int) -> np.ndarray:
    """uint8 [n, n_labels + 3072]."""
    try:
        values = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InvalidInput(f"'{path}' cannot be read ({error.strerror}): unpack the binary version of CIFAR") from None
    length = n_labels + 3 * CIFAR_PX**2
    if not len(values) or len(values) % length:
        raise InputUnreadable(f"'{path}' has {len(values)} bytes, not records of {length}: unpack the archive again")
    return values.reshape(-1, length)


def _picture(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values.reshape(3, CIFAR_PX, CIFAR_PX).transpose(1, 2, 0))


def _lines(path: Path, name: str) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        raise InvalidInput(
            f"'{path}' is missing: name the folder of the binary version of {name} (the Python version is pickled, and "
            f"pickles can run code, so they are not read)"
        ) from None


def wilderness(folder: Path, _fold: int) -> Listing:
    """Sentences of the CMU Wilderness corpus and their recordings, strong pairs; a label is a language."""
    listing = Listing("wilderness", ("text", "sound"))
    found = sorted(folder.glob("*/aligned/etc/txt.done.data"))
    if not found:
        raise InvalidInput(
            f"'{folder}' holds no LANGID/aligned/etc/txt.done.data: name the folder in which do_found made its "
            f"alignments"
        )
    for table in found:
        label = table.parents[2].name
        rows = re.findall(r'^\(\s*(\S+)\s+"((?:[^"\\]|\\.)*)"', table.read_text(encoding="utf-8"), flags=re.MULTILINE)
        if not rows:
            raise InputUnreadable(f"'{table}' has no line of the form ( name \"text\" ): align the language again")
        for name, text in rows[:MOST_PER_LABEL]:
            path = table.parents[1] / "wav" / f"{name}.wav"
            listing.pair(listing.source(text.replace('\\"', '"'), label), listing.target(path, label))
    listing.roles = split_labels({label for _, label in listing.targets})
    return listing


def _folder(root: Path, *names: str) -> Path:
    for name in names:
        if not (root / name).is_dir():
            raise InvalidInput(f"'{root}' has no folder '{name}': name the folder that the archive was unpacked to")
    return root / names[0]
