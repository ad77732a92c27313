"""Field conditions on power spectra: seeded, finite, shaped as promised, and doing what their names say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_bundle import noise_clip, word_clip

from edgealign import kernels
from edgealign.train import augment
from edgealign.train.augment import AugmentConfig, Augmenter
from edgealign.train.corpus import DB_STEP, N_BINS, encode_power, power_spectrum
from edgealign.train.front_end import FRONT_END, WINDOWS, mel_filters

STUDIO = AugmentConfig(
    tempo=(1, 1), vocal_tract=(1, 1), rhythm=0, formant_bend=0, contrast=(1, 1),
    reverb_share=0, equalizer_db=0, band_limit_share=0, noise_share=0,
    level_db=(0, 0), mask_share=0, cut_share=0,
)  # fmt: skip
NO_NOISE = np.zeros((0, N_BINS), np.uint8)


def frames_of(samples: np.ndarray) -> np.ndarray:
    return encode_power(power_spectrum(samples))


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """Seven words of different lengths, one of them shorter than the encoder's least."""
    return [frames_of(word_clip(word))[20:-20] for word in range(6)] + [frames_of(word_clip(6))[30:40]]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def power(log_mels: Tensor) -> Tensor:
    return log_mels.exp()


@pytest.mark.parametrize(
    "samples", [word_clip(0), noise_clip(1), word_clip(2)[6000:6300]], ids=["word", "noise", "short"]
)
def test_a_clean_clip_is_what_the_device_would_compute(samples):
    """Bytes hold decibels in steps of 0.6, so every bin is off by 0.3 dB at most, and no mel energy by more: a mel
    energy is a sum of bins with weights >= 0. Bins under -99.7 dB become silence: 1 % of what is audible at most."""
    log_mels, mask = Augmenter(AugmentConfig(), NO_NOISE).clean([frames_of(samples)])
    expected = kernels.log_mel(
        samples, mel_filters(), FRONT_END.window_samples, FRONT_END.hop_samples, FRONT_END.energy_floor
    )
    n_frames = expected.shape[1]
    assert int(mask.sum()) == max(n_frames, WINDOWS.min_frames)
    heard = log_mels[0, :, :n_frames].numpy()
    audible = expected > np.log(1e-6)
    assert audible.mean() > 0.9
    assert np.abs(heard - expected)[audible].max() <= DB_STEP / 2 * np.log(10) / 10 + 0.011


def test_clean_clips_are_padded_with_silence_behind_a_mask(clips):
    log_mels, mask = Augmenter(AugmentConfig(), NO_NOISE).clean(clips)
    lengths = [max(len(clip), WINDOWS.min_frames) for clip in clips]
    assert mask.sum(dim=(1, 2)).tolist() == lengths
    assert log_mels.shape == (len(clips), FRONT_END.n_mels, max(lengths))
    floor = np.log(np.float32(FRONT_END.energy_floor))
    assert (log_mels.transpose(1, 2)[mask[:, 0] == 0] == float(floor)).all()


