"""Several processes on one run, started by torchrun: each does a share of the tasks of a step, gradients are averaged.

torchrun --no-python --nproc-per-node=2 edgealign train text-to-image runs/two --device cpu
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from edgealign.errors import DeviceUnavailable


def join() -> None:
    """Meet the other processes where torchrun started this one; nothing otherwise."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def wait() -> None:
    """Until all processes have come here."""
    if distributed.is_initialized():
        distributed.barrier()


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over the processes."""
    if distributed.is_initialized():
        for tensor in tensors:
            distributed.all_reduce(tensor)


def device(name: str) -> torch.device:
    """Where this process computes: "cpu" or "cuda"; what is absent is an error, never a fallback."""
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceUnavailable("this machine has no CUDA device that torch can use: train with --device cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
