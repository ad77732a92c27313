"""Reptile on a correct copy: the model is untouched by adaptation, and moves towards the copy in meta-training."""

import copy

import pytest
import torch
from tiny_run import tiny_config
from torch import Tensor, nn

from edgealign.train import meta
from edgealign.train.encoders import AlignedEncoders
from edgealign.train.text_to_speech import Trainer, alignment_task


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Slope(nn.Module):
    """The loss weight @ slope has the gradient `slope` everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        self.register_buffer("seen", torch.zeros(()))


def down(*slope: float) -> meta.Loss:
    def loss(model: Slope) -> Tensor:
        model.seen += 1
        return model.weight @ torch.tensor(slope, dtype=torch.float32)

    return loss


@pytest.fixture(scope="module")
def trainer(recorded_corpus, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer(recorded_corpus.corpus, tiny_config(recipe="croma"), tmp_path_factory.mktemp("croma"))


def test_adapting_leaves_every_parameter_and_buffer_of_the_model_bit_identical(trainer):
    model = AlignedEncoders(trainer.config.encoders)
    before = state(model)
    task = alignment_task(trainer.drawn.draw(0))
    clone = meta.adapted(model, [task, task], learning_rate=1e-2)
    assert same(before, state(model))
    after = state(clone)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    # Both encoders and the running statistics of their normalization moved in the copy, which therefore shares nothing.
    assert {"text.embedding.weight", "speech.stem1.weight", "alignment.weight"} <= moved
    assert "speech.norm1.running_mean" in moved


def test_the_copy_shares_no_storage_with_the_model(trainer):
    model = AlignedEncoders(trainer.config.encoders)
    clone = meta.adapted(model, [], learning_rate=1e-2)
    owned = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert owned.isdisjoint(tensor.data_ptr() for tensor in (*clone.parameters(), *clone.buffers()))


def test_a_copy_shares_within_itself_what_the_model_shares_and_gives_the_same():
    trunk = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model = nn.ModuleDict({"source": nn.Sequential(trunk), "target": nn.Sequential(trunk), "other": nn.Linear(3, 1)})
    clone = meta.copied(model, {})
    assert clone["source"][0] is clone["target"][0] is not trunk
    assert [name for name, _ in clone.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert same(state(model), state(clone))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    before = state(model)
    assert torch.equal(clone["target"](x), copy.deepcopy(model)["source"](x))
    with torch.no_grad():
        clone["source"][0][0].weight.add_(1)
    assert not torch.equal(clone["target"](x), model["target"](x))
    assert {name for name, value in before.items() if not torch.equal(value, clone.state_dict()[name])} > {
        "source.0.0.weight", "target.0.0.weight", "source.0.1.running_mean"
    }  # fmt: skip
    assert clone.eval().training is False and model.training is True


def test_adapting_is_adam_without_momentum():
    """Under a constant gradient Adam's steps have the length of the learning rate; betas 0: no memory of directions."""
    model = Slope()
    clone = meta.adapted(model, [down(5, -5, 0)], learning_rate=0.1)
    assert clone.weight.tolist() == pytest.approx([0.9, -1.9, 3.0], abs=1e-6)
    turned = meta.adapted(model, [down(5, -5, 0), down(0, -5, 0)], learning_rate=0.1)
    assert turned.weight.tolist() == pytest.approx([0.9, -1.8, 3.0], abs=1e-6)


def test_reptile_step_moves_the_parameters_towards_the_copy():
    model = Slope()
    before, copied = model.weight.detach().clone(), meta.adapted(model, [down(1, 1, 0)] * 3, learning_rate=0.1)
    outer = torch.optim.SGD(model.parameters(), lr=0.25)
    norm = meta.reptile_step(model, outer, [down(1, 1, 0)] * 3, learning_rate=0.1)
    assert torch.allclose(model.weight, before + 0.25 * (copied.weight - before), atol=1e-6)
    assert norm == pytest.approx(0.3 * 2**0.5, rel=1e-5)
    assert model.weight.grad is None


def test_reptile_step_takes_running_statistics_over_from_the_copy():
    model = Slope()
    meta.reptile_step(model, torch.optim.SGD(model.parameters(), lr=0.25), [down(1, 1, 1)] * 3, learning_rate=0.1)
    assert float(model.seen) == 3


def test_one_croma_step_gives_every_meta_parameter_a_pseudo_gradient(trainer, monkeypatch):
    """Source tasks move e_s and phi; alignment tasks move e_s, e_t and A; nothing else is in either."""
    norms: list[dict[str, float]] = []

    def record() -> None:
        groups = {"e_s": "text", "e_t": "speech", "A": "alignment", "phi": "classifier"}
        norms.append({
            name: sum(float(p.grad.abs().sum()) for p in getattr(trainer.model, part).parameters())
            for name, part in groups.items()
        })  # fmt: skip

    monkeypatch.setattr(trainer.optimizer, "step", record)
    trainer._croma_step(trainer.drawn.draw(0))
    source, alignment = norms
    assert {name for name, norm in source.items() if norm > 0} == {"e_s", "phi"}
    assert {name for name, norm in alignment.items() if norm > 0} == {"e_s", "e_t", "A"}


def test_a_croma_step_moves_all_meta_parameters(trainer):
    before = copy.deepcopy(trainer.model)
    trainer._croma_step(trainer.drawn.draw(0))
    for part in ("text", "speech", "alignment", "classifier"):
        moved = zip(getattr(before, part).parameters(), getattr(trainer.model, part).parameters(), strict=True)
        assert any(not torch.equal(old, new) for old, new in moved), part
