"""The research loop: every method, copies that leave nothing behind, labels that are not read, resuming, processes."""

import csv
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_pairs import tiny_loop, tiny_paired
from torch import nn

from edgealign.errors import DeviceUnavailable, EdgealignError, InvalidInput
from edgealign.train import loop as loop_module
from edgealign.train import meta, processes
from edgealign.train.evaluation import Evaluation
from edgealign.train.loop import Diverged, Loop, build_model, load_best, load_state
from edgealign.train.methods import METHODS
from edgealign.train.paired import Paired, Side
from edgealign.train.tasks import Tasks

PARTS = {"e_s": "source", "e_t": "target", "A": "alignment", "phi": "phi"}


def silent(_line: str) -> None:
    pass


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def trained(data: Paired, folder: Path, method: str, n: int = 3) -> Loop:
    loop = Loop(data, tiny_loop(method=method), folder)
    for _ in range(n):
        loop.advance()
    return loop


@pytest.fixture(scope="module")
def data() -> Paired:
    return tiny_paired()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_only_scratch_changes_nothing(data, tmp_path, method):
    loop = trained(data, tmp_path, method, 2)
    assert same(state(loop.model), state(build_model(data, loop.config))) == (method == "scratch")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "oracle"])
def test_target_labels_are_not_read_in_meta_training(data, tmp_path, method):
    """Poisoned target labels change nothing: weak pairs are told by set_of, strong ones by rows."""
    wrong = np.random.default_rng(0).permutation(data.target.labels)
    poisoned = replace(data, target=Side(data.target.kind, data.target.x, wrong))
    assert not np.array_equal(wrong, data.target.labels)
    clean, other = (trained(d, tmp_path / str(i), method) for i, d in enumerate((data, poisoned)))
    assert same(state(clean.model), state(other.model))


def test_the_oracle_reads_target_labels(data, tmp_path):
    wrong = np.random.default_rng(0).permutation(data.target.labels)
    poisoned = replace(data, target=Side(data.target.kind, data.target.x, wrong))
    clean, other = (trained(d, tmp_path / str(i), "oracle") for i, d in enumerate((data, poisoned)))
    assert not same(state(clean.model), state(other.model))


@pytest.mark.parametrize("method", [name for name in METHODS if name.startswith("croma")])
def test_croma_gives_every_meta_parameter_a_pseudo_gradient(data, tmp_path, method):
    """Source tasks move e_s and phi, alignment tasks e_s, e_t and A: what the released code got wrong."""
    config = tiny_loop(method=method)
    model = build_model(data, config)
    tasks = Tasks(data, config, METHODS[method])
    moved = []
    for stage in METHODS[method].stages:
        task = tasks.draw(stage.task, 0, 0)
        moves, _ = meta.pseudo_gradient(model, [task(i) for i in range(3)], 1e-2)
        by_name = dict(zip((name for name, _ in model.named_parameters()), moves, strict=True))
        moved.append({
            part for part, prefix in PARTS.items()
            if any(bool(move.any()) for name, move in by_name.items() if name.startswith(prefix + "."))
        })  # fmt: skip
    assert {"e_s", "phi"} <= moved[0]
    assert {"e_s", "e_t", "A"} <= moved[1]
    assert "phi" not in moved[1]


def test_meta_test_leaves_every_parameter_and_buffer_bit_identical(data):
    config = tiny_loop()
    model = build_model(data, config)
    model.register_buffer("witness", torch.arange(3.0))
    before = state(model)
    evaluation = Evaluation(data, "test", 2, 4, (1, 3))
    for align in (None, *sorted({m.align for m in METHODS.values() if m.align})):
        cells = list(evaluation.phi_cells(model, config, (1, 3), 2, align=align))
        assert len(cells) == 2
    list(evaluation.prototype_cells(model))
    assert same(before, state(model))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_task_is_the_same_in_every_process_and_after_a_stop(data):
    config = tiny_loop()
    model = build_model(data, config)
    losses = [
        float(Tasks(data, config, METHODS["croma-weak-nce"]).draw("set", 3, 1)(2)(model).detach()) for _ in range(2)
    ]
    assert losses[0] == losses[1]


def test_source_tasks_and_alignment_use_different_halves_of_the_source_samples(data):
    for_tasks, for_alignment = data.source_halves
    assert not set(for_tasks.tolist()) & set(for_alignment.tolist())
    train = set(data.with_role("train").tolist())
    assert set(data.source.labels[np.concatenate([for_tasks, for_alignment])].tolist()) == train
    assert np.isin(data.training_pairs[:, 0], for_alignment).all()


