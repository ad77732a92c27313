"""CroMA, its baselines and its ablations: what each does in meta-training. One loop runs them all (`loop`).

Networks, adaptation at meta-test, number of gradient steps and samples are the same for every method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edgealign.errors import InvalidInput
from edgealign.train.features import FeatureConfig
from edgealign.train.networks import NetworkConfig


@dataclass(frozen=True)
class Stage:
    """One kind of task (a method of `tasks.Tasks`), learned through copies (Reptile), or directly by gradients."""

    task: str
    meta: bool = True


@dataclass(frozen=True)
class Method:
    """
    stages    what happens in every step, in this order; nothing for a network that is not trained
    shared    one trunk for both modalities
    shuffled  a control: pairs are given to the wrong samples
    align     the alignment loss of optional alignment steps at meta-test
    """

    name: str
    what: str
    stages: tuple[Stage, ...] = ()
    shared: bool = False
    shuffled: bool = False

    @property
    def align(self) -> str | None:
        return next((stage.task for stage in self.stages if stage.task in ALIGNMENTS), None)


ALIGNMENTS = ("cosine", "centroid", "instance", "set", "confusion")
STRONG = ("cosine", "instance")  # losses that need strong pairs

_SOURCE = Stage("source")
_METHODS = (
    Method("scratch", "no meta-training"),
    Method("supervised", "source labels, one classifier", (Stage("joint", meta=False),)),
    Method("supervised-pairs", "the same, and samples weakly paired with a label", (Stage("joint_pairs", meta=False),)),
    Method("reconstruction", "Reptile on autoencoding, no labels", (Stage("reconstruction"),)),
    Method("source-meta", "source tasks, no alignment", (_SOURCE,)),
    Method(
        "align-classify", "alignment (set NCE) and one classifier, no meta-learning",
        (Stage("joint", meta=False), Stage("set", meta=False)),
    ),
    Method(
        "align-meta-classify", "source tasks by Reptile, alignment (set NCE) without",
        (_SOURCE, Stage("set", meta=False)),
    ),
    Method("croma-strong", "CroMA, strong pairs, cosine (the paper's code)", (_SOURCE, Stage("cosine"))),
    Method("croma-strong-nce", "CroMA, strong pairs, instance NCE", (_SOURCE, Stage("instance"))),
    Method("croma-weak", "CroMA, weak pairs, centroid hinge (the paper's code)", (_SOURCE, Stage("centroid"))),
    Method("croma-weak-nce", "CroMA, weak pairs, set NCE", (_SOURCE, Stage("set"))),
    Method("croma-shared", "CroMA, weak pairs, set NCE, one trunk", (_SOURCE, Stage("set")), shared=True),
    Method("domain-confusion", "source tasks and gradient reversal instead of pairs", (_SOURCE, Stage("confusion"))),
    Method("croma-strong-nce-shuffled", "control: wrong pairs", (_SOURCE, Stage("instance")), shuffled=True),
    Method("croma-weak-nce-shuffled", "control: wrong sets", (_SOURCE, Stage("set")), shuffled=True),
    Method("oracle", "Reptile on labeled target tasks", (Stage("target"),)),
)  # fmt: skip
METHODS = {method.name: method for method in _METHODS}


@dataclass(frozen=True)
class LoopConfig:
    """Settings of a run; saved in every checkpoint."""

    method: str = "croma-weak-nce"
    seed: int = 0
    steps: int = 1500
    n_way: int = 5  # labels of a source task and of an episode at meta-test
    n_shot: int = 5  # samples of each label in a task
    align_way: int = 12  # labels of an alignment task
    inner_steps: int = 5  # Adam steps on a copy; direct stages make as many updates
    inner_learning_rate: float = 1e-3
    outer_learning_rate: float = 1e-3
    margin: float = 0.5  # of the centroid hinge
    tasks_per_step: int = 2  # pseudo-gradients are averaged over them, and over processes
    test_steps: int = 9  # Adam steps on the support at meta-test
    align_steps: int = 3  # alignment steps before those, where asked for
    validate_every: int = 150
    checkpoint_s: float = 120.0
    features: FeatureConfig = field(default_factory=FeatureConfig)
    networks: NetworkConfig = field(default_factory=NetworkConfig)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidInput(f"there is no method '{self.method}': expected one of {', '.join(METHODS)}")
        for name, value in vars(self).items():
            lowest = 0 if name in {"seed", "align_steps", "test_steps", "checkpoint_s"} else 1
            if isinstance(value, int) and value < lowest:
                raise InvalidInput(f"{name} is {value}: expected {lowest} or more")
            if isinstance(value, float) and not 0 <= value < math.inf:
                raise InvalidInput(f"{name} is {value}: expected a number from 0 on")
        if self.n_way < 2 or self.align_way < 2:
            raise InvalidInput("an episode and an alignment task have 2 labels or more")


def expect_pairs(method: Method, n_strong: int, name: str) -> None:
    """InvalidInput where a method needs strong pairs and the data has none."""
    if n_strong == 0 and any(stage.task in STRONG for stage in method.stages):
        raise InvalidInput(f"{name} has weak pairs only and '{method.name}' needs strong ones: choose croma-weak-nce")
