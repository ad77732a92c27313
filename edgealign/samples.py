"""One sample -> its embedding, for every kind of input that an encoder may take."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgealign import words
from edgealign.audio import AudioArray, AudioFile, AudioSource
from edgealign.errors import BundleUnreadable, InvalidInput
from edgealign.inputs import ClipWindows, ImageInput, LogMelInput, TextInput, Windows
from edgealign.words import Word, find_word, whole_sound

if TYPE_CHECKING:
    from edgealign.bundle import Bundle
    from edgealign.images import Picture

Sample = str | os.PathLike | np.ndarray


@dataclass(frozen=True)
class Embedded:
    """What an encoder made of a sample.

    embedding   float32 [dim], of unit length
    word        what was found, where the encoder sees the word of a clip
    start_s, end_s   the stretch of sound that was used; None for a picture
    """

    embedding: np.ndarray
    word: Word | None
    start_s: float | None
    end_s: float | None


def check_takes_samples(bundle: Bundle) -> None:
    """InvalidInput where a bundle encodes words alone."""
    if isinstance(bundle.input, TextInput):
        raise InvalidInput(
            f"the bundle '{bundle.name}' encodes words alone and cannot learn or name anything by itself: join it with "
            f"an encoder of sounds or pictures by `edgealign train projection`"
        )


def check_type(sample: object) -> None:
    """InvalidInput for what is no Sample."""
    if not isinstance(sample, (str, os.PathLike, np.ndarray)):
        raise InvalidInput(f"a sample is a {type(sample).__name__}: expected a path or a numpy array")


def open_sample(
    bundle: Bundle, sample: Sample, sample_rate_hz: float | None = None, channel: int | None = None
) -> AudioSource | Picture:
    """A file or an array, opened as what the bundle is for. InputUnreadable where the file is something else."""
    check_type(sample)
    if isinstance(bundle.input, ImageInput):
        from edgealign.images import read_picture

        if sample_rate_hz is not None or channel is not None:
            raise InvalidInput(f"the bundle '{bundle.name}' takes pictures: they have no sample rate and no channel")
        return read_picture(sample)
    if not isinstance(sample, np.ndarray):
        if sample_rate_hz is not None:
            raise InvalidInput("sample_rate_hz was given with a file: it is for samples, a file knows its own")
        return AudioFile(sample, channel)
    if sample_rate_hz is None:
        raise InvalidInput("samples without their sample_rate_hz")
    return AudioArray(sample, sample_rate_hz, channel)


def embed(
    bundle: Bundle,
    source: AudioSource | Picture,
    *,
    hashed: bool = False,
    whole: bool = False,
    variant: str | None = None,
) -> Embedded | None:
    """The embedding of one sample; None where the encoder sees words and no sound stands out of the clip.

    hashed   the source knows its sha256 afterwards
    whole    somebody has set the ends of the clip: it is one word as it is, where it is not too long
    """
    taken = bundle.input
    if isinstance(taken, ImageInput):
        from edgealign.images import fit

        return Embedded(bundle.encode(fit(source.pixels, taken)[None], variant)[0], None, None, None)
    blocks = source.blocks(taken.sample_rate_hz, hashed)
    if not isinstance(taken.windows, Windows):
        return Embedded(embed_clip(bundle, blocks, variant), None, 0.0, source.duration_s)
    find = whole_sound if whole else find_word
    word = find(blocks, bundle.front_end, taken.windows, bundle.filters, with_samples=taken.kind == "waveform")
    if word is None:
        return None
    return Embedded(bundle.encode(word_values(bundle, word), variant)[0], word, word.start_s, word.end_s)


def values(bundle: Bundle, source: AudioSource | Picture) -> list[np.ndarray]:
    """What the encoder takes of a sample, a batch of one each; empty where it sees words and no sound stands out."""
    taken = bundle.input
    if isinstance(taken, ImageInput):
        from edgealign.images import fit

        return [fit(source.pixels, taken)[None]]
    blocks = source.blocks(taken.sample_rate_hz)
    if not isinstance(taken.windows, Windows):
        return list(clip_values(bundle, blocks))
    word = find_word(blocks, bundle.front_end, taken.windows, bundle.filters, with_samples=taken.kind == "waveform")
    return [] if word is None else [word_values(bundle, word)]


def word_values(bundle: Bundle, word: Word) -> np.ndarray:
    """What the encoder takes of a word: `values` of Bundle.encode, with a batch of one."""
    return (word.log_mels if isinstance(bundle.input, LogMelInput) else word.samples)[None]


def clip_values(
    bundle: Bundle, blocks: Iterator[np.ndarray], windows: ClipWindows | None = None
) -> Iterator[np.ndarray]:
    """What the encoder takes of a clip, window by window: `values` of Bundle.encode, with a batch of one.

    windows   other ones than those of the bundle
    """
    for samples in (windows or bundle.input.windows).cut(blocks, bundle.input.sample_rate_hz):
        yield (log_mel(bundle, samples) if isinstance(bundle.input, LogMelInput) else samples)[None]


def embed_clip(bundle: Bundle, blocks: Iterator[np.ndarray], variant: str | None = None) -> np.ndarray:
    """The embedding of all of a clip: float32 [dim].

    blocks   float32 [n_samples] each, mono, at the encoder's rate
    """
    return mean_of(bundle.encode(values, variant)[0] for values in clip_values(bundle, blocks))


def mean_of(embeddings: Iterable[np.ndarray]) -> np.ndarray:
    """The mean of unit rows, scaled to unit length; a single one as it is. Sums are float64."""
    total, n_rows, row = None, 0, None
    for row in embeddings:
        total = row.astype(np.float64) if total is None else total + row
        n_rows += 1
    if n_rows == 1:
        return row
    # Rounded in these two places, so that it is the same in whatever order it is summed, here and in the core.
    norm = np.float32(np.sqrt(np.square(total).sum()))
    if not norm > 1e-6 * n_rows:
        raise BundleUnreadable("the embeddings of the windows of a clip cancel each other: the bundle is of no use")
    return total.astype(np.float32) / norm


def log_mel(bundle: Bundle, samples: np.ndarray) -> np.ndarray:
    """Log-mel energies by the front end of a bundle: float32 [n_mels, n_frames]."""
    return words.log_mel(samples, bundle.front_end, bundle.filters)
