"""Meta-alignment: Reptile over source tasks and alignment tasks (Liang et al. 2021), and adaptation at meta-test.

A task is a function that draws data once and returns a loss for whatever copy of the encoders it is given. Every
adaptation works on a full copy: `reptile_step` moves the meta-parameters by the difference, `adapted` gives the copy to
the caller and leaves the original bit-identical.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module], Tensor]


def adapted(model: nn.Module, losses: list[Loss], learning_rate: float) -> nn.Module:
    """A copy of `model` after one Adam step (betas 0, 0.999) per loss, in training mode; `model` is not touched."""
    clone = copied(model, {}).train()
    optimizer = torch.optim.Adam(clone.parameters(), lr=learning_rate, betas=(0.0, 0.999), fused=True)
    for loss in losses:
        optimizer.zero_grad(set_to_none=True)
        loss(clone).backward()
        optimizer.step()
    return clone


def copied(module: nn.Module, made: dict[nn.Module | nn.Parameter, nn.Module | nn.Parameter]) -> nn.Module:
    """A copy with parameters, buffers and modules of its own; what is shared within one is shared within the other.

    made   copy by original, filled in here. Everything else (hooks, settings) stays common to both: `copy.deepcopy`
           copies that too, and takes seven times as long for the small networks of a task.
    """
    if module in made:
        return made[module]
    twin = made[module] = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    for parameter in module._parameters.values():
        if parameter is not None and parameter not in made:
            made[parameter] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
    twin._parameters = {name: made.get(parameter) for name, parameter in module._parameters.items()}
    twin._buffers = {name: None if buffer is None else buffer.clone() for name, buffer in module._buffers.items()}
    twin._modules = {name: None if part is None else copied(part, made) for name, part in module._modules.items()}
    return twin


def pseudo_gradient(model: nn.Module, losses: list[Loss], learning_rate: float) -> tuple[list[Tensor], nn.Module]:
    """Per parameter, itself minus its adapted copy (Nichol et al. 2018), and the copy."""
    clone = adapted(model, losses, learning_rate)
    with torch.no_grad():
        moves = [mine - theirs for mine, theirs in zip(model.parameters(), clone.parameters(), strict=True)]
    return moves, clone


def reptile_step(model: nn.Module, outer: torch.optim.Optimizer, losses: list[Loss], learning_rate: float) -> float:
    """One Reptile update.

    Running statistics of normalization are no parameters: they are taken over from the copy. Returns the norm of the
    pseudo-gradient.
    """
    moves, clone = pseudo_gradient(model, losses, learning_rate)
    square = 0.0
    with torch.no_grad():
        for parameter, move in zip(model.parameters(), moves, strict=True):
            parameter.grad = move
            square += float(move.square().sum())
        for buffer, moved in zip(model.buffers(), clone.buffers(), strict=True):
            buffer.copy_(moved)
    outer.step()
    outer.zero_grad(set_to_none=True)
    return square**0.5
