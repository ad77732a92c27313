"""A paired task that trains in seconds: texts and pictures of a dozen labels, made of a seed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgealign.train.methods import LoopConfig
    from edgealign.train.paired import Paired

SIZE_PX, N_TOKENS, N_BUCKETS = 32, 6, 40


def tiny_paired(seed: int = 0, n_labels: int = 12, n_each: int = 8) -> Paired:
    """Each label has a color of its own, of three values per channel: its pictures are near it, its texts tell it."""
    from edgealign.train.paired import Paired, Protocol, Side

    rng = np.random.default_rng(seed)
    colors = np.stack(np.unravel_index(rng.permutation(27)[:n_labels], (3, 3, 3)), axis=1)
    labels = np.repeat(np.arange(n_labels), n_each)
    words = 1 + colors[labels] + 3 * np.arange(3)  # 1 to 9: one for each channel and value
    noise = rng.integers(10, N_BUCKETS, (len(labels), N_TOKENS - 3))
    texts = np.concatenate([words, noise], axis=1).astype(np.int32)
    flat = np.repeat(colors[labels] * 100 + 20, SIZE_PX**2, axis=1).reshape(-1, 3, SIZE_PX, SIZE_PX)
    pictures = np.clip(flat + rng.normal(0, 12, flat.shape), 0, 255).astype(np.uint8)
    roles = tuple("test" if i % 4 == 0 else "val" if i % 4 == 1 else "train" for i in range(n_labels))
    return Paired(
        "tiny", tuple(f"label {i:02d}" for i in range(n_labels)), roles,
        Side("text", texts, labels), Side("image", pictures, labels),
        np.stack([np.arange(len(labels))] * 2, axis=1), labels.copy(), (Protocol("labels", 3, True),),
    )  # fmt: skip


def tiny_loop(**fields: object) -> LoopConfig:
    """Networks of some thousand parameters."""
    from edgealign.train.features import FeatureConfig
    from edgealign.train.methods import LoopConfig
    from edgealign.train.networks import NetworkConfig

    small = LoopConfig(
        steps=4, n_way=3, n_shot=3, align_way=4, inner_steps=2, tasks_per_step=1, validate_every=100, test_steps=2,
        align_steps=1, inner_learning_rate=3e-3, outer_learning_rate=3e-3,
        features=FeatureConfig(n_tokens=N_TOKENS, n_buckets=N_BUCKETS, size_px=SIZE_PX),
        networks=NetworkConfig(dim=16, hidden=16, text_channels=8, widths=(8, 8), n_way=4),
    )  # fmt: skip
    return replace(small, **fields)
