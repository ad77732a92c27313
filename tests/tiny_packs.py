"""Packs of a few sounds and pictures in the layout of $EDGEALIGN_DATA, made in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, ImageDraw

from edgealign.train.made_sounds import made_sound

SOUNDS = [f"sound{i}" for i in range(15)]
CATEGORIES = ["cup", "star", "sail", "lamp", "crab", "brick", "kite", "bell", "sock", "leaf"]
GROUPS = [f"group{i}" for i in range(6)]


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def drawing(kind: int, take: int, side: int = 40) -> Image.Image:
    """Kinds differ in form and color, takes in place, size and shade."""
    rng = np.random.default_rng([kind, take])
    picture = Image.new("RGB", (side, side), tuple(rng.integers(180, 255, 3).tolist()))
    draw = ImageDraw.Draw(picture)
    x, y = rng.uniform(0.35, 0.65, 2) * side
    r = rng.uniform(0.2, 0.35) * side
    color = tuple((np.random.default_rng(kind).integers(0, 200, 3) + rng.integers(0, 30, 3)).tolist())
    draw.regular_polygon((x, y, r), 3 + kind % 6, rotation=int(rng.integers(30)), fill=color)
    if kind % 2:
        draw.line((0, y, side, y), fill=color, width=3)
    return picture


def write(folder: Path) -> Path:
    """All packs that `edgealign train audio` and `image` read."""
    rows = []
    for kind, label in enumerate(SOUNDS):
        for take in range(4):
            file = folder / "esc50" / label / f"1-{kind * 10 + take}-A.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(file, made_sound(kind, take, seed=9)[:24_000], 16_000)
            licence = "CC-BY-NC" if take == 3 else "CC0"
            rows.append({"file": f"{label}/{file.name}", "label": label, "licence": licence})
    write_table(folder / "esc50" / "manifest.tsv", rows)
    for pack in ("bioacoustics", "arabic_sc_train"):
        own = [row | {"file": f"../esc50/{row['file']}"} for row in rows[:3]]
        write_table(folder / pack / "manifest.tsv", own)
    rows = []
    for kind, label in enumerate(CATEGORIES):
        for take in range(4):
            file = folder / "caltech101" / label / f"{take}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            drawing(kind, take).save(file)
            rows.append({"file": f"{label}/{file.name}", "label": label})
    write_table(folder / "caltech101" / "manifest.tsv", rows)
    for pack in ("caltech101_train", "cifar10", "tiny_imagenet_esc"):
        write_table(folder / pack / "manifest.tsv", [rows[0] | {"file": f"../caltech101/{rows[0]['file']}"}])
    rows, names = [], []
    for i in range(20 * len(GROUPS)):
        code = f"1F{i:03d}"
        file = folder / "openmoji_cldr" / "img" / f"{code}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        drawing(100 + i, 0, 24).convert("P").save(file)
        rows.append({"file": f"img/{code}.png", "label": GROUPS[i % len(GROUPS)]})
        names += [{"hexcode": code, "locale": "en", "name": f"thing {i}"}]
        names += [{"hexcode": code, "locale": "am", "name": "ነገር " + chr(0x1200 + i)}]
    write_table(folder / "openmoji_cldr" / "manifest.tsv", rows)
    write_table(folder / "openmoji_cldr" / "names.tsv", names)
    write_table(folder / "openmoji_cldr" / "keywords.tsv", [{"hexcode": "1F000", "locale": "en", "keywords": "a | b"}])
    recipe = {"key": "soup", "title": "Soup", "tags": "", "course": "", "cuisine": "", "image": "", "text": "Boil."}
    write_table(folder / "recipes_pd" / "recipes.tsv", [recipe])
    write_table(folder / "recipes_pd" / "manifest.tsv", [{"file": "../caltech101/cup/0.png", "label": "soup"}])
    shown = [
        {"esc50_class": label, "pack": "openmoji_cldr", "label_or_hexcode": f"1F{i:03d}", "match": "drawing"}
        for i, label in enumerate(SOUNDS)
    ]
    write_table(folder / "concept_map.tsv", shown)
    return folder
