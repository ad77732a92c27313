"""Few-shot accuracy of the bundles `audio` and `image` on classes that training did not see.

    edgealign train audio RUN --fold 0 && edgealign export RUN/sense.pt -o BUNDLE
    python -m benchmarks.senses BUNDLE --fold 0

Files go through the bundle as they do on a device. Every method answers the same episodes: 5 labels (all, where fewer
are there), k samples of each, ten queries of each. Queries are cut from other recordings than the support. Rows of a
bundle that was trained on all classes would mean nothing, and the shipped ones are: what is measured here is the same
training with classes kept aside.

    statistics    mean and deviation of each log-mel band; or a histogram of colors and of edges in 4 x 4 parts. Each
                  number is standardized over training samples; cosine
    untrained     the encoder as training begins, centered on training samples
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import rows
from edgealign import Bundle, Recognizer, machine
from edgealign.episodes import mean_and_ci95
from edgealign.train import starts
from edgealign.train.research import default_cache
from edgealign.train.sense_commands import encoder_config, packs_folder
from edgealign.train.sense_data import SenseData

FILE = rows.FOLDER / "senses.jsonl"
KEY = ("what", "condition", "k", "pack", "fold", "method", "minus")
N_WAY, N_QUERIES, SHOTS = 5, 10, (1, 5, 10)


@dataclass(frozen=True)
class Asked:
    """support int [n_way, k] and queries int [n], rows of the samples; truth int [n], rows of labels int [n_way]."""

    labels: np.ndarray
    support: np.ndarray
    queries: np.ndarray
    truth: np.ndarray


def draw(labels: np.ndarray, takes: Sequence[str], k: int, n_episodes: int, seed: int = 0) -> list[Asked]:
    """Episodes; takes: the recording that a sample was cut from, which support and queries of an episode do not share.

    A label that has fewer samples than k + 1 takes is not asked.
    """
    rng = np.random.default_rng([seed, k])
    takes = np.asarray(takes)
    able = [label for label in np.unique(labels) if len(np.unique(takes[labels == label])) > k]
    episodes = []
    for _ in range(n_episodes):
        chosen = rng.choice(able, min(N_WAY, len(able)), replace=False)
        support, queries, truth = [], [], []
        for slot, label in enumerate(chosen):
            own = rng.permutation(np.flatnonzero(labels == label))
            support.append(own[:k])
            rest = own[~np.isin(takes[own], takes[own[:k]])][:N_QUERIES]
            queries += rest.tolist()
            truth += [slot] * len(rest)
        episodes.append(Asked(chosen, np.array(support), np.array(queries), np.array(truth)))
    return episodes


def hits(
    episodes: Sequence[Asked], embeddings: np.ndarray, sources: np.ndarray | None = None, weight: float = 0.0,
    shots: bool = True,
) -> np.ndarray:  # fmt: skip
    """Share of right answers of each episode; sources float32 [n_labels, dim] count as `weight` samples."""
    shares = []
    for episode in episodes:
        sums = embeddings[episode.support].sum(axis=1) if shots else 0
        if sources is not None:
            sums = sums + weight * sources[episode.labels]
        prototypes = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        shares.append(float(((embeddings[episode.queries] @ prototypes.T).argmax(axis=1) == episode.truth).mean()))
    return 100 * np.array(shares)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-9)


def sound_statistics(log_mel: np.ndarray) -> np.ndarray:
    x = np.maximum(log_mel, log_mel.max() - 14)
    x = x - x.max()
    return np.concatenate([x.mean(axis=1), x.std(axis=1)])


def picture_statistics(image: np.ndarray) -> np.ndarray:
    """image float32 [3, side, side]: 4 x 4 x 4 colors, 8 directions of edges in each of 4 x 4 parts; square roots."""
    bins = (np.clip(image, 0, 0.999) * 4).astype(int)
    colors = np.bincount((bins[0] * 16 + bins[1] * 4 + bins[2]).ravel(), minlength=64) / bins[0].size
    y, x = np.gradient(image.mean(axis=0))
    strength, direction = np.hypot(x, y), ((np.arctan2(y, x) + np.pi) / (2 * np.pi) * 8).astype(int) % 8
    part = np.arange(image.shape[1]) * 4 // image.shape[1]
    cell = part[:, None] * 4 + part[None]
    edges = np.bincount((cell * 8 + direction).ravel(), strength.ravel(), minlength=128)
    return np.sqrt(np.concatenate([colors, edges / (edges.sum() + 1e-9)]))


def standardized(training: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Unit rows of `asked`, every column with mean 0 and deviation 1 over `training`."""
    return unit((asked - training.mean(axis=0)) / (training.std(axis=0) + 1e-6)).astype(np.float32)


