"""Episodes over words that training does not see: what the checkpoint is chosen by."""

from __future__ import annotations

import numpy as np
import torch

from edgealign.errors import InvalidInput
from edgealign.train.batches import Batches
from edgealign.train.corpus import Corpus
from edgealign.train.encoders import AlignedEncoders


class Validation:
    """Episodes over meta-validation words: recorded ones, and synthetic ones in voices that training does not hear."""

    def __init__(self, corpus: Corpus, batches: Batches, n_synthetic: int = 300) -> None:
        self.batches = batches
        self.synthetic = corpus.select("val", synthetic=True)[:n_synthetic]
        if len(self.synthetic) < 2:
            raise InvalidInput(
                f"the corpus has {len(self.synthetic)} validation words and a checkpoint is chosen by telling them "
                f"apart: render it with more words or languages"
            )
        self.recorded = corpus.select("val", synthetic=False)
        clips = corpus.clips
        self.of_synthetic = [c for i in self.synthetic for c in corpus.clips_of[i][:3]]
        self.of_recorded = [c for i in self.recorded for c in corpus.clips_of[i]]
        self.labels = {n: clips["label"][rows] for n, rows in self._sets()}
        self.speakers = {n: clips["speaker"][rows] for n, rows in self._sets()}

    def _sets(self) -> list[tuple[str, list[int]]]:
        return [("synthetic", self.of_synthetic), ("recorded", self.of_recorded)]

    @torch.inference_mode()
    def score(self, model: AlignedEncoders) -> dict[str, float]:
        """Accuracies in percent; `score`, their mean, chooses the checkpoint."""
        model.eval()
        speech = {name: self._embed(model, rows) for name, rows in self._sets()}
        result = {}
        for name in speech:
            for k in (1, 5) if name == "recorded" else (1,):
                way = 10 if name == "synthetic" else 6
                if len(set(self.labels[name].tolist())) >= way:
                    result[f"{name}_{k}shot"] = self._episodes(name, speech[name], k, way)
        for kind in ("grapheme", "ipa"):
            text = model.embed_text(*self.batches.tokens(self.synthetic, kind, None)).numpy()
            result[f"text_{kind}"] = self._from_text(text, speech["synthetic"])
        model.train()
        return {"score": float(np.mean(list(result.values())))} | result

    def _embed(self, model: AlignedEncoders, rows: list[int]) -> np.ndarray:
        rows = [self.batches.cut(clip, None) for clip in rows]
        parts = []
        for i in range(0, len(rows), 64):
            parts.append(model.embed_speech(*self.batches.augmenter.clean(rows[i : i + 64])).numpy())
        return np.concatenate(parts) if parts else np.zeros((0, model.config.dim), np.float32)

    def _episodes(self, name: str, speech: np.ndarray, k: int, way: int, n: int = 300) -> float:
        """Support of one speaker per label, queries of others; nearest prototype."""
        rng = np.random.default_rng(7)
        labels, speakers = self.labels[name], self.speakers[name]
        right = []
        for _ in range(n):
            prototypes, queries, truth = [], [], []
            for slot, label in enumerate(rng.permutation(np.unique(labels))[:way]):
                own = np.flatnonzero(labels == label)
                speaker = rng.choice(speakers[own])
                support, other = own[speakers[own] == speaker], own[speakers[own] != speaker]
                if not len(other):
                    support, other = own[:1], own[1:]
                prototypes.append(speech[rng.permutation(support)[:k]].mean(axis=0))
                queries.extend(rng.permutation(other)[:5])
                truth += [slot] * min(5, len(other))
            prototypes = np.array(prototypes)
            prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
            right.append(np.mean((speech[queries] @ prototypes.T).argmax(axis=1) == truth))
        return 100 * float(np.mean(right))

    def _from_text(self, text: np.ndarray, speech: np.ndarray, way: int = 10, n: int = 300) -> float:
        rng = np.random.default_rng(8)
        row_of = {label: i for i, label in enumerate(self.synthetic)}
        owner = np.array([row_of[label] for label in self.labels["synthetic"].tolist()])
        right = []
        for _ in range(n):
            chosen = rng.permutation(len(text))[:way]
            queries = np.flatnonzero(np.isin(owner, chosen))
            nearest = chosen[(speech[queries] @ text[chosen].T).argmax(axis=1)]
            right.append(np.mean(nearest == owner[queries]))
        return 100 * float(np.mean(right))
