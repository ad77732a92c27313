"""What a student is chosen by: python -m benchmarks.unheard_voices CORPUS CHECKPOINT...

Of the words that people said, six are for validation, and they do not tell encoders apart that hear consonants well or
badly. Here 300 English validation words are said by the four voices of flite, which were cut from recordings of people.
Training hears slt and kal in festival's rendering, awb and rms never. A word is enrolled from one clip of one voice and
asked for by another, among 20: as said, over a telephone, and in noise. Needs `[train]`, flite and a corpus.

No row is kept of this: it says which checkpoint to go on with, not how good one is.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soxr

from edgealign.errors import EdgealignError, InvalidInput
from edgealign.train import words as word_lists
from edgealign.train.clips import log_mel_of_word
from edgealign.train.corpus import Corpus
from edgealign.train.front_end import mel_filters
from edgealign.train.synthesis import FLITE_VOICES, SAMPLE_RATE_HZ, Espeak, say_with_flite
from edgealign.train.text_to_speech import Checkpoint

VOICES = (*FLITE_VOICES, "slt", "kal")
N_WORDS, N_WAY, N_EPISODES = 300, 20, 2000
SNR_DB = (5.0, 20.0)


def validation_words(espeak: Espeak) -> list[str]:
    """English ones of two to seven sounds, no two of which sound alike, none that accuracy is measured on."""
    reserved, of_sound = word_lists.reserved_sounds(espeak), {}
    for word in word_lists.spellings(espeak, "en"):
        kept = word_lists.is_validation(word.sound) and not word_lists.is_reserved(word, reserved)
        if kept and " " not in word.text and 2 <= len(word.sound) <= 7:
            of_sound.setdefault(word.sound, word.text)
    texts = sorted(of_sound.values())
    random.Random(0).shuffle(texts)
    return texts[:N_WORDS]


def said(texts: list[str]) -> list[list[np.ndarray]]:
    """Clips of each word by all voices, of those that every voice can say."""
    rng = random.Random(1)
    asked = [(voice, text, rng.uniform(0.9, 1.25)) for text in texts for voice in VOICES]
    with ThreadPoolExecutor() as pool:
        clips = list(pool.map(lambda one: say_with_flite(*one), asked))
    by_word = [clips[i : i + len(VOICES)] for i in range(0, len(clips), len(VOICES))]
    return [word for word in by_word if all(clip is not None for clip in word)]


def over_telephone(samples: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    return soxr.resample(soxr.resample(samples, SAMPLE_RATE_HZ, 8000), 8000, SAMPLE_RATE_HZ)


def in_noise(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With noise of the same spectrum as the clip, at SNR_DB."""
    spectrum = np.abs(np.fft.rfft(samples))
    noise = np.fft.irfft(spectrum * np.exp(2j * np.pi * rng.random(len(spectrum))), len(samples))
    return (samples + noise * 10 ** (-rng.uniform(*SNR_DB) / 20)).astype(np.float32)


CONDITIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "as said": lambda samples, _rng: samples, "over a telephone": over_telephone, "in noise": in_noise,
}  # fmt: skip


def across_voices(embeddings: np.ndarray, n_episodes: int = N_EPISODES) -> tuple[float, float]:
    """Mean accuracy in percent and the half-width of its 95 % interval; embeddings are [n_words, n_voices, dim]."""
    rng = np.random.default_rng(2)
    right = []
    for _ in range(n_episodes):
        enrolled, asking = rng.permutation(embeddings.shape[1])[:2]
        words = rng.permutation(len(embeddings))[:N_WAY]
        nearest = (embeddings[words, asking] @ embeddings[words, enrolled].T).argmax(axis=1)
        right.append((nearest == np.arange(N_WAY)).mean())
    return 100 * float(np.mean(right)), 196 * float(np.std(right, ddof=1)) / n_episodes**0.5


def log_mels(clips: list[list[np.ndarray]], change: Callable) -> list[list[np.ndarray]]:
    """As `said` gives them, without words that are none by their length."""
    rng, filters = np.random.default_rng(3), mel_filters()
    heard = [[log_mel_of_word(change(clip, rng), filters) for clip in word] for word in clips]
    return [word for word in heard if all(log_mel is not None for log_mel in word)]


def measured(corpus: Path, checkpoints: list[Path]) -> Iterator[str]:
    if shutil.which("flite") is None:
        raise InvalidInput("there is no flite on this machine: install it (Debian's package is called flite)")
    opened, loaded = Corpus(corpus), {path: Checkpoint.load(path) for path in checkpoints}
    clips = said(validation_words(Espeak()))
    heard = {name: log_mels(clips, change) for name, change in CONDITIONS.items()}
    for path, checkpoint in loaded.items():
        finished = checkpoint.finished or checkpoint.finish(opened).finished
        scores = []
        for name, words in heard.items():
            embeddings = finished.embed_speech([log_mel for word in words for log_mel in word])
            mean, ci95 = across_voices(embeddings.reshape(len(words), len(VOICES), -1))
            scores.append(f"{name} {mean:.1f} ± {ci95:.1f}")
        yield f"{path}: {', '.join(scores)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="folder of `edgealign train text-to-speech --corpus`")
    parser.add_argument("checkpoints", type=Path, nargs="+", help="of text-to-speech, distill or spelling")
    arguments = parser.parse_args()
    try:
        for line in measured(arguments.corpus, arguments.checkpoints):
            print(line, flush=True)
    except EdgealignError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
