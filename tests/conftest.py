"""Fixtures that all tests share: a toy bundle, clips of made-up words, and the command line run in process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import soundfile

from edgealign import Bundle
from edgealign.cli import app

# Under pytest's importlib mode the helpers beside this file are not importable by themselves.
sys.path.append(str(Path(__file__).parent))

from tiny_run import recorded_corpus, spoken_corpus, trained_run  # noqa: F401 (fixtures)
from toy_bundle import make_toy_bundle, word_clip


class Ran(NamedTuple):
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What edgealign remembers between its processes is not that of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that works and was never trained; tests must not change its folder."""
    return make_toy_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with another encoder."""
    return make_toy_bundle(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="session")
def samples_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """samples/<label>/<voice>.wav: three words by five voices, at 16 kHz."""
    folder = tmp_path_factory.mktemp("words") / "samples"
    for word, label in enumerate(("maji", "moto", "ndege")):
        (folder / label).mkdir(parents=True)
        for voice in range(5):
            soundfile.write(folder / label / f"voice{voice}.wav", word_clip(word, voice), 16_000)
    return folder


@pytest.fixture
def edgealign(
    toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """Runs the command line in this process with the toy bundle and a store folder of the test's own."""
    monkeypatch.setenv("EDGEALIGN_BUNDLE", toy_bundle.path)
    monkeypatch.setenv("EDGEALIGN_STORE", str(tmp_path / "stores"))

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["edgealign", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            app.main()
        sys.stdout.flush()
        captured = capfd.readouterr()
        return Ran(stopped.value.code or 0, captured.out, captured.err)

    return run
