"""The encoders: what is padded does not count, loudness does not count, order does."""

from dataclasses import replace

import pytest
import torch
from tiny_run import tiny_config
from torch import Tensor

from edgealign.train import encoders
from edgealign.train.encoders import AlignedEncoders, PositionalPooling

CONFIG = tiny_config().encoders


@pytest.fixture(scope="module", params=[0, 8], ids=["plain", "teacher"])
def model(request) -> AlignedEncoders:
    """Random encoders whose normalization has seen some data, as after training."""
    torch.manual_seed(0)
    model = AlignedEncoders(replace(CONFIG, recurrent_units=request.param))
    for _ in range(3):
        model.speech(torch.randn(8, 48, 40) * 3 - 6)
        model.text(torch.randint(CONFIG.n_tokens, (8, 9)))
    return model.eval()


def words(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(48, n, generator=generator) * 3 - 6 for n in lengths]


def padded(rows: list[Tensor], fill: float) -> tuple[Tensor, Tensor]:
    """Rows [..., n] side by side in a batch, with `fill` where a row has ended, and the mask."""
    longest = max(row.shape[-1] for row in rows)
    batch = torch.stack([torch.nn.functional.pad(row, (0, longest - row.shape[-1]), value=fill) for row in rows])
    lengths = torch.tensor([row.shape[-1] for row in rows])
    return batch, (torch.arange(longest)[None] < lengths[:, None]).float().unsqueeze(1)


@pytest.mark.parametrize("fill", [-23.0, 50.0], ids=["silence behind", "noise behind"])
@torch.inference_mode()
def test_a_padded_row_of_speech_gives_the_embedding_that_it_gives_alone(model, fill):
    """At lengths of every remainder by 4, since the body runs at a quarter of the frames."""
    rows = words(18, 61, 98, 19, 40, 140)
    together = model.embed_speech(*padded(rows, fill))
    for row, embedding in zip(rows, together, strict=True):
        assert torch.allclose(embedding, model.embed_speech(row[None])[0], atol=2e-6, rtol=0)


@torch.inference_mode()
def test_a_padded_row_of_text_gives_the_embedding_that_it_gives_alone(model):
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(CONFIG.n_tokens, (n,), generator=generator) for n in (3, 9, 14, 40, 4)]
    together = model.embed_text(*padded(rows, 7))
    for row, embedding in zip(rows, together, strict=True):
        assert torch.allclose(embedding, model.embed_text(row[None])[0], atol=2e-6, rtol=0)


@torch.inference_mode()
def test_a_mask_of_ones_is_no_mask(model):
    (row,) = words(61)
    assert torch.allclose(model.embed_speech(row[None], torch.ones(1, 1, 61)), model.embed_speech(row[None]), atol=2e-6)


@torch.inference_mode()
@pytest.mark.parametrize("gain_db", [-40, -3, 12])
def test_loudness_does_not_change_the_embedding(model, gain_db):
    (row,) = words(61)
    louder = row + gain_db * 0.2302585  # dB to nepers of power
    assert torch.allclose(model.embed_speech(louder[None]), model.embed_speech(row[None]), atol=1e-5)


def test_nothing_further_than_14_nepers_below_the_loudest_band_counts():
    x = torch.tensor([[[0.0, -13.0], [-15.0, -40.0]]])
    expected = torch.tensor([[[0.0, -13.0], [-14.0, -14.0]]])
    assert torch.allclose(encoders.level(x, None), (expected - expected.mean()) * 0.3)


@torch.inference_mode()
def test_embeddings_have_unit_length_and_the_alignment_begins_as_the_identity(model):
    (row,) = words(61)
    speech = model.embed_speech(row[None])
    assert speech.shape == (1, CONFIG.dim)
    assert float(speech.norm()) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(speech, torch.nn.functional.normalize(model.speech(row[None]), dim=1), atol=1e-6)
    assert float(model.embed_text(torch.tensor([[3, 4, 5]])).norm()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("n_frames", [18, 19, 20, 21, 97])
@torch.inference_mode()
def test_the_body_runs_at_a_quarter_of_the_frames(model, n_frames):
    frames, mask = model.speech.frames(words(n_frames)[0][None], torch.ones(1, 1, n_frames))
    quarter = -(-n_frames // 4)
    assert frames.shape == (1, CONFIG.speech_channels, 1, quarter)
    assert int(mask.sum()) == quarter


@torch.inference_mode()
def test_pooling_hears_the_order_of_sounds_and_without_positions_it_would_not():
    torch.manual_seed(3)
    pooling = PositionalPooling(channels=6, heads=4, head_channels=3, dim=8)
    x = torch.randn(1, 6, 1, 11)
    assert (pooling(x, None) - pooling(x.flip(3), None)).abs().max() > 1e-2
    pooling.sharpness.zero_()
    assert torch.allclose(pooling(x, None), pooling(x.flip(3), None), atol=1e-5)


@torch.inference_mode()
def test_pooling_attends_to_the_part_of_the_word_where_its_head_is_centered():
    """Very sharp heads over frames that count up: the means are the frames nearest to 0, 1/3, 2/3 and 1."""
    pooling = PositionalPooling(channels=1, heads=4, head_channels=1, dim=8)
    for layer in (pooling.content, pooling.values):
        layer.weight.zero_()
        layer.bias.zero_()
    pooling.values.weight.fill_(1)
    pooling.sharpness.fill_(1e4)
    pooling.out = torch.nn.Identity()
    counted = pooling(torch.arange(10.0)[None, None, None], None)
    assert counted[0, :4].tolist() == pytest.approx([0, 3, 6, 9], abs=0.51)


def test_both_encoders_hear_in_their_gradient_everything_but_the_padding(model):
    rows, _ = padded(words(20, 40), -23.0)
    rows.requires_grad_()
    mask = torch.ones(2, 1, 40)
    mask[0, :, 20:] = 0
    model.embed_speech(rows, mask).sum().backward()
    assert rows.grad[0, :, 20:].abs().max() == 0
    assert rows.grad[1].abs().sum(dim=0).min() > 0