class Question:
    """Samples of the role test of one kind, embedded by every method."""

    def __init__(self, bundle: Bundle, data: SenseData, drawn: bool) -> None:
        self.bundle, self.data, self.modality = bundle, data, bundle.modality
        self.rows, names = data.asked(self.modality, "test", drawn)
        listed = data.sounds if self.modality == "audio" else data.pictures
        self.files = [listed[row].file for row in self.rows]
        self.takes = [getattr(listed[row], "take", str(row)) for row in self.rows]
        self.names, self.labels = np.unique(names, return_inverse=True)
        training = [i for i, one in enumerate(listed) if one.role == "train" and isinstance(one.file, Path)]
        self.training = np.random.default_rng(3).permutation(training)[:600].tolist()

    def embedded(self, variant: str) -> np.ndarray:
        """Through the bundle, file by file."""
        recognizer = Recognizer(Bundle.open(self.bundle.path, variant=variant))
        return np.stack([np.asarray(recognizer.embed(file)).reshape(-1) for file in self.files]).astype(np.float32)

    def statistics(self) -> np.ndarray:
        of = sound_statistics if self.modality == "audio" else picture_statistics
        made = [
            np.stack([of(x) for batch in self.data.inputs(self.modality, rows) for x in batch.numpy()])
            for rows in (self.training, self.rows)
        ]
        return standardized(*made)

    def untrained(self) -> np.ndarray:
        import torch

        from edgealign.train.sense_encoders import SenseEncoder

        torch.manual_seed(0)
        encoder = SenseEncoder(encoder_config(self.modality)).train()
        with torch.no_grad():  # the statistics of batch normalization, once over training samples
            for batch in self.data.inputs(self.modality, self.training):
                encoder(torch.cat([batch, batch])) if len(batch) == 1 else encoder(batch)
        encoder.eval()
        made = [
            starts.embed(encoder, self.data.inputs(self.modality, rows)).numpy() for rows in (self.training, self.rows)
        ]
        return unit(made[1] - made[0].mean(axis=0))

    def words(self) -> np.ndarray | None:
        """Of each label's English name, float32 [n_labels, dim]."""
        if "text" not in self.bundle.sources:
            return None
        spelled = [name.split(" ", 1)[-1] if self.modality == "image" else name for name in self.names]
        spelled = [name.replace("_", " ").replace("-", " ") for name in spelled]
        return np.stack([self.bundle.encode_text(self.bundle.tokenizer.encode(name)) for name in spelled])

    def shown(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Rows of labels that have pictures, and the mean embedding of those, float32 [n, dim]."""
        if "image" not in self.bundle.sources:
            return None
        from edgealign.images import fit, read_picture

        own = self.data.shown()
        wanted = self.bundle.source("image").input
        found, embeddings = [], []
        for row, name in enumerate(self.names):
            drawings = [self.data.pictures[i].file for i in own.get(name, []) if self.data.pictures[i].is_drawing]
            if drawings:
                made = [self.bundle.encode_image_source(fit(read_picture(file).pixels, wanted)) for file in drawings]
                found.append(row)
                embeddings.append(np.mean(made, axis=0))
        return (np.array(found), unit(np.stack(embeddings))) if found else None


def answers(question: Question, n_episodes: int) -> list[dict]:
    """Fields of the rows: accuracies, and paired differences to the int8 encoder."""
    by_method = {variant: question.embedded(variant) for variant in question.bundle.variants}
    by_method |= {"statistics": question.statistics(), "untrained": question.untrained()}
    weight = question.bundle.text_weight
    made = []

    def add(
        k: int, method: str, values: np.ndarray, episodes: Sequence[Asked], against: np.ndarray | None = None
    ) -> None:
        text = json.dumps([[e.support.tolist(), e.queries.tolist()] for e in episodes])
        common = {
            "k": k, "way": len(episodes[0].labels), "method": method, "episodes": len(episodes),
            "episodes_sha256": hashlib.sha256(text.encode()).hexdigest(),
        }  # fmt: skip
        mean, ci95 = mean_and_ci95(values)
        made.append({"what": "senses", **common, "mean": round(mean, 2), "ci95": round(ci95, 2)})
        if against is not None:
            mean, ci95 = mean_and_ci95(values - against)
            made.append(
                {"what": "senses difference", **common, "minus": "int8", "mean": round(mean, 2), "ci95": round(ci95, 2)}
            )

    for k in SHOTS:
        episodes = draw(question.labels, question.takes, k, n_episodes)
        ours = hits(episodes, by_method["int8"])
        add(k, "int8", ours, episodes)
        for method, embeddings in by_method.items():
            if method != "int8":
                add(k, method, hits(episodes, embeddings), episodes, ours)
        words = question.words()
        if words is not None:
            add(k, "int8 + word", hits(episodes, by_method["int8"], words, weight), episodes, ours)
            if k == SHOTS[0]:
                add(0, "word", hits(episodes, by_method["int8"], words, weight, shots=False), episodes)
    shown = question.shown()
    if shown is not None and len(shown[0]) >= 2:
        some = np.isin(question.labels, shown[0])
        sources = np.zeros((len(question.names), by_method["int8"].shape[1]), np.float32)
        sources[shown[0]] = shown[1]
        rows_of = np.flatnonzero(some)
        episodes = draw(question.labels[rows_of], [question.takes[i] for i in rows_of], 1, n_episodes)
        embeddings = by_method["int8"][rows_of]
        ours = hits(episodes, embeddings)
        add(1, "int8, labels with a picture", ours, episodes)
        add(1, "int8 + picture", hits(episodes, embeddings, sources, weight), episodes, ours)
        add(0, "picture", hits(episodes, embeddings, sources, weight, shots=False), episodes)
    return made


def measure(bundle: Bundle, data: SenseData, n_episodes: int, module_command: str) -> list[dict]:
    kinds = {"sounds of unseen classes": False}
    if bundle.modality == "image":
        kinds = {"photographs of unseen categories": False, "emoji of unseen groups": True}
    found: dict[str, list[dict]] = defaultdict(list)
    for condition, drawn in kinds.items():
        question = Question(bundle, data, drawn)
        pack = "esc50" if bundle.modality == "audio" else "openmoji_cldr" if drawn else "caltech101"
        for row in answers(question, n_episodes):
            found[condition].append({
                "condition": condition, "pack": pack, "fold": data.fold, "labels": len(question.names), **row,
                "bundle": bundle.encoder_sha256, "machine": machine.describe(), "commit": rows.commit(),
                "command": module_command,
            })  # fmt: skip
    return [row for own in found.values() for row in own]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.senses", description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path, help="bundle of a sense.pt that was trained with the same --fold")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--output", type=Path, default=FILE)
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    data = SenseData(packs_folder(arguments.data), arguments.cache, arguments.fold, print)
    made = measure(bundle, data, arguments.episodes, rows.command("senses"))
    rows.replace(arguments.output, made, KEY)
    for row in made:
        minus = f" - {row['minus']}" if "minus" in row else ""
        print(
            f"{row['condition']:36} k={row['k']:<3} {row['method'] + minus:34} {row['mean']:6.1f} ± {row['ci95']:.1f}"
        )


if __name__ == "__main__":
    main()