def test_a_seed_fixes_the_batch(clips):
    augmenter = Augmenter(AugmentConfig(), frames_of(noise_clip(0, seconds=4)))
    (first, mask), (again, mask_again), (other, _) = (augmenter(clips, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert torch.equal(mask, mask_again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_the_global_random_state_is_neither_used_nor_changed(clips):
    augmenter = Augmenter(AugmentConfig(), NO_NOISE)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = augmenter(clips, seeded(5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, augmenter(clips, seeded(5))[0])


@pytest.mark.parametrize("seed", range(8))
def test_every_batch_is_finite_and_has_the_promised_shape(clips, seed):
    config = AugmentConfig(reverb_share=0.7, band_limit_share=0.7, noise_share=1.0, mask_share=1.0)
    silence = np.zeros((30, N_BINS), np.uint8)
    log_mels, mask = Augmenter(config, frames_of(noise_clip(seed, seconds=4)))([*clips, silence], seeded(seed))
    assert log_mels.dtype == torch.float32
    assert torch.isfinite(log_mels).all()
    n, n_mels, longest = log_mels.shape
    assert (n, n_mels) == (len(clips) + 1, FRONT_END.n_mels)
    assert mask.shape == (n, 1, longest)
    lengths = mask.sum(dim=(1, 2))
    assert lengths.min() >= WINDOWS.min_frames
    assert lengths.max() == longest <= config.longest_frames + 3 * WINDOWS.pad_frames
    # Ones, then zeros.
    assert torch.equal(mask, (torch.arange(longest)[None, None] < lengths[:, None, None]).float())


def test_a_single_clip_can_be_augmented(clips):
    log_mels, _ = Augmenter(AugmentConfig(), NO_NOISE)(clips[:1], seeded(0))
    assert torch.isfinite(log_mels).all()


def test_in_the_studio_only_the_room_around_the_word_is_added(clips):
    """With every condition off, a word is its clean log-mels at another level, somewhere in silence."""
    augmenter = Augmenter(STUDIO, NO_NOISE)
    heard, _ = augmenter(clips[:6], seeded(3))
    clean, _ = augmenter.clean(clips[:6])
    for row, expected, clip in zip(heard, clean, clips, strict=False):
        expected = expected[:, : len(clip)]
        leads = range(int(1.5 * WINDOWS.pad_frames) + 1)
        audible = expected > expected.max() - 9
        spread = [
            float((row[:, i : i + len(clip)] - expected)[audible].std()) for i in leads if i + len(clip) <= row.shape[1]
        ]
        assert min(spread) < 1e-3


def test_a_word_is_cut_where_it_becomes_faint_at_the_ends_that_are_asked_for():
    db = torch.tensor([-60.0, -40, -22, -5, 0, -3, -50, -2, -18, -28, -45, -60])
    mel = (10 ** (db / 10))[None, :, None].repeat(4, 1, 3)
    mel[3, 9:] = 0
    never = torch.inf
    below_db = torch.tensor([[never, never], [25, never], [20, 20], [never, 50]])
    cut, lengths = augment._cut(mel, torch.tensor([12, 12, 12, 9]), below_db)
    kept = [range(12), range(2, 12), range(3, 9), range(9)]  # a pause inside the word stays
    assert lengths.tolist() == [len(frames) for frames in kept]
    for row, frames in enumerate(kept):
        assert torch.equal(cut[row, : len(frames)], mel[row, list(frames)])
        assert not cut[row, len(frames) :].any()


def test_a_click_is_not_cut_to_nothing_and_neither_is_silence():
    mel = torch.full((2, 30, 3), 1e-9)
    mel[0, 12] = 1
    mel[1] = 0
    _, lengths = augment._cut(mel, torch.tensor([30, 30]), torch.full((2, 2), 10.0))
    assert lengths.tolist() == [6, 30]


def test_nothing_is_around_a_word_that_was_cut(clips):
    config = replace(STUDIO, cut_share=1, cut_db=(20, 20))
    heard, mask = Augmenter(config, NO_NOISE)(clips[:6], seeded(3))
    loudness = power(heard).sum(dim=1)
    for row, lengths in zip(loudness, mask.sum(dim=(1, 2)).long().tolist(), strict=True):
        ends = row[[0, lengths - 1]] / row.max()
        assert (ends > 0.0099).all() or lengths == WINDOWS.min_frames


def test_tempo_changes_the_length(clips):
    for tempo in (0.8, 1.3):
        mel, lengths = torch.rand(2, 50, 48), torch.tensor([50, 30])
        stretched, new = augment._stretch(mel, lengths, torch.full((2,), tempo), torch.zeros(2, 2), longest=140)
        assert new.tolist() == [round(50 * tempo), round(30 * tempo)]
        assert stretched.shape == (2, round(50 * tempo), 48)
        assert not stretched[1, round(30 * tempo) :].any()


def test_stretching_by_one_changes_nothing_and_bending_keeps_the_ends():
    mel, lengths = torch.rand(1, 40, 48), torch.tensor([40])
    same, _ = augment._stretch(mel, lengths, torch.ones(1), torch.zeros(1, 2), longest=140)
    assert torch.allclose(same, mel, atol=1e-5)
    ramp = torch.arange(40.0)[None, :, None].expand(1, 40, 48)
    bent, _ = augment._stretch(ramp, lengths, torch.ones(1), torch.tensor([[0.12, 0.0]]), longest=140)
    times = bent[0, :, 0]
    assert (times.diff() >= 0).all()
    assert float(times[0]) < 1.5
    assert float(times[-1]) > 37.5
    assert float((times - torch.arange(40.0)).abs().max()) == pytest.approx(0.12 * 40 / 2, abs=0.3)


def test_a_word_that_would_be_too_long_is_said_faster():
    _, new = augment._stretch(torch.rand(1, 130, 48), torch.tensor([130]), torch.tensor([1.4]), torch.zeros(1, 2), 140)
    assert new.tolist() == [140]


def test_reverberation_falls_by_60_db_in_its_time():
    click = torch.zeros(2, 60, 48)
    click[:, 0] = 1
    wet = augment._reverberate(click, torch.tensor([True, False]), torch.tensor([0.5, 0.5]), torch.zeros(2))
    assert torch.equal(wet[1], click[1])
    tail_db = 10 * torch.log10(wet[0, 1:, 0])
    assert float(tail_db[50] - tail_db[0]) == pytest.approx(-60, abs=0.01)  # 50 frames of 10 ms
    # At 0 dB the tail holds as much energy as the click, less what falls before it begins, a frame after the click.
    assert float(wet[0, 1:, 0].sum()) == pytest.approx(10 ** (-60 * 0.01 / 0.5 / 10), rel=1e-4)


def test_noise_fills_what_was_quiet(clips):
    quiet, _ = Augmenter(STUDIO, NO_NOISE)(clips[:6], seeded(4))
    noisy_config = replace(STUDIO, noise_share=1.0, noise_snr_db=(0.0, 0.0))
    noisy, mask = Augmenter(noisy_config, NO_NOISE)(clips[:6], seeded(4))
    # The word's mean energy is 1 before the level of 20 dB less, and the noise, at 0 dB, has as much.
    added = (power(noisy) - power(quiet)).mean(dim=(1, 2)) / 10 ** ((0 + 20) / 10)
    assert torch.allclose(added, torch.ones(6), rtol=1e-3)
    assert noisy.shape == quiet.shape == (6, 48, mask.shape[2])


def test_a_telephone_takes_the_treble_away(clips):
    open_air, _ = Augmenter(STUDIO, NO_NOISE)(clips[:6], seeded(5))
    line, _ = Augmenter(replace(STUDIO, band_limit_share=1.0), NO_NOISE)(clips[:6], seeded(5))
    loss_db = 10 / np.log(10) * (open_air - line)
    centers_hz = augment._mel_centers_hz()
    speech = (centers_hz > 400) & (centers_hz < 2800)
    assert float(loss_db[:, speech].abs().max()) < 1e-3
    audible = open_air[:, -1] > np.log(1e-4)
    assert float(loss_db[:, -1][audible].min()) > 10  # at 7.4 kHz, the widest of the microphones


def test_the_vocal_tract_moves_the_spectrum():
    """A tone of 1 kHz read at 1.2 times each frequency lies in the filters of 833 Hz."""
    seconds = np.arange(8000) / 16_000
    tone = frames_of((0.3 * np.sin(2 * np.pi * 1000 * seconds)).astype(np.float32))
    peaks_hz = []
    for warp in (1.0, 1.2):
        augmenter = Augmenter(replace(STUDIO, vocal_tract=(warp, warp)), NO_NOISE)
        log_mels, _ = augmenter([tone], seeded(6))
        peaks_hz.append(float(augmenter.mel_hz[log_mels[0].amax(dim=1).argmax()]))
    assert peaks_hz[0] == pytest.approx(1000, rel=0.06)
    assert peaks_hz[1] == pytest.approx(1000 / 1.2, rel=0.06)


def test_an_accent_moves_some_regions_of_the_spectrum_and_not_others():
    warps = augment._warps(replace(STUDIO, vocal_tract=(1, 1), formant_bend=0.05), 64)
    assert np.abs(warps - 1).max() <= 0.1 + 1e-9
    assert (warps.max(axis=1) - warps.min(axis=1) > 0.03).mean() > 0.9
    assert (np.diff(np.linspace(0, 1, warps.shape[1]) * warps, axis=1) > 0).mean() > 0.99  # filters keep their order


def test_contrast_raises_peaks_over_valleys(clips):
    plain, mask = Augmenter(STUDIO, NO_NOISE)(clips[:2], seeded(8))
    sharper, _ = Augmenter(replace(STUDIO, contrast=(1.2, 1.2)), NO_NOISE)(clips[:2], seeded(8))
    inside = (mask > 0).expand_as(plain)
    heard = inside & (plain > plain.amax() - 9)
    assert float(sharper[heard].std() / plain[heard].std()) == pytest.approx(1.2, abs=0.1)


def test_masking_hides_a_band_or_a_moment_and_nothing_else(clips):
    plain, _ = Augmenter(STUDIO, NO_NOISE)(clips[:6], seeded(7))
    config = replace(STUDIO, mask_share=1.0)
    masked, mask = Augmenter(config, NO_NOISE)(clips[:6], seeded(7))
    changed = (masked != plain) & (mask > 0)
    whole_bands = (changed.sum(dim=2) > 0.5 * mask.sum(dim=2)).sum(dim=1)
    assert (whole_bands <= config.masked_mels + 1).all()
    assert changed.any()
    assert (masked <= plain.clamp(min=float(plain.min())) + 1e-6).all()  # what is hidden becomes quiet
