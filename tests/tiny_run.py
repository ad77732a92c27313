"""A corpus that renders in two seconds, encoders of a few channels, and a run of a few steps: training for tests.

tests/conftest.py makes the fixtures known. Workers run in this process, so that what a test patches holds in them too.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import soundfile
from toy_bundle import noise_clip, word_clip

if TYPE_CHECKING:
    from edgealign.train.config import TrainConfig
    from edgealign.train.corpus import Corpus

STEPS = 30


class InThisProcess:
    """Takes the place of ProcessPoolExecutor."""

    def __init__(self, _workers: int, _context: object, start: object, arguments: tuple) -> None:
        start(*arguments)

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def submit(self, function: object, *arguments: object) -> Future:
        future = Future()
        future.set_result(function(*arguments))
        return future


@contextmanager
def rendering_here() -> Iterator[pytest.MonkeyPatch]:
    """`corpus.build` renders with espeak-ng alone, in this process, and keeps a quarter of the words for validation."""
    from edgealign import workers
    from edgealign.train import corpus, words

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "ProcessPoolExecutor", InThisProcess)
        patch.setattr(corpus, "festival_voices_installed", frozenset)
        patch.setattr(words, "VALIDATION_SHARE", 1 / 4)
        yield patch


@contextmanager
def small_files(most_bytes: int) -> Iterator[None]:
    """No file of this process grows further: writing fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class Rendered(NamedTuple):
    """A corpus and where it lies."""

    folder: Path
    corpus: Corpus


@pytest.fixture(scope="session")
def spoken_corpus(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """Some 120 words of Swahili and English, each said twice by espeak-ng; no recordings, no noise."""
    with rendering_here():
        return _rendered(tmp_path_factory.mktemp("spoken") / "corpus", None)


@pytest.fixture(scope="session")
def recorded_corpus(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """The same, five "recorded" words for training (one of them spelled), six for validation, and noise."""
    from edgealign.train import corpus

    root = tmp_path_factory.mktemp("recorded")
    with rendering_here() as patch:
        patch.setattr(corpus, "SPLITS", root / "splits")
        _write_packs(root / "data", root / "splits")
        return _rendered(root / "corpus", root / "data")


def _rendered(folder: Path, data: Path | None) -> Rendered:
    from edgealign.train.corpus import Corpus, CorpusConfig, build

    config = CorpusConfig(languages=("sw", "en"), words_per_language=60, longer_lists=(), renders_per_word=2)
    build(folder, config, data, workers=1, report=lambda line: None)
    return Rendered(folder, Corpus(folder))


def _write_packs(data: Path, splits: Path) -> None:
    """Packs in the layout of the recorded ones, "spoken" by the made-up voices of toy_bundle."""
    rows: dict[str, list[str]] = {"wakewords_en": [], "wakewords_community": [], "esc50": []}
    split_rows: dict[str, list[str]] = {"arabic_sc": [], "dspspeech20": [], "fsdd": []}
    splits.mkdir(parents=True)

    def clip(pack: str, name: str, samples: np.ndarray) -> None:
        path = data / pack / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, 16_000)

    for take in range(4):
        clip("wakewords_en", f"computer/{take}.wav", word_clip(0, take))
        rows["wakewords_en"].append(f"computer/{take}.wav\tcomputer\t")
    for take in range(2):
        sentence = np.concatenate([word_clip(word, take)[4000:-4000] for word in range(4)])
        clip("wakewords_community", f"other/{take}.wav", sentence)
        rows["wakewords_community"].append(f"other/{take}.wav\tnot-wake-words/en\t")
        clip("esc50", f"rain/{take}.wav", noise_clip(take))
        rows["esc50"].append(f"rain/{take}.wav\train\tCC0")
        clip("esc50", f"not_free/{take}.wav", word_clip(1, take))
        rows["esc50"].append(f"not_free/{take}.wav\tnot_free\tCC-BY-NC")
    recorded = []
    for word in range(12):
        role = ("train", "train", "val", "val", "test")[word % 5] if word < 10 else "val"
        for voice in range(4):  # the fourth is of the test role: with words of other roles no split lists it
            for take in range(2):
                name = f"word{word}/{voice}{take}.wav"
                clip("arabic_sc", name, word_clip(word, 3 * take + voice))
                recorded.append(f"{name}\tword{word}\tar{voice}")
                if (role == "test") == (voice == 3):
                    split_rows["arabic_sc"].append(f"arabic_sc\t{name}\tword{word}\tar{voice}\t{role}")
    for pack in ("wakewords_en", "wakewords_community", "esc50"):
        _write_rows(data / pack / "manifest.tsv", "file\tlabel\tlicence", rows[pack])
    for pack in ("arabic_sc", "arabic_sc_train", "dspspeech20", "dspspeech20_train", "fsdd"):
        _write_rows(data / pack / "manifest.tsv", "file\tlabel\tspeaker", recorded if pack == "arabic_sc" else [])
    for name, lines in split_rows.items():
        _write_rows(splits / f"{name}.tsv", "pack\tfile\tlabel\tspeaker\trole", lines)


def _write_rows(path: Path, header: str, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def tiny_config(**fields: object) -> TrainConfig:
    """Encoders of some thousand parameters and batches of a few words."""
    from edgealign.train.config import TrainConfig
    from edgealign.train.encoders import EncoderConfig

    encoders = EncoderConfig(
        dim=32, stem_channels=(4, 4, 8), speech_channels=24, speech_dilations=(1, 2), text_channels=24,
        text_dilations=(1, 2), heads=4, head_channels=4, n_phones=40, n_way=5,
    )  # fmt: skip
    small = TrainConfig(
        steps=4, synthetic_words=8, recorded_words=3, takes=2, validate_every=2, warm_up_steps=2, inner_steps=2,
        encoders=encoders,
    )  # fmt: skip
    return replace(small, **fields)


@pytest.fixture(scope="session")
def trained_run(spoken_corpus: Rendered, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a joint run of STEPS steps on `spoken_corpus`."""
    from edgealign.train.text_to_speech import Trainer

    folder = tmp_path_factory.mktemp("run") / "joint"
    config = tiny_config(
        steps=STEPS, synthetic_words=16, validate_every=STEPS, learning_rate=5e-3, warm_up_steps=5, average_decay=0.8
    )
    Trainer(spoken_corpus.corpus, config, folder).run(report=lambda line: None)
    return folder
