"""Few-shot episodes over real recordings: drawn once from a seed, named by their hash, shared by every method.

`edgealign.episodes` draws them; here they are read from split files and saved.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from edgealign.episodes import CONDITIONS, Clip, Episode, TooFewClips, draw, mean_and_ci95

__all__ = ["CONDITIONS", "Clip", "Episode", "TooFewClips", "as_json", "draw", "mean_and_ci95", "read_split", "save"]


def read_split(path: Path, role: str) -> list[Clip]:
    """The clips of one role ("train", "val" or "test") in a split file, in its order.

    A split file is tab-separated with the header `pack file label speaker role`.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    clips = [Clip(row["pack"], row["file"], row["label"], row["speaker"]) for row in rows if row["role"] == role]
    if not clips:
        raise ValueError(f"'{path}' has no row whose role is {role!r}")
    return clips


def as_json(clips: Sequence[Clip], episodes: Sequence[Episode]) -> str:
    """Canonical text of a set of episodes, clips included: what the hash is taken of and what is saved."""
    return json.dumps(
        {
            "clips": [[clip.pack, clip.file, clip.label, clip.speaker] for clip in clips],
            "episodes": [
                [list(e.labels), e.support.tolist(), e.queries.tolist(), e.query_labels.tolist()] for e in episodes
            ],
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def save(clips: Sequence[Clip], episodes: Sequence[Episode], folder: Path) -> str:
    """Write the episodes to folder/<sha256>.json and return the sha256 in hex."""
    text = as_json(clips, episodes).encode()
    digest = hashlib.sha256(text).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{digest}.json").write_bytes(text)
    return digest
