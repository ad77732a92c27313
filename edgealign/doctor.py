"""Checks an installation on the device it runs on: versions, the bundle's files, and parity with its golden vectors."""

from __future__ import annotations

import os
from dataclasses import dataclass

from edgealign import golden, machine
from edgealign.bundle import Bundle


@dataclass(frozen=True)
class Examination:
    """facts: name and value of what was found;  stages: see golden.StageParity;  passed: every stage run agrees."""

    facts: tuple[tuple[str, str], ...]
    stages: tuple[golden.StageParity, ...]

    @property
    def passed(self) -> bool:
        return all(stage.passed for stage in self.stages)


def examine(
    bundle_path: str | os.PathLike | None = None, device: str = "auto", modality: str | None = None
) -> Examination:
    """Verifies a bundle and runs its golden vectors through every stage; BundleUnreadable if it is damaged."""
    bundle = Bundle.open(bundle_path, modality=modality, device=device)
    files = bundle.verify()
    facts = {
        **machine.describe(),
        "device": "cuda" if device == "cuda" else "cpu",
        "bundle": f"{bundle.name} {bundle.bundle_version} at {bundle.path}",
        "encoder_sha256": bundle.encoder_sha256,
        "bundle_files": f"{len(files)} verified",
    }
    return Examination(tuple(facts.items()), tuple(golden.compare(bundle)))