def test_shuffled_pairs_are_wrong_and_as_many(data):
    config = tiny_loop()
    right, wrong = (Tasks(data, config, METHODS[name]) for name in ("croma-strong-nce", "croma-strong-nce-shuffled"))
    assert sorted(right.pairs[:, 1]) == sorted(wrong.pairs[:, 1])
    assert (right.pairs[:, 1] != wrong.pairs[:, 1]).mean() > 0.8
    own = lambda tasks: {label: len(rows) for label, rows in tasks.target_sets.items()}  # noqa: E731
    mixed = Tasks(data, config, METHODS["croma-weak-nce-shuffled"])
    assert own(right) == own(mixed)
    label = next(iter(right.target_sets))
    assert set(right.target_sets[label].tolist()) != set(mixed.target_sets[label].tolist())


# ---- running, stopping, resuming ----


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "trained_s"} for row in csv.DictReader(file)]


@pytest.mark.parametrize("method", ["croma-weak-nce", "align-classify"])
def test_a_stopped_run_goes_on_with_the_losses_of_one_that_was_not(data, tmp_path, monkeypatch, method):
    monkeypatch.setattr(loop_module, "LOG_EVERY", 1)
    config = tiny_loop(method=method, steps=8, validate_every=4)
    whole = Loop(data, config, tmp_path / "whole")
    whole.run(silent)
    stopped = Loop(data, config, tmp_path / "stopped")
    for _ in range(3):
        stopped.run(silent, minutes=0)  # stops after one step
    assert stopped.step == 3
    stopped.step = 4
    stopped._log({"source": 0.0})  # a row that was logged after the last checkpoint
    again = Loop(data, config, tmp_path / "stopped")
    assert again.step == 3
    again.run(silent)
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "stopped")
    assert same(state(whole.model), state(again.model))
    best = [load_state(tmp_path / name / "best.pt") for name in ("whole", "stopped")]
    assert best[0]["best"] == best[1]["best"]


def test_progress_tells_the_step_the_loss_and_what_is_left(data, tmp_path):
    lines = []
    Loop(data, tiny_loop(steps=10), tmp_path).run(lines.append)
    assert any("step 10/10" in line and "source" in line and "left" in line for line in lines)
    assert any("validation" in line for line in lines)


def test_a_finished_run_is_not_trained_again(data, tmp_path):
    Loop(data, tiny_loop(steps=2), tmp_path).run(silent)
    before = (tmp_path / "last.pt").read_bytes()
    Loop(data, tiny_loop(steps=2), tmp_path).run(silent)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert load_best(data, tiny_loop(steps=2), tmp_path).training is False


def test_the_split_is_saved_with_the_run(data, tmp_path):
    Loop(data, tiny_loop(), tmp_path)
    assert (tmp_path / "split.json").read_text() == data.split_text
    assert len(data.split_sha256) == 64


