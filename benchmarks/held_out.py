"""The bundle that can be asked for recorded words: the shipped one knows those of all packs, from its last training.

`bundles/held_out` is of the weights that this training began with and knows no test word of any pack. Its text encoder
did not read these words either; `bundles/reader.onnx` read all words of the word lists, as the shipped one did.
README.md says how they were made.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edgealign import Bundle
from edgealign.errors import EdgealignError, InvalidInput
from edgealign.train.corpus import EVALUATION_PACKS

FOLDER = Path(__file__).parent / "bundles"
KNOWS_NO_TEST_WORD = FOLDER / "held_out"

READ = ("fsdd", "dspspeech20")  # packs whose words bundles/reader.onnx read


def bundle_for(pack: str) -> Path | None:
    """What `pack` is asked of; None for the shipped bundle, where that does not know the pack."""
    return KNOWS_NO_TEST_WORD if pack in EVALUATION_PACKS else None


def open_unheard(path: Path | None, packs: Iterable[str]) -> Bundle:
    """A bundle that may be asked for the packs; the process ends with a sentence where it may not."""
    try:
        bundle = Bundle.open(path)
        expect_unheard(bundle, packs)
    except EdgealignError as error:
        raise SystemExit(f"error: {error}") from None
    return bundle


def reader_of(bundle: Bundle) -> Path | None:
    """The text encoder that read all words, for the speech encoder of bundles/held_out; None for another bundle."""
    return FOLDER / "reader.onnx" if Path(bundle.path) == KNOWS_NO_TEST_WORD else None


def expect_unheard(bundle: Bundle, packs: Iterable[str]) -> None:
    """InvalidInput where training heard the test words of a pack: whatever was right would mean nothing."""
    for name in packs:
        about = EVALUATION_PACKS.get(name)
        if about and about.attribution(about.whole) in bundle.manifest["attribution"]:
            raise InvalidInput(
                f"the bundle was trained on all of {name}, its test words included: measure one whose training left "
                f"them out, benchmarks/README.md says how to make it"
            )
