"""What the commands of text-to-speech share around a step: its rate, the average that is kept, the log, the loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from edgealign.errors import EdgealignError, InvalidInput
from edgealign.train.loop import Diverged
from edgealign.writing import replace_file

REPORT_S = 20.0
Part = TypeVar("Part")


def parts_left(what: str, parts: Sequence[Part], report: Callable[[str], None]) -> Iterator[Part]:
    """The parts of work that takes a minute or more; says now and then how many are left."""
    started = reported = time.monotonic()
    for done, part in enumerate(parts, 1):
        yield part
        now = time.monotonic()
        if done == 1 or now - reported > REPORT_S:
            left_s = (now - started) / done * (len(parts) - done)
            report(f"{what}: {done} of {len(parts)} parts, about {left_s / 60:.1f} min left")
            reported = now


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


class Updates:
    """Updates of a model by one optimizer, in a run folder. A subclass says what a loss is and what is kept of it.

    config   has steps, learning_rate, warm_up_steps, average_decay, validate_every
    """

    def __init__(
        self, folder: Path, config: Any, model: nn.Module, average: nn.Module, rate: float | None = None
    ) -> None:
        """rate   the highest learning rate; config.learning_rate where it is not given"""
        self.folder, self.config, self.model, self.average = folder, config, model, average
        self.rate = config.learning_rate if rate is None else rate
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=self.rate, weight_decay=config.weight_decay)
        self.step, self.trained_s = 0, 0.0

    def batches(self) -> Iterable[Any]:
        """What is learned from, from self.step to config.steps."""
        raise NotImplementedError

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Terms whose sum is to fall."""
        raise NotImplementedError

    def validate(self, report: Callable[[str], None], terms: dict[str, float]) -> None:
        """Score the average, add to log.jsonl and save."""
        raise NotImplementedError

    def run(self, report: Callable[[str], None], minutes: float | None = None) -> None:
        """Train to config.steps, or for so many minutes; interrupted at any moment, a later call goes on."""
        config, started, first, before = self.config, time.monotonic(), self.step, self.trained_s
        for batch in self.batches():
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.rate, self.step, config.steps, config.warm_up_steps)
            terms = self.update(batch)
            follow(self.average, self.model, self.step, config.average_decay)
            self.step += 1
            self.trained_s = before + time.monotonic() - started
            if self.step % 25 == 0:
                pace_s = (time.monotonic() - started) / (self.step - first)
                left = (config.steps - self.step) * pace_s / 60
                numbers = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
                report(f"step {self.step}/{config.steps} {numbers} {pace_s:.2f} s/step, about {left:.0f} min left")
            out_of_time = minutes is not None and time.monotonic() - started > 60 * minutes
            if self.step % config.validate_every == 0 or self.step == config.steps or out_of_time:
                self.validate(report, terms)
            if out_of_time:
                return

    def update(self, batch: Any) -> dict[str, float]:
        """One step down the sum of the losses; their values before it."""
        losses = self.losses(batch)
        terms = {name: float(term.detach()) for name, term in losses.items()}
        self.expect_finite(terms)
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        return terms

    def expect_finite(self, terms: dict[str, float]) -> None:
        if not all(map(math.isfinite, terms.values())):
            numbers = ", ".join(f"{name} {value}" for name, value in terms.items())
            raise Diverged(
                f"step {self.step}: the loss is no finite number ({numbers}). Checkpoints in '{self.folder}' are from "
                f"before; train in another folder with a smaller learning rate"
            )


def run_folder(folder: Path) -> Path:
    """The folder of a run, made where it is missing; InvalidInput where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"'{folder}' cannot hold a run ({error.strerror}): name another folder") from error
    return folder
