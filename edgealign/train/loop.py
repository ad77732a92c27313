"""One loop for CroMA, its baselines and its ablations: a method is a list of stages (`methods`).

A stage that is meta-learned adapts a copy per task and moves the meta-parameters by the mean pseudo-gradient (Reptile);
a direct stage makes as many updates, each on fresh tasks. Every stage has an Adam of its own, so that momentum of one
kind of task does not move what another trains. The checkpoint `best.pt` is chosen on meta-validation labels.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgealign.errors import EdgealignError, InvalidInput
from edgealign.train import meta, processes
from edgealign.train.checkpoints import plain, read_checkpoint
from edgealign.train.evaluation import Evaluation
from edgealign.train.methods import METHODS, LoopConfig, Stage, expect_pairs
from edgealign.train.networks import PairedEncoders
from edgealign.train.paired import Paired
from edgealign.train.tasks import Tasks, as_input, n_decoded
from edgealign.writing import replace_file

FORMAT = "edgealign paired run 2"
CLIP_NORM = 5.0
LOG_EVERY = 10
STANDARDIZED_OVER = 256  # samples of each modality

Report = Callable[[str], None]


class Diverged(EdgealignError):
    """A loss is not a finite number."""


def build_model(data: Paired, config: LoopConfig) -> PairedEncoders:
    """Networks with the weights that the seed gives them, standardized over training samples of both modalities."""
    torch.manual_seed(config.seed)
    networks = replace(config.networks, shared=METHODS[config.method].shared)
    outputs = tuple(n_decoded(side, config.features.n_buckets) for side in (data.source, data.target))
    kinds = (data.source.kind, data.target.kind)
    model = PairedEncoders(networks, kinds, config.features.n_buckets, len(data.with_role("train")), outputs)
    rng = np.random.default_rng([config.seed, 37])
    samples = (
        as_input(side.x[rng.permutation(rows)[:STANDARDIZED_OVER]], side.kind, None)
        for side, rows in ((data.source, np.concatenate(data.source_halves)), (data.target, data.training_targets))
    )
    model.standardize(*samples)
    return model


class Loop:
    """One run in a folder: goes on where it was stopped.

    folder   split.json (label -> role), log.csv (a row per LOG_EVERY steps), last.pt, best.pt
    """

    def __init__(
        self, data: Paired, config: LoopConfig, folder: Path, device: str = "cpu", tensorboard: bool = False
    ) -> None:
        processes.join()
        self.method = METHODS[config.method]
        expect_pairs(self.method, len(data.pairs), data.name)
        if config.n_way > config.networks.n_way:
            raise InvalidInput(
                f"n_way is {config.n_way} but phi has {config.networks.n_way} slots: raise n_way of both"
            )
        if config.tasks_per_step % processes.count():
            raise InvalidInput(
                f"{config.tasks_per_step} tasks_per_step cannot be shared by {processes.count()} processes: "
                f"--set tasks_per_step={processes.count()} or a multiple of it"
            )
        self.data, self.config, self.folder = data, config, folder
        self.device = processes.device(device)
        self.model = build_model(data, config).to(self.device)
        self.tasks = Tasks(data, config, self.method, self.device)
        self.optimizers = [
            torch.optim.Adam(self.model.parameters(), lr=config.outer_learning_rate, fused=True)
            for _ in self.method.stages
        ]
        self.evaluation = _validation(data)
        self.step, self.best, self.trained_s = 0, -math.inf, 0.0
        self.writer = _tensorboard(folder) if tensorboard and processes.rank() == 0 else None
        if processes.rank() == 0:
            self._open_folder()
        processes.wait()
        if (folder / "last.pt").exists():
            self._resume()
        if processes.rank() == 0:
            self._trim_log()
            with replace_file(folder / "split.json") as file:
                file.write(data.split_text.encode())

    def run(self, report: Report, minutes: float | None = None) -> None:
        """Train to config.steps, or for so many minutes; a later call goes on as if there had been no stop."""
        started, before, first, saved = time.monotonic(), self.trained_s, self.step, time.monotonic()
        if not self.method.stages and self.step == 0:
            self.step = self.config.steps
            self._validate(report)
        elif self.step == 0 and self.data.target.kind == "embedding":
            self._validate(report)  # a head that was not trained is a candidate, too
        while self.step < self.config.steps:
            terms = self.advance()
            now = time.monotonic()
            self.trained_s = before + now - started
            last = self.step == self.config.steps
            out_of_time = minutes is not None and now - started > 60 * minutes
            if self.step % LOG_EVERY == 0 or last:
                self._log(terms)
                pace_s = (now - started) / (self.step - first)
                numbers = " ".join(f"{name} {value:.4f}" for name, value in terms.items())
                left = duration((self.config.steps - self.step) * pace_s)
                self._say(report, f"step {self.step}/{self.config.steps} {numbers} {pace_s:.2f} s/step, {left} left")
            if self.step % self.config.validate_every == 0 or last:
                self._validate(report)
            elif out_of_time or now - saved > self.config.checkpoint_s:
                self._save("last.pt")
                saved = now
            if out_of_time:
                return

    def advance(self) -> dict[str, float]:
        """One step: every stage of the method once. Returns the loss of each before its first update."""
        rate = self._learning_rate()
        terms = {}
        for stage, optimizer in zip(self.method.stages, self.optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
            n_updates = 1 if stage.meta else self.config.inner_steps
            for update in range(n_updates):
                loss = self._update(stage, optimizer, update)
                terms.setdefault(stage.task, loss)
        self.step += 1
        return terms

    def _update(self, stage: Stage, optimizer: torch.optim.Optimizer, update: int) -> float:
        """Average the (pseudo-)gradients of tasks_per_step tasks, over all processes, and step: the mean loss."""
        n = self.config.tasks_per_step
        parameters = list(self.model.parameters())
        total = [torch.zeros_like(parameter) for parameter in parameters]
        seen: list[float] = []
        for number in range(processes.rank(), n, processes.count()):
            task = self.tasks.draw(stage.task, self.step, number + update * n)
            first_loss: list[float] = []
            if stage.meta:
                steps = [self._watched(task(i), first_loss, stage) for i in range(self.config.inner_steps)]
                moves, _ = meta.pseudo_gradient(self.model, steps, self.config.inner_learning_rate)
            else:
                self.model.zero_grad(set_to_none=True)
                self._watched(task(0), first_loss, stage)(self.model).backward()
                moves = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            torch._foreach_add_(total, moves)
            seen.append(first_loss[0])
        loss = torch.tensor(sum(seen), dtype=torch.float64, device=self.device)
        processes.add_up([*total, loss])
        for parameter, gradient in zip(parameters, total, strict=True):
            # A parameter that no task touched keeps its momentum: zeros would let it drift.
            parameter.grad = gradient / n if bool(gradient.any()) else None
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss) / n

    def _watched(self, loss: meta.Loss, seen: list[float], stage: Stage) -> meta.Loss:
        """The same loss in mixed precision on CUDA; its values go to `seen`, and one that is not finite is refused."""

        def watched(model: torch.nn.Module) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                value = loss(model)
            number = float(value.detach())
            if not math.isfinite(number):
                last = self.folder / "last.pt"
                kept = f"'{last}' holds the last good state" if last.exists() else "no state was saved yet"
                raise Diverged(
                    f"step {self.step}: the loss of '{stage.task}' is {number}. {kept}; train in another folder with a "
                    f"smaller inner_learning_rate (now {self.config.inner_learning_rate}) or outer_learning_rate "
                    f"({self.config.outer_learning_rate})"
                )
            seen.append(number)
            return value

        return watched

    def _learning_rate(self) -> float:
        """Cosine from the outer learning rate to a tenth of it."""
        done = self.step / max(self.config.steps, 1)
        return self.config.outer_learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))

    def _validate(self, report: Report) -> None:
        """Nearest prototypes on meta-validation labels choose the checkpoint; every process knows the score."""
        accuracies = [float(cell.accuracies.mean()) for cell in self.evaluation.prototype_cells(self.model)]
        score = sum(accuracies) / len(accuracies)
        self._say(report, f"validation {100 * score:.1f} %")
        if self.writer is not None:
            self.writer.add_scalar("validation", score, self.step)
        if score > self.best:
            self.best = score
            self._save("best.pt")
        self._save("last.pt")

    # ---- what is kept ----

    def _open_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"'{self.folder}' cannot hold a run ({error.strerror}): name another folder") from None

    def _resume(self) -> None:
        state = load_state(self.folder / "last.pt")
        if state["data_sha256"] != self.data.sha256:
            raise InvalidInput(
                f"'{self.folder}' was trained on other data ({state['data_sha256'][:12]}, here "
                f"{self.data.sha256[:12]}): name the data it was made with, or another run folder"
            )
        mine = plain(self.config)
        other = [name for name, value in state["config"].items() if mine[name] != value and name != "checkpoint_s"]
        if other:
            raise InvalidInput(
                f"'{self.folder}' was trained with other settings ({', '.join(other)}): give those it was made with, "
                f"or name another run folder"
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.best, self.trained_s = state["step"], state["best"], state["trained_s"]

    def _save(self, name: str) -> None:
        if processes.rank() != 0:
            return
        state = {
            "format": FORMAT, "config": plain(self.config), "data": self.data.name, "data_sha256": self.data.sha256,
            "split_sha256": self.data.split_sha256, "step": self.step, "best": self.best, "trained_s": self.trained_s,
            "model": self.model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }  # fmt: skip
        with replace_file(self.folder / name) as file:
            torch.save(state, file)

    def _log(self, terms: dict[str, float]) -> None:
        if processes.rank() != 0:
            return
        row = {"step": self.step, "trained_s": round(self.trained_s, 1), **terms}
        path = self.folder / "log.csv"
        try:
            with path.open("a", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, row)
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(row)
        except OSError as error:
            raise EdgealignError(f"'{path}' cannot be written: {error.strerror}") from None
        if self.writer is not None:
            for name, value in terms.items():
                self.writer.add_scalar(name, value, self.step)

    def _trim_log(self) -> None:
        """Rows after the checkpoint are made again."""
        path = self.folder / "log.csv"
        if not path.exists():
            return
        header, *rows = path.read_text(encoding="utf-8").splitlines() or [""]
        kept = [row for row in rows if int(row.partition(",")[0]) <= self.step]
        with replace_file(path) as file:
            file.write("".join(line + "\r\n" for line in ([header, *kept] if kept else [])).encode())

    def _say(self, report: Report, line: str) -> None:
        if processes.rank() == 0:
            report(f"{self.method.name}: {line}")


def _validation(data: Paired) -> Evaluation:
    """Episodes of 1 and 5 shots and 8 queries, or of what the smallest validation label has."""
    labels = data.with_role("val")
    smallest = min((int((data.target.labels == label).sum()) for label in labels), default=0)
    longest = max(1, min(5, smallest // 2))
    return Evaluation(data, "val", 150, max(1, min(8, smallest - longest)), sorted({1, longest}))


def load_state(path: Path) -> dict:
    """A checkpoint of `Loop`; InvalidInput for anything else."""
    state = read_checkpoint(path, "best.pt or last.pt of a run")
    found = state.get("format")
    if found != FORMAT:
        kind = f"of the format '{found}'" if found else "of another command"
        raise InvalidInput(f"'{path}' is a checkpoint {kind}: this command reads '{FORMAT}', name another folder")
    return state


def load_best(data: Paired, config: LoopConfig, folder: Path) -> PairedEncoders:
    """The model that validation chose."""
    model = build_model(data, config)
    model.load_state_dict(load_state(folder / "best.pt")["model"])
    return model.eval()


def _tensorboard(folder: Path) -> object:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InvalidInput("--tensorboard needs tensorboard: pip install tensorboard, or read log.csv") from error
    return SummaryWriter(str(folder / "tensorboard"))


def duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
