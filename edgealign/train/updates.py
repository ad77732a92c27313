"""What trainers of encoders share around a step: its learning rate, the average that is kept, the validation log."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import nn

from edgealign.errors import EdgealignError
from edgealign.writing import replace_file


def learning_rate(peak: float, step: int, steps: int, warm_up_steps: int, last: float = 0.02) -> float:
    """Up to `peak` in a line, then down along a cosine to `last` times as much."""
    if step < warm_up_steps:
        return peak * (step + 1) / warm_up_steps
    done = (step - warm_up_steps) / max(steps - warm_up_steps, 1)
    return peak * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """One step of the exponential moving average of parameters and buffers; it begins with a smaller decay."""
    decay = min(decay, (1 + step) / (10 + step))
    kept, new = ((*module.parameters(), *module.buffers()) for module in (average, model))
    for mine, theirs in zip(kept, new, strict=True):
        mine.copy_(mine.lerp(theirs, 1 - decay) if mine.is_floating_point() else theirs)


def add_to_log(log: Path, row: dict[str, float]) -> None:
    """One more line of a log.jsonl."""
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise EdgealignError(f"'{log}' cannot be written: {error.strerror}") from None


def trim_log(log: Path, step: int) -> None:
    """Drop what a run that was killed wrote after the checkpoint of `step`: it is made again."""
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        if kept != lines:
            with replace_file(log) as file:
                file.write("".join(kept).encode())
