"""The background bank, and the numbers of the decision between a label and unknown.

Both are made with the encoder that ships. The numbers are a logistic regression on the features of
`edgealign.kernels` (section "decision"), fitted on simulated enrollments of meta-validation words: other words than
those that training saw, asked by other speakers where there are any, and by words and noises that were not enrolled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from edgealign import kernels

Embed = Callable[[list[np.ndarray]], np.ndarray]  # samples or token ids, one at a time -> float32 [n, dim]

FEATURES = ("w_bias", "w_z", "w_t", "w_distance", "w_margin", "w_loo", "w_shots", "w_text")
# A larger distance must mean a smaller probability: the bundle loader insists.
BOUNDS = ((None, None), (0, None), (0, None), (None, 0), (0, None), (None, None), (0, None), (None, None))

COHORT = 40  # nearest rows of the bank that score normalization looks at (adaptive s-norm, Matejka et al. 2017)
SHOTS = (1, 2, 3, 5, 10)
# Share of never-enrolled words that a store of so many labels accepts, on validation words; the second of labels that
# have a text alone. Other words and recordings raise them up to eightfold: chosen so that no test pack is above 10 % by
# more than its interval.
FALSE_ACCEPT_SHARE, FALSE_ACCEPT_SHARE_OF_TEXTS, FALSE_ACCEPT_LABELS = 0.015, 0.012, 5
PRIOR_WEIGHT, LONE_MARGIN = 2.0, 0.25
STRANGER, NOISE = -1, -2  # in place of a slot: what was not enrolled


@dataclass(frozen=True)
class Pool:
    """Embedded validation clips of one kind.

    speech    float32 [n, dim];  label, speaker  int [n]
    text      {label: float32 [dim]}, where a label's spelling is known
    """

    speech: np.ndarray
    label: np.ndarray
    speaker: np.ndarray
    text: dict[int, np.ndarray]


@dataclass(frozen=True)
class Questions:
    """What a decision is fitted on: features [n, len(FEATURES)], whether the nearest label is the right one [n],
    whether the word was enrolled [n], whether it is a word that was not [n] (the rest are noises), how many recordings
    the nearest label had [n], and how many labels there were [n]."""

    features: np.ndarray
    right: np.ndarray
    enrolled: np.ndarray
    stranger: np.ndarray
    shots: np.ndarray
    way: np.ndarray


def fit(
    pools: list[Pool], noises: np.ndarray, bank: np.ndarray, text_weight: float, seed: int = 0,
    false_accepts: float = FALSE_ACCEPT_SHARE, false_accepts_of_texts: float = FALSE_ACCEPT_SHARE_OF_TEXTS,
) -> dict[str, float]:  # fmt: skip
    """The `calibration` section of a manifest.

    noises  float32 [n, dim], embeddings of sounds that are no words and not in the bank
    bank    float32 [n, dim]
    false_accepts   share of never-enrolled words that a store of FALSE_ACCEPT_LABELS labels may accept; the other one
                    where these have a text alone
    """
    rng = np.random.default_rng(seed)
    prior_loo = float(np.mean([_leave_one_out_mean(pool, rng) for pool in pools]))
    asked = [_ask(pool, noises, bank, text_weight, prior_loo, rng) for pool in pools]
    features = np.concatenate([questions.features for questions in asked])
    right = np.concatenate([questions.right for questions in asked])
    # Every pool counts the same, and so do answers that are right and answers that are not.
    weight = np.concatenate([_balanced(questions.right) / len(asked) for questions in asked])
    sign = np.where(right, 1.0, -1.0)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (features @ w)
        gradient = -(weight * sign * expit(-margin)) @ features
        return float(weight @ np.logaddexp(0, -margin)) + 1e-4 * w @ w, gradient + 2e-4 * w

    start = np.array([0, 0.5, 0.5, -1, 1, 0, 0.1, -0.1])
    weights = minimize(loss, start, jac=True, bounds=BOUNDS, method="L-BFGS-B").x
    # A label is accepted where its probability is at least one half, so its constants take the thresholds in. A text
    # lies further from recordings than they do from each other: labels without any have a threshold of their own.
    spoken = _threshold(asked, [q.shots > 0 for q in asked], weights, false_accepts)
    weights[FEATURES.index("w_bias")] -= spoken
    if any((q.shots == 0).any() for q in asked):
        typed = _threshold(asked, [q.shots == 0 for q in asked], weights, false_accepts_of_texts)
        weights[FEATURES.index("w_text")] -= typed
    return dict(zip(FEATURES, map(float, weights), strict=True)) | {
        "accept_logit": 0.0,
        "top": COHORT,
        "prior_loo": prior_loo,
        "prior_weight": PRIOR_WEIGHT,
        "lone_margin": LONE_MARGIN,
    }


def report(calibration: dict, pools: list[Pool], noises: np.ndarray, bank: np.ndarray, text_weight: float) -> list[str]:
    """How the decision does on validation words, one line per pool and number of shots."""
    weights = np.array([calibration[name] for name in FEATURES])
    rng = np.random.default_rng(99)
    lines = []
    for i, pool in enumerate(pools):
        asked = _ask(pool, noises, bank, text_weight, calibration["prior_loo"], rng)
        accepted = asked.features @ weights >= calibration["accept_logit"]
        for k in (0, *SHOTS):
            own = asked.shots == k
            if own.any():
                lines.append(
                    f"pool {i}, {k} shots: {100 * np.mean((accepted & asked.right)[own & asked.enrolled]):.1f} % of "
                    f"enrolled words right, {100 * np.mean(accepted[own & asked.stranger]):.1f} % of others accepted"
                )
    return lines


def _ask(
    pool: Pool, noises: np.ndarray, bank: np.ndarray, text_weight: float, prior_loo: float, rng: np.random.Generator,
    n_episodes: int = 2000,
) -> Questions:  # fmt: skip
    rows: list[tuple] = []
    labels = np.unique(pool.label)
    for episode in range(n_episodes):
        way = int(rng.integers(1, min(10, len(labels) // 2) + 1))
        k = int(rng.choice(SHOTS))
        spelled = [label for label in labels if label in pool.text]
        mode = episode % 5 if len(spelled) >= 2 * way else 4  # 0: text alone, 1: text and recordings, else recordings
        chosen = rng.permutation(spelled if mode < 2 else labels)[:way].tolist()
        support, owner, spoken, left = [], [], [], []
        for slot, label in enumerate(chosen):
            own = np.flatnonzero(pool.label == label)
            speaker = rng.choice(pool.speaker[own])
            mine = rng.permutation(own[pool.speaker[own] == speaker])[:k]
            if mode == 0:
                mine = mine[:0]
            support += [pool.speech[i] for i in mine]
            owner += [slot] * len(mine)
            spoken += [True] * len(mine)
            if mode < 2:
                support.append(pool.text[label])
                owner.append(slot)
                spoken.append(False)
            others = own[pool.speaker[own] != speaker]
            left.append(others if len(others) else np.setdiff1d(own, mine))
        enrolled = [(i, slot) for slot, rest in enumerate(left) for i in rng.permutation(rest)[:3]]
        strangers = rng.permutation(np.flatnonzero(~np.isin(pool.label, chosen)))[: 2 * way]
        queries = np.concatenate([
            pool.speech[[i for i, _ in enrolled]], pool.speech[strangers], noises[rng.choice(len(noises), way)]
        ])  # fmt: skip
        truth = np.array([slot for _, slot in enrolled] + [STRANGER] * len(strangers) + [NOISE] * way)
        arrays = np.array(support), np.array(owner, np.int32), np.array(spoken)
        of_episode = _features(queries, *arrays, way, bank, text_weight, prior_loo)
        rows.append((*of_episode, truth, np.full(len(truth), way)))
    features, nearest, shots, truth, ways = (np.concatenate(column) for column in zip(*rows, strict=True))
    return Questions(features, nearest == truth, truth >= 0, truth == STRANGER, shots, ways)


def _features(
    queries: np.ndarray, support: np.ndarray, owner: np.ndarray, spoken: np.ndarray, way: int, bank: np.ndarray,
    text_weight: float, prior_loo: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Features [n, len(FEATURES)], nearest slot [n] and its number of recordings [n].

    spoken   bool, per row of the support: a recording, otherwise a text
    """
    prototypes = kernels.prototypes(support, owner, way, np.where(spoken, 1, text_weight).astype(np.float32))
    distances = kernels.cosine(queries, prototypes)
    order = np.argsort(distances, axis=1, kind="stable")
    nearest, at = order[:, 0], np.arange(len(queries))
    first = distances[at, nearest]
    second = distances[at, order[:, 1]] if way > 1 else first + LONE_MARGIN
    z, t = np.zeros(len(queries)), np.zeros(len(queries))
    if len(bank):
        mu_label, sd_label = kernels.cohort_stats(prototypes, bank, COHORT).T
        mu_query, sd_query = kernels.cohort_stats(queries, bank, COHORT).T
        z, t = (mu_label[nearest] - first) / sd_label[nearest], (mu_query - first) / sd_query
    shots = np.bincount(owner[spoken], minlength=way)
    loo = np.full(way, prior_loo)
    if spoken.any():
        out, has = kernels.leave_one_out(support[spoken], owner[spoken], way)
        for slot in range(way):
            mine = out[(owner[spoken] == slot) & has]
            loo[slot] = (prior_loo * PRIOR_WEIGHT + mine.sum()) / (PRIOR_WEIGHT + len(mine))
    features = np.stack([
        np.ones(len(queries)), z, t, first, second - first, loo[nearest], np.log2(1 + shots[nearest]),
        (shots[nearest] == 0).astype(float),
    ], axis=1)  # fmt: skip
    return features, nearest, shots[nearest]