def test_other_data_or_settings_are_refused_by_name(data, tmp_path):
    Loop(data, tiny_loop(steps=2), tmp_path).run(silent)
    with pytest.raises(InvalidInput, match=r"other settings \(margin\)"):
        Loop(data, tiny_loop(steps=2, margin=0.7), tmp_path)
    with pytest.raises(InvalidInput, match="other data"):
        Loop(tiny_paired(seed=1), tiny_loop(steps=2), tmp_path)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_file_that_is_no_checkpoint_is_refused(data, tmp_path, content):
    if content is None:
        torch.save({"format": "edgealign paired run 99", "step": 1}, tmp_path / "last.pt")
    else:
        (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(InvalidInput, match="99" if content is None else "not a checkpoint"):
        Loop(data, tiny_loop(), tmp_path)
    with pytest.raises(InvalidInput, match="no checkpoint"):
        load_state(tmp_path / "none.pt")


def test_an_interrupted_write_leaves_the_last_checkpoint(data, tmp_path, monkeypatch):
    loop = Loop(data, tiny_loop(steps=3), tmp_path)
    loop.run(silent, minutes=0)
    before = (tmp_path / "last.pt").read_bytes()

    def half(_state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(EdgealignError, match="cannot be written"):
        loop.run(silent)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_checkpoint(data, tmp_path):
    loop = Loop(data, tiny_loop(steps=4), tmp_path)
    loop.run(silent, minutes=0)
    with torch.no_grad():
        loop.model.phi[1].weight.fill_(float("nan"))
    with pytest.raises(Diverged, match=r"step 1: the loss of 'source' is nan.*last\.pt"):
        loop.run(silent)
    assert load_state(tmp_path / "last.pt")["step"] == 1


def test_a_loss_that_is_not_finite_from_the_start_names_no_checkpoint(data, tmp_path):
    loop = Loop(data, tiny_loop(steps=4), tmp_path)
    with torch.no_grad():
        loop.model.phi[1].weight.fill_(float("nan"))
    with pytest.raises(Diverged, match=r"step 0: the loss of 'source' is nan. no state was saved yet"):
        loop.run(silent)


def test_the_folder_of_another_run_stays_as_it_is(data, tmp_path):
    Loop(data, tiny_loop(steps=1), tmp_path).run(silent)
    split = (tmp_path / "split.json").read_text()
    other = replace(data, roles=data.roles[::-1])
    with pytest.raises(InvalidInput, match="trained on other data"):
        Loop(other, tiny_loop(steps=1), tmp_path)
    assert (tmp_path / "split.json").read_text() == split


def test_a_log_that_cannot_be_written_is_named(data, tmp_path):
    loop = Loop(data, tiny_loop(steps=1), tmp_path / "run")
    (tmp_path / "run" / "log.csv").mkdir()
    with pytest.raises(EdgealignError, match=r"log\.csv' cannot be written: Is a directory"):
        loop.run(silent)


def test_strong_methods_need_strong_pairs(tmp_path):
    weak = replace(tiny_paired(), pairs=np.zeros((0, 2), np.int64))
    with pytest.raises(InvalidInput, match="weak pairs only"):
        Loop(weak, tiny_loop(method="croma-strong"), tmp_path)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"method": "magic"}, "no method 'magic'"),
        ({"inner_steps": 0}, "inner_steps is 0"),
        ({"outer_learning_rate": float("nan")}, "outer_learning_rate"),
        ({"n_way": 1}, "2 labels or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        tiny_loop(**fields)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_is_an_error_where_there_is_none():
    with pytest.raises(DeviceUnavailable, match="no CUDA"):
        processes.device("cuda")


# ---- several processes ----

SHARED_METHODS = ("croma-weak-nce", "align-classify")
SHARED_RUN = """
import sys
from pathlib import Path
sys.path.append(sys.argv[1])
import torch
torch.set_num_threads(1)
from tiny_pairs import tiny_loop, tiny_paired
from edgealign.train import loop, processes
loop.LOG_EVERY = 1
for method in sys.argv[3:]:
    config = tiny_loop(method=method, steps=20, tasks_per_step=2)
    loop.Loop(tiny_paired(), config, Path(sys.argv[2]) / method).run(lambda line: None)
processes.leave()
"""


def test_two_processes_learn_what_one_learns(data, tmp_path, monkeypatch):
    """The same global batch and seed: losses within 1e-5 over 20 steps. The environment is what torchrun sets."""
    monkeypatch.setattr(loop_module, "LOG_EVERY", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "run.py"
    script.write_text(SHARED_RUN)
    command = [sys.executable, script, Path(__file__).parent, tmp_path / "two", *SHARED_METHODS]
    shared = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(list(map(str, command)), env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    for method in SHARED_METHODS:
        Loop(data, tiny_loop(method=method, steps=20, tasks_per_step=2), tmp_path / "one" / method).run(silent)
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    for method in SHARED_METHODS:
        alone, together = (rows_of(tmp_path / name / method) for name in ("one", "two"))
        assert len(alone) == len(together) == 20
        for mine, theirs in zip(alone, together, strict=True):
            assert list(map(float, mine.values())) == pytest.approx(list(map(float, theirs.values())), abs=1e-5)


def test_processes_on_a_machine_with_cuda_can_also_meet_on_the_cpu(monkeypatch):
    met: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "init_process_group", met.append)
    processes.join()
    by_device = torch.distributed.distributed_c10d.BackendConfig(met[0]).get_device_backend_map()
    assert (by_device["cpu"], by_device["cuda"]) == ("gloo", "nccl")


def test_tasks_that_the_processes_cannot_share_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    with pytest.raises(InvalidInput, match="cannot be shared by 3 processes"):
        Loop(data, tiny_loop(tasks_per_step=2), tmp_path)
