"""The bundle and the clips that are shipped: whole, small, and doing what the demo says."""

from __future__ import annotations

import numpy as np
import pytest

from edgealign import Bundle, Recognizer, demo, golden
from edgealign.bundle import package_bundle


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return Bundle.open(package_bundle("speech"))


def test_it_is_whole_and_computes_here_what_it_computed_where_it_was_made(shipped: Bundle) -> None:
    shipped.verify()
    stages = golden.compare(shipped)
    assert {"front end", "word finding", "encoder int8", "encoder fp32", "tokenizer", "text encoder", "matching"} == {
        stage.stage for stage in stages
    }
    assert [stage for stage in stages if not stage.passed] == []


def test_it_is_small_and_says_where_it_comes_from(shipped: Bundle) -> None:
    files, manifest = shipped.manifest["files"], shipped.manifest
    names = (
        manifest["encoder"]["variants"]["int8"]["file"],
        manifest["text_encoder"]["file"],
        manifest["bank"]["file"],
    )
    assert sum(files[name]["bytes"] for name in names) <= 2.5e6
    assert manifest["license"] == "Apache-2.0" and manifest["attribution"]
    card = shipped.read("README.md").decode()
    for subject in ("license", "language", "tone", "minimal pair", "homophone"):
        assert subject in card.lower(), f"the model card says nothing about {subject}"


def test_the_demo_tells_words_apart_and_leaves_noise_unknown() -> None:
    result = demo.run(package_bundle("speech"))
    right, of_enrolled = result.share_right(enrolled=True)
    rejected, of_others = result.share_right(enrolled=False)
    assert len(result.labels) == 5 and of_enrolled >= 10 and of_others >= 10
    assert right >= 0.5 * of_enrolled  # chance is one in six
    assert rejected >= 0.75 * of_others
    noises = [query for query in result.queries if "noise" in query.file]
    assert noises and all(query.answer.label is None for query in noises)


@pytest.mark.parametrize("seconds", [0.3, 1, 5])
def test_silence_and_steady_noise_are_unknown(shipped: Bundle, tmp_path, seconds: float) -> None:
    recognizer = Recognizer(shipped, tmp_path / "words.store")
    recognizer.enroll(text="water", language="en")
    n_samples = int(16_000 * seconds)
    for level in (0, 1e-4, 0.05):
        noise = level * np.random.default_rng(0).normal(size=n_samples)
        assert recognizer.classify(noise, 16_000).label is None


def test_a_typed_word_is_closest_to_itself_in_its_spellings(shipped: Bundle) -> None:
    def encode(text: str, kind: str = "grapheme") -> np.ndarray:
        return shipped.encode_text(shipped.tokenizer.encode(text, kind, "en"))

    words = ("water", "seventeen", "elephant", "umbrella")
    pronounced = ("ˈwɔːtə", "ˌsɛvənˈtiːn", "ˈɛlɪfənt", "ʌmˈbrɛlə")
    similarities = np.array([[encode(word) @ encode(ipa, "ipa") for ipa in pronounced] for word in words])
    assert (similarities.argmax(axis=1) == np.arange(len(words))).all()
