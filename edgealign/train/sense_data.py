"""What the encoders of the bundles `audio` and `image` are trained, validated and started on, out of the packs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgealign.train import packs, pictures, sounds, starts
from edgealign.train.sense_encoders import described
from edgealign.train.senses import Sense

MOST_DESCRIBED = 1500
SMALL_SHARE = 0.6  # of the steps see pictures of pictures.SMALL_CUT_PX


class SenseData:
    """fold   as in `SensesConfig`: -1 leaves nothing for validation and test."""

    def __init__(self, data: Path, cache: Path, fold: int, report: Callable[[str], None]) -> None:
        self.data, self.cache, self.fold, self.report = data, cache, fold, report

    @cached_property
    def sounds(self) -> list[sounds.Sound]:
        return sounds.listed(self.data, None if self.fold < 0 else self.fold)

    @cached_property
    def log_mels(self) -> sounds.LogMels:
        return sounds.LogMels.of(self.sounds, self.cache, self.report)

    @cached_property
    def pictures(self) -> list[pictures.Picture]:
        return pictures.listed(self.data, self.fold >= 0)

    @cached_property
    def arrays(self) -> np.ndarray:
        return pictures.load(self.pictures, self.cache, self.report)

    def batches(self, modality: str, seed: int, steps: int = 0) -> sounds.SoundBatches | pictures.PictureBatches:
        """For a schedule of so many steps."""
        if modality == "audio":
            return sounds.SoundBatches(self.sounds, self.log_mels, seed)
        return pictures.PictureBatches(self.pictures, self.arrays, seed, int(SMALL_SHARE * steps))

    def validation(self, modality: str) -> tuple[list[Tensor], np.ndarray] | None:
        """Samples of the role val as the encoder reads them, in batches, and labels int [n]; None where there are none.

        Of pictures, photographs alone.
        """
        rows, names = self.asked(modality, "val")
        return (self.inputs(modality, rows), np.unique(names, return_inverse=True)[1]) if rows else None

    def asked(self, modality: str, role: str, drawn: bool = False) -> tuple[list[int], list[str]]:
        """Rows with a role, and what each is; with `drawn` emoji by their group instead of photographs."""
        listed = self.sounds if modality == "audio" else self.pictures
        rows = [i for i, one in enumerate(listed) if one.role == role]
        if modality == "audio":
            return rows, [listed[i].label for i in rows]
        rows = [i for i in rows if listed[i].group.startswith("emoji " if drawn else "photograph ")]
        rows = [i for i in rows if listed[i].is_drawing == drawn]
        return rows, [listed[i].group for i in rows]

    def inputs(self, modality: str, rows: list[int]) -> list[Tensor]:
        """Plain samples as the encoder reads them, in batches."""
        if modality == "audio":
            return [torch.from_numpy(self.log_mels.whole(row))[None] for row in rows]
        return [pictures.plain(self.arrays[rows[at : at + 64]]) for at in range(0, len(rows), 64)]

    def shown(self) -> dict[str, list[int]]:
        """Rows of pictures of what makes a sound, by its label: `concept_map.tsv` without loose matches."""
        rows_of: dict[str, list[int]] = defaultdict(list)
        for row, picture in enumerate(self.pictures):
            rows_of[picture.file.stem if picture.is_drawing else picture.file.parent.name].append(row)
        found: dict[str, list[int]] = defaultdict(list)
        for row in packs.read_table(self.data / "concept_map.tsv"):
            if row["pack"] in ("openmoji_cldr", "caltech101") and row["match"] != "loose":
                found[row["esc50_class"]] += rows_of[row["label_or_hexcode"]]
        return found

    def described(self, sense: Sense) -> Sense:
        """A trained encoder whose embedding describes samples, too: by what recordings and pictures of training differ
        in, `MOST_DESCRIBED` of them at most."""
        listed = self.sounds if sense.modality == "audio" else self.pictures
        rows = [i for i, one in enumerate(listed) if one.role == "train" and isinstance(one.file, Path)]
        rows = np.random.default_rng(0).permutation(rows)[:MOST_DESCRIBED].tolist()
        return replace(sense, encoder=described(sense.encoder, self.inputs(sense.modality, rows)))

    def with_words(self, sense: Sense, seed: int, report: Callable[[str], None], n_steps: int) -> Sense:
        """An image encoder with its text source."""
        words, vocab = starts.words_for_pictures(sense.encoder, self.pictures, self.arrays, seed, report, n_steps)
        return replace(sense, words=words, vocabulary=vocab)

    def with_sources(
        self, sense: Sense, shown_by: Sense, seed: int, report: Callable[[str], None], n_steps: int
    ) -> Sense:
        """A sound encoder with its picture source and its text source."""
        mapped, words, vocab = starts.sources_for_sounds(
            sense.encoder, self.sounds, self.log_mels, shown_by.encoder, self.pictures, self.arrays, self.shown(), seed,
            report, n_steps,
        )  # fmt: skip
        return replace(sense, pictures=shown_by.encoder, picture_map=mapped, words=words, vocabulary=vocab)
