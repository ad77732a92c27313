"""Learning rate, moving average and log of the trainers, against what they are said to be."""

import json

import pytest
import torch
from torch import nn

from edgealign.errors import EdgealignError
from edgealign.train.updates import add_to_log, follow, learning_rate, trim_log


def test_the_rate_rises_in_a_line_and_falls_to_its_last_share():
    rates = [learning_rate(2.0, step, 100, 10, last=0.1) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert (rates[10], rates[55], rates[100]) == pytest.approx((2.0, 1.1, 0.2))


def test_the_average_follows_parameters_and_buffers_and_copies_counts():
    torch.manual_seed(0)
    average, model = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    model.weight.data.fill_(3.0)
    model.running_mean.fill_(4.0)
    model.num_batches_tracked.fill_(7)
    follow(average, model, step=8, decay=0.9)  # of an early step: 9 / 18
    assert torch.equal(average.weight, torch.full((3,), 2.0))
    assert torch.equal(average.running_mean, torch.full((3,), 2.0))
    assert average.num_batches_tracked == 7
    follow(average, model, step=10_000, decay=0.75)
    assert torch.equal(average.weight, torch.full((3,), 2.25))


def test_lines_after_the_checkpoint_are_made_again_and_half_a_line_is_dropped(tmp_path):
    log = tmp_path / "log.jsonl"
    for step in (10, 20, 30):
        add_to_log(log, {"step": step, "score": step / 2})
    with log.open("a") as file:
        file.write('{"step": 4')
    trim_log(log, 20)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [10, 20]
    trim_log(tmp_path / "none.jsonl", 20)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(EdgealignError, match=r"log\.jsonl' cannot be written: Is a directory"):
        (tmp_path / "log.jsonl").mkdir()
        add_to_log(tmp_path / "log.jsonl", {"step": 1})
