"""Bundles that can be asked for recorded words: the shipped one knows those of all packs, from its last training.

`bundles/held_out` is of the weights that this training began with and knows no test word of any pack;
`bundles/without_digits` went through the same training without fsdd. README.md says how they were made.

    python -m benchmarks.held_out --corpus FOLDER

fits the decision of `bundles/held_out` anew, on the validation words of a corpus. `edgealign export` cannot make this
bundle again: its weights were trained on words that were rendered earlier and are gone.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from edgealign import Bundle
from edgealign.bundle import GOLDEN, MANIFEST, write_bundle
from edgealign.errors import EdgealignError, InvalidInput
from edgealign.train.corpus import EVALUATION_PACKS

FOLDER = Path(__file__).parent / "bundles"
KNOWS_NO_TEST_WORD = FOLDER / "held_out"
WEIGHTS = Path("export/weights/text-to-speech-held-out.pt")
COMPUTED = ("format", "format_version", "files", "fingerprint")  # of a manifest, by write_bundle
_BUNDLES = {"arabic_sc": KNOWS_NO_TEST_WORD, "dspspeech20": KNOWS_NO_TEST_WORD, "fsdd": FOLDER / "without_digits"}


def bundle_for(pack: str) -> Path | None:
    """What `pack` is asked of; None for the shipped bundle, where that does not know the pack."""
    return _BUNDLES.get(pack)


def open_unheard(path: Path | None, packs: Iterable[str]) -> Bundle:
    """A bundle that may be asked for the packs; the process ends with a sentence where it may not."""
    try:
        bundle = Bundle.open(path)
        expect_unheard(bundle, packs)
    except EdgealignError as error:
        raise SystemExit(f"error: {error}") from None
    return bundle


def expect_unheard(bundle: Bundle, packs: Iterable[str]) -> None:
    """InvalidInput where training heard the test words of a pack: whatever was right would mean nothing."""
    for name in packs:
        about = EVALUATION_PACKS.get(name)
        if about and about.attribution(about.whole) in bundle.manifest["attribution"]:
            raise InvalidInput(
                f"the bundle was trained on all of {name}, its test words included: measure one whose training left "
                f"them out, benchmarks/README.md says how to make it"
            )


def main() -> None:
    from edgealign.export import graph, speech
    from edgealign.train.batches import Batches
    from edgealign.train.config import TrainConfig
    from edgealign.train.corpus import Corpus

    parser = argparse.ArgumentParser(prog="python -m benchmarks.held_out", description="fit its decision anew")
    parser.add_argument("--corpus", type=Path, required=True, help="rendered by `edgealign train text-to-speech`")
    arguments = parser.parse_args()
    bundle, corpus = Bundle.open(KNOWS_NO_TEST_WORD), Corpus(arguments.corpus)
    weights = graph.Checkpoint.load(WEIGHTS)
    settings = TrainConfig(encoders=weights.encoders.config, left_out=weights.left_out)
    clips = speech.Clips(corpus, Batches(corpus, weights.vocabulary, settings), seed=11)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        shutil.copytree(KNOWS_NO_TEST_WORD, source, ignore=shutil.ignore_patterns(MANIFEST, GOLDEN))
        embed = speech.runner_of((source / "encoder.onnx").read_bytes(), "log_mel")
        embed_tokens = speech.runner_of((source / "text_encoder.onnx").read_bytes(), "tokens")
        fitted = speech.fit_decision(clips, embed, embed_tokens, bundle.bank, print)
        fields = {name: value for name, value in bundle.manifest.items() if name not in COMPUTED} | {
            "calibration": fitted
        }
        write_bundle(
            KNOWS_NO_TEST_WORD, source, golden_samples=speech.golden_clips(), golden_texts=speech.GOLDEN_TEXTS, **fields
        )


if __name__ == "__main__":
    main()