def _leave_one_out_mean(pool: Pool, rng: np.random.Generator) -> float:
    """Mean leave-one-out distance of five recordings by one speaker (or as many as there are)."""
    means = []
    for label in rng.permutation(np.unique(pool.label))[:100]:
        own = np.flatnonzero(pool.label == label)
        speaker = rng.choice(pool.speaker[own])
        mine = rng.permutation(own[pool.speaker[own] == speaker])[:5]
        mine = mine if len(mine) > 1 else own[:3]
        out, has = kernels.leave_one_out(pool.speech[mine], np.zeros(len(mine), np.int32), 1)
        means += out[has].tolist()
    return float(np.mean(means))


def _threshold(asked: list[Questions], chosen: list[np.ndarray], weights: np.ndarray, false_accepts: float) -> float:
    """The least logit at which in every pool at most the share `false_accepts` of strangers (noises apart) is accepted,
    with FALSE_ACCEPT_LABELS enrolled: what holds in the studio must hold outside.

    chosen   per pool which of its questions count, bool [n]

    A stranger is accepted by chance once per label, so one that was asked of fewer labels counts for so many more.
    """
    found = []
    for questions, own in zip(asked, chosen, strict=True):
        own = own & questions.stranger
        if not own.any():
            continue
        logits = questions.features[own] @ weights
        falling = np.argsort(-logits)
        share = np.cumsum(FALSE_ACCEPT_LABELS / questions.way[own][falling]) / len(falling)
        first_refused = min(int(np.searchsorted(share, false_accepts, side="right")), len(falling) - 1)
        found.append(float(np.nextafter(logits[falling][first_refused], np.inf)))
    return max(found)


def _balanced(right: np.ndarray) -> np.ndarray:
    return np.where(right, 0.5 / max(right.sum(), 1), 0.5 / max((~right).sum(), 1))
