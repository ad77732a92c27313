"""What a run of `edgealign train text-to-speech` is told; it is saved in every checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edgealign.errors import InvalidInput
from edgealign.train.augment import AugmentConfig
from edgealign.train.corpus import EVALUATION_PACKS
from edgealign.train.encoders import EncoderConfig

RECIPES = ("joint", "croma")


@dataclass(frozen=True)
class TrainConfig:
    recipe: str = "joint"
    seed: int = 0
    steps: int = 4000
    synthetic_words: int = 48
    renders: int = 2  # of each synthetic word in a batch
    recorded_words: int = 24
    takes: int = 4  # of each recorded word in a batch, by different speakers where there are
    whole_share: float = 0.4  # of the recorded words; the others are spliced, see `Splice`
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warm_up_steps: int = 200
    text_weight: float = 1.0
    speaker_weight: float = 1.0
    phone_weight: float = 0.3
    average_decay: float = 0.998  # of the exponential moving average that is validated and exported
    inner_steps: int = 5  # croma: Adam steps on a copy
    inner_learning_rate: float = 1e-3
    outer_learning_rate: float = 1e-3
    validate_every: int = 250
    left_out: tuple[str, ...] = tuple(EVALUATION_PACKS)  # packs whose test words and speakers training does not hear
    encoders: EncoderConfig = field(default_factory=EncoderConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for pack in self.left_out:
            if pack not in EVALUATION_PACKS:
                raise InvalidInput(f"'{pack}' cannot be left out: expected some of {', '.join(EVALUATION_PACKS)}")
        for name, value in vars(self).items():
            lowest = int(name in {"steps", "synthetic_words", "renders", "takes", "inner_steps", "validate_every"})
            if isinstance(value, (int, float)) and not lowest <= value < math.inf:
                raise InvalidInput(f"{name} is {value}: expected a number from {lowest} on")
