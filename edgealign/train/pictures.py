"""Pictures that the encoder of the bundle `image` is trained on: which, as arrays, and varied."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgealign.train import packs
from edgealign.writing import replace_file

VERSION = 1
SEEN_PX = 96  # what the encoder sees on a device
# In training it sees parts of a picture, smaller: things look larger in a part, so that a whole picture is best seen at
# more pixels (Touvron et al. 2019), and the first part of training costs half.
CUT_PX, SMALL_CUT_PX = 64, 48
DRAWN_SHARE = 0.3  # of the batches in which a photograph of a category gives way to the emoji of that name


@dataclass(frozen=True)
class Picture:
    """label: the category of a photograph, or the emoji or dish itself; group: the category, or the group of emoji."""

    file: Path
    label: str
    group: str
    role: str
    names: tuple[tuple[str, str], ...] = ()  # language, text; what it is called

    @property
    def is_drawing(self) -> bool:
        return self.file.parent.parent.name == "openmoji_cldr"


def listed(data: Path, split: bool) -> list[Picture]:
    """Photographs of Caltech-101, emoji with their names, dishes.

    split   by the labels of the task text-to-image; otherwise everything is for training.

    An emoji that shows what a category of photographs is called belongs to that category.
    """
    listing = packs.text_to_image(data, 0)
    roles = listing.roles
    names = emoji_names(data)
    found = []
    photographs = packs.rows_of_label(data, "caltech101")
    for label, files in packs.rows_of_label(data, "caltech101_train").items():
        photographs[label] += files
    called = {packs.words_of(label): label for label in photographs}
    called |= {name.removesuffix("s"): label for name, label in called.items()}
    for label, files in sorted(photographs.items()):
        group = f"photograph {label}"
        role = roles[group] if split else "train"
        found += [Picture(file, group, group, role, (("en", packs.words_of(label)),)) for file in files]
    for row in packs.read_table(data / "openmoji_cldr" / "manifest.tsv"):
        code = Path(row["file"]).stem
        group = f"emoji {row['label']}"
        role = roles.get(group, "train") if split else "train"
        own = names.get(code, ())
        shows = called.get(next((text.casefold() for language, text in own if language == "en"), ""))
        label = f"emoji {code}"
        if shows:
            label = group = f"photograph {shows}"
            role = roles[group] if split else "train"
        found.append(Picture(data / "openmoji_cldr" / row["file"], label, group, role, own))
    for row in packs.read_table(data / "recipes_pd" / "manifest.tsv"):
        found.append(Picture(data / "recipes_pd" / row["file"], f"dish {row['file']}", f"dish {row['label']}", "train"))
    return found


def emoji_names(data: Path) -> dict[str, tuple[tuple[str, str], ...]]:
    """(locale, name) of every emoji in all locales, by its code."""
    found: dict[str, list[tuple[str, str]]] = {}
    for row in packs.read_table(data / "openmoji_cldr" / "names.tsv"):
        found.setdefault(row["hexcode"], []).append((row["locale"], row["name"]))
    return {code: tuple(own) for code, own in found.items()}


def pixels(file: Path) -> np.ndarray:
    """The middle square, SEEN_PX on each side: uint8 [4, SEEN_PX, SEEN_PX], RGB and how opaque it is."""
    from PIL import Image

    with Image.open(file) as opened:
        picture = opened.convert("RGBA")
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    box = (left, top, left + side, top + side)
    picture = picture.resize((SEEN_PX, SEEN_PX), Image.Resampling.BILINEAR, box=box, reducing_gap=None)
    return np.asarray(picture, np.uint8).transpose(2, 0, 1)


def load(pictures: list[Picture], cache: Path, report: Callable[[str], None]) -> np.ndarray:
    """uint8 [n, 4, SEEN_PX, SEEN_PX]; from `cache` where they were read before."""
    digest = hashlib.sha256(f"{VERSION} {SEEN_PX}".encode())
    for picture in pictures:
        digest.update(f"{picture.file} {picture.file.stat().st_size}\n".encode())
    path = cache / f"pictures-{digest.hexdigest()[:16]}.npy"
    if path.exists():
        return np.load(path, allow_pickle=False)
    report(f"reading {len(pictures)} pictures, once: {path}")
    made = np.stack([pixels(picture.file) for picture in pictures])
    cache.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file:
        np.save(file, made)
    return made


def plain(arrays: np.ndarray) -> Tensor:
    """As they are, on white: float32 [n, 3, SEEN_PX, SEEN_PX] in 0..1 of uint8 [n, 4, SEEN_PX, SEEN_PX]."""
    x = torch.from_numpy(arrays).float() / 255
    return x[:, :3] * x[:, 3:] + 1 - x[:, 3:]


class PictureBatches:
    """Two variations each of some pictures. Draws from the seed and the step alone."""

    photographed_labels, photographs = 24, 2
    drawn_pictures = 16  # emoji, and a few dishes

    def __init__(self, pictures: list[Picture], arrays: np.ndarray, seed: int, small_steps: int = 0) -> None:
        self.arrays, self.seed, self.small_steps = arrays, seed, small_steps
        training = [(row, picture) for row, picture in enumerate(pictures) if picture.role == "train"]
        self.labels = {name: i for i, name in enumerate(sorted({p.label for _, p in training}))}
        self.groups = {name: i for i, name in enumerate(sorted({p.group for _, p in training}))}
        self.n_labels, self.n_groups = len(self.labels), len(self.groups)
        self.of_row = {row: (self.labels[p.label], self.groups[p.group]) for row, p in training}
        self.photographs_of: dict[str, list[int]] = {}
        self.drawing_of: dict[str, int] = {}
        self.single = []
        for row, picture in training:
            if picture.label.startswith("photograph ") and picture.is_drawing:
                self.drawing_of[picture.label] = row
            elif picture.label.startswith("photograph "):
                self.photographs_of.setdefault(picture.label, []).append(row)
            else:
                self.single.append(row)

    def draw(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """image [n, 3, size_px, size_px], labels, groups, instances, each [n]; row i + n/2 is another view of row i."""
        rng = np.random.default_rng([self.seed, step])
        names = sorted(self.photographs_of)
        rows = []
        for name in rng.choice(names, min(self.photographed_labels, len(names)), replace=False):
            own = self.photographs_of[name]
            rows += rng.choice(own, min(self.photographs, len(own)), replace=False).tolist()
            if name in self.drawing_of and rng.random() < DRAWN_SHARE:
                rows[-1] = self.drawing_of[name]
        rows += rng.choice(self.single, min(self.drawn_pictures, len(self.single)), replace=False).tolist()
        labels, groups = torch.tensor([self.of_row[row] for row in rows]).T
        size_px = SMALL_CUT_PX if step < self.small_steps else CUT_PX
        torch_rng = torch.Generator().manual_seed(int(rng.integers(2**62)))
        x = vary(torch.from_numpy(self.arrays[rows + rows]), torch_rng, size_px)
        return x, labels.repeat(2), groups.repeat(2), torch.arange(len(rows)).repeat(2)


def vary(arrays: Tensor, rng: torch.Generator, size_px: int = CUT_PX) -> Tensor:
    """Cut out, turned, mirrored, recolored, partly hidden: float32 [n, 3, size_px, size_px] in 0..1 of uint8
    [n, 4, SEEN_PX, SEEN_PX]."""
    n = len(arrays)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=rng)

    # An affine map: area 0.4 to 1.1 of the picture, sides up to 4 : 3, turned by up to 20 degrees.
    scale = torch.sqrt(uniform(0.4, 1.1))
    sides = torch.exp(uniform(-0.15, 0.15))
    angle = uniform(-0.35, 0.35) * (uniform(0, 1) < 0.4)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    x_scale, y_scale = scale * sides, scale / sides
    room = (1 - scale).clamp(min=0.05)
    theta = torch.stack([
        torch.stack([mirror * x_scale * angle.cos(), -y_scale * angle.sin(), uniform(-1, 1) * room], dim=1),
        torch.stack([mirror * x_scale * angle.sin(), y_scale * angle.cos(), uniform(-1, 1) * room], dim=1),
    ], dim=1)  # fmt: skip
    grid = F.affine_grid(theta, (n, 4, size_px, size_px), align_corners=False)
    moved = F.grid_sample(arrays.float() / 255, grid, padding_mode="border", align_corners=False)
    paper = torch.where(uniform(0, 1, 1, 1, 1) < 0.6, torch.ones(()), uniform(0, 1, 3, 1, 1))
    x = moved[:, :3] * moved[:, 3:] + paper * (1 - moved[:, 3:])
    # Light, contrast, saturation, a cast of color; gray at times.
    gray = x.mean(dim=1, keepdim=True)
    saturation = uniform(0.4, 1.6, 1, 1, 1) * (uniform(0, 1, 1, 1, 1) > 0.07)
    x = gray + (x - gray) * saturation
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = (x - mean) * uniform(0.6, 1.4, 1, 1, 1) + mean * uniform(0.6, 1.4, 1, 1, 1)
    x = x * uniform(0.85, 1.15, 3, 1, 1)
    x = torch.where(uniform(0, 1, 1, 1, 1) < 0.03, 1 - x, x)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.where(uniform(0, 1, 1, 1, 1) < 0.2, blurred, x)
    x = x + torch.randn(x.shape, generator=rng) * uniform(0, 0.04, 1, 1, 1)
    # A rectangle is hidden.
    place = torch.arange(size_px)
    hidden = uniform(0, 1, 1, 1) < 0.25
    for axis in (1, 2):
        length = uniform(0.1, 0.4, 1) * size_px
        start = uniform(0, 1, 1) * (size_px - length)
        hidden = hidden & ((place >= start) & (place < start + length)).unsqueeze(3 - axis)
    return torch.where(hidden[:, None], uniform(0, 1, 3, 1, 1), x).clamp(0, 1)
