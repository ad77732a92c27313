"""Which kinds of words are confused: python -m benchmarks.word_kinds makes rows for the model card.

Two words that differ in one respect are enrolled with five takes of one synthetic voice each and asked for by others;
a guess is right half of the time. The voices are espeak-ng variants that training did not hear. Needs `[train]`.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np

from benchmarks import rows
from edgealign.bundle import Bundle
from edgealign.machine import describe
from edgealign.recognizer import Recognizer
from edgealign.train.corpus import VALIDATION_VARIANTS
from edgealign.train.synthesis import SAMPLE_RATE_HZ, Espeak, Manner

# kind: (language, pairs of words)
KINDS = {
    "unlike words": ("en", "garden wizard, camel orange, window paper, basket tiger, coffee lemon, dragon pencil"),
    "one consonant, place": ("en", "pale tale, pin kin, bet debt, map mat, sick thick, fan than"),
    "one consonant, voicing": ("en", "pat bat, tip dip, cap gap, fan van, sip zip, leaf leave"),
    "one vowel": ("en", "bit bet, bad bed, cot cut, full fool, ship sheep, hat hot"),
    "vowel length": ("fi", "tuli tuuli, kisa kiisa, muta muuta, tapa tapaa, sika siika, vapa vapaa"),
    "consonant length": ("it", "pala palla, nono nonno, casa cassa, pena penna, sete sette, fato fatto"),
    "tone": ("cmn", "妈 马, 八 把, 书 树, 天 甜, 花 话, 汤 糖"),
    "homophones": ("en", "sea see, flour flower, son sun, pair pear, knight night, tale tail"),
}
N_TAKES = 5


def takes(espeak: Espeak, language: str, text: str, voice: str, rng: random.Random) -> list[np.ndarray]:
    """N_TAKES renderings of a word by one voice, which keeps its pitch and varies its tempo, in light noise."""
    pitch, noise = rng.randint(25, 75), np.random.default_rng(rng.getrandbits(32))
    clips = []
    for _ in range(N_TAKES):
        espeak.set_voice(language, Manner(voice, rng.randint(130, 190), pitch, 50))
        said = np.pad(espeak.say(text), SAMPLE_RATE_HZ // 5)
        clips.append(said + noise.normal(0, 0.003, len(said)).astype(np.float32))
    return clips


def accuracy(recognizer: Recognizer, espeak: Espeak, language: str, pairs: list[list[str]]) -> tuple[float, float, int]:
    """Share of right answers in percent over pairs and enrolled voices, half-width of its 95 % interval, episodes."""
    right = []
    for number, pair in enumerate(pairs):
        rng = random.Random(number)
        said = {
            voice: [
                np.stack([recognizer.embed(clip, SAMPLE_RATE_HZ) for clip in takes(espeak, language, word, voice, rng)])
                for word in pair
            ]
            for voice in VALIDATION_VARIANTS
        }
        for voice, support in said.items():
            prototypes = np.stack([x.mean(axis=0) / np.linalg.norm(x.mean(axis=0)) for x in support])
            asked = [(x, slot) for other, words in said.items() if other != voice for slot, x in enumerate(words)]
            right.append(np.mean([((x @ prototypes.T).argmax(axis=1) == slot).mean() for x, slot in asked]))
    return 100 * np.mean(right), 196 * np.std(right, ddof=1) / np.sqrt(len(right)), len(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="folder of a bundle; the shipped one without it")
    parser.add_argument("--rows", type=Path, default=rows.FOLDER / "word_kinds.jsonl", help="JSONL file to replace")
    arguments = parser.parse_args()
    bundle, espeak = Bundle.open(arguments.bundle), Espeak()
    recognizer = Recognizer(bundle)
    made = []
    for kind, (language, listed) in KINDS.items():
        mean, ci95, n = accuracy(recognizer, espeak, language, [pair.split() for pair in listed.split(", ")])
        made.append({
            "what": "word kinds", "kind": kind, "language": language, "mean": round(mean, 1), "ci95": round(ci95, 1),
            "episodes": n, "pairs": listed, "bundle": bundle.encoder_sha256, "machine": describe(),
            "commit": rows.commit(), "command": rows.command("word_kinds"),
        })  # fmt: skip
        print(f"{kind:24} {language:4} {mean:5.1f} ± {ci95:.1f}", flush=True)
    rows.replace(arguments.rows, made, ())


if __name__ == "__main__":
    main()
