"""Few-shot accuracy on real recordings of words and speakers that training never met.

    python -m benchmarks.fewshot

Every method answers the same saved episodes. Rivals and encoders are run once per clip and cached, so that a new
bundle is measured in minutes. benchmarks/README.md explains conditions, cache and rows.
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile

from benchmarks import episodes, held_out, rivals, rows
from benchmarks.episodes import Clip, Episode
from edgealign import Bundle, kernels, machine
from edgealign.train.words import DIGITS
from edgealign.words import find_word

README = "benchmarks/README.md"
SPLITS = Path(__file__).parent / "splits"
PACKS = ("fsdd", "arabic_sc", "dspspeech20", "czech_synthetic")
CELLS = (("same speaker", 1), ("same speaker", 5), ("other speaker", 1), ("other speaker", 5), ("several speakers", 3))
MIN_EPISODES = 600
OPEN_SET_SHOTS = (1, 5)
OPEN_SET_OTHERS = 15  # noises, and silences, asked in each episode
OURS = "edgealign "  # how the names of the bundle's methods begin; the variant follows

TRAINING_LICENSES = ("CC0", "CC-BY", "MIT", "BSD")  # esc50 rows with another license can be in no shipped bank


@dataclass(frozen=True)
class Pack:
    """The test clips of one split file with their samples (float32, mono, 16 kHz)."""

    name: str
    clips: list[Clip]
    samples: list[np.ndarray]
    split_sha256: str


@dataclass(frozen=True)
class Answers:
    """What one method says about all clips of a pack, before any episode.

    Exactly one of the two is set.
    embeddings  float32 [n_clips, dim]; a zero row where no word was found
    distances   float32 [n_clips, n_clips]
    centered    whether the mean of the support is subtracted before anything else
    """

    embeddings: np.ndarray | None = None
    distances: np.ndarray | None = None
    centered: bool = False


def label_text(pack: str, label: str) -> tuple[str, str] | None:
    """The written word of a label and its language; None where the pack names its labels by translations only."""
    if pack == "fsdd":
        return DIGITS[int(label)], "en"
    if pack == "dspspeech20":
        return label, "en" if label.isascii() else "cmn"
    if pack == "czech_synthetic":
        return label, "cs"
    return None


def read_samples(path: Path) -> np.ndarray:
    samples, sample_rate_hz = soundfile.read(path, dtype="float32")
    if sample_rate_hz != rivals.SAMPLE_RATE_HZ or samples.ndim != 1:
        raise ValueError(f"'{path}' is not mono at {rivals.SAMPLE_RATE_HZ} Hz: the packs are, so this is no pack")
    return samples


def read_pack(name: str, folders: Sequence[Path]) -> Pack:
    """The test clips of a split; each of its packs is taken from the first folder that has it."""
    split = SPLITS / f"{name}.tsv"
    clips = episodes.read_split(split, "test")
    places = {}
    for pack in {clip.pack for clip in clips}:
        places[pack] = next((folder / pack for folder in folders if (folder / pack).is_dir()), None)
        if places[pack] is None:
            raise FileNotFoundError(f"no pack '{pack}' in {' or '.join(map(repr, map(str, folders)))}: see {README}")
    samples = [read_samples(places[clip.pack] / clip.file) for clip in clips]
    return Pack(name, clips, samples, hashlib.sha256(split.read_bytes()).hexdigest())


def read_noises(data: Path) -> list[np.ndarray]:
    """Sounds that are no words: the clips of esc50 whose license keeps them out of shipped bundles."""
    with (data / "esc50" / "manifest.tsv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    files = [row["file"] for row in table if row["licence"] not in TRAINING_LICENSES]
    return [read_samples(data / "esc50" / file) for file in files]


def silences(seed: int, n: int = 30) -> list[np.ndarray]:
    """One-second clips without a sound: digital silence, white noise at -80 to -30 dB, mains hum."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(rivals.SAMPLE_RATE_HZ) / rivals.SAMPLE_RATE_HZ
    clips = [np.zeros(len(seconds))]
    for level_db in rng.uniform(-80, -30, size=n - 1):
        noise = rng.standard_normal(len(seconds))
        hum = np.sqrt(2) * np.sin(2 * np.pi * 50 * seconds + rng.uniform(0, 6.28))
        clips.append(10 ** (level_db / 20) * (noise + rng.integers(0, 2) * hum))
    return [clip.astype(np.float32) for clip in clips]


class Cache:
    """Arrays by name and by everything that decides about them; written once, read ever after."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str, depends_on: Sequence[str], make: Callable[[], np.ndarray]) -> np.ndarray:
        digest = hashlib.sha256("\n".join(depends_on).encode()).hexdigest()[:16]
        path = self.folder / f"{name}-{digest}.npy"
        if path.exists():
            return np.load(path, allow_pickle=False)
        started = time.perf_counter()
        array = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, array)
        os.replace(partial, path)
        print(f"{name}: {array.shape} in {time.perf_counter() - started:.1f} s", file=sys.stderr)
        return array


def _source_sha256(module: object) -> str:
    """Hash of what a module's source means; comments and layout do not count."""
    source = Path(module.__file__).read_text(encoding="utf-8")
    return hashlib.sha256(ast.dump(ast.parse(source)).encode()).hexdigest()


def rival_answers(pack: Pack, cache: Cache, openwakeword: Path) -> dict[str, Answers]:
    """The methods that edgealign is compared with; they change only with benchmarks/rivals.py."""
    decisive = (pack.split_sha256, _source_sha256(rivals))

    def stacked(embed: Callable[[np.ndarray], np.ndarray]) -> Callable[[], np.ndarray]:
        return lambda: np.stack([embed(samples) for samples in pack.samples])

    def dtw() -> np.ndarray:
        return rivals.dtw_matrix([rivals.mfcc(samples) for samples in pack.samples])

    def oww() -> np.ndarray:
        return stacked(rivals.OpenWakeWord(openwakeword).embed)()

    return {
        "openWakeWord": Answers(cache.get(f"openwakeword-{pack.name}", decisive, oww), centered=True),
        "MFCC + DTW": Answers(distances=cache.get(f"dtw-{pack.name}", decisive, dtw)),
        "log-mel statistics": Answers(cache.get(f"log-mel-{pack.name}", decisive, stacked(rivals.log_mel_statistics))),
    }


def embed_word(bundle: Bundle, samples: np.ndarray) -> np.ndarray:
    """Embedding of the clearest word of a clip, found as the runtime finds it; zeros [dim] where there is none."""
    word = find_word(iter([samples]), bundle.front_end, bundle.windows, bundle.filters)
    if word is None:
        return np.zeros(bundle.dim, dtype=np.float32)
    return bundle.encode(word.log_mels[None])[0]


def bundle_embeddings(bundle: Bundle, name: str, clips: list[np.ndarray], decisive: str, cache: Cache) -> np.ndarray:
    """float32 [n_clips, dim], cached by the fingerprint of the bundle."""
    return cache.get(
        f"edgealign-{bundle.variant}-{name}",
        (bundle.encoder_sha256, bundle.variant, kernels.backend(), decisive),
        lambda: np.stack([embed_word(bundle, samples) for samples in clips]),
    )


def text_embeddings(bundle: Bundle, pack: str, labels: Sequence[str]) -> np.ndarray | None:
    """float32 [n_labels, dim], or None where the bundle or the pack has no texts."""
    texts = [label_text(pack, label) for label in labels]
    if "text" not in bundle.sources or None in texts:
        return None
    return np.stack([bundle.encode_text(bundle.tokenizer.encode(text, language=language)) for text, language in texts])


def read_text_embeddings(bundle: Bundle, pack: str, labels: Sequence[str]) -> np.ndarray | None:
    """The same by a text encoder that read all words of the word lists, those of the pack too; its teacher is the same
    speech encoder, which did not hear them. None where there is none."""
    texts, path = [label_text(pack, label) for label in labels], held_out.reader_of(bundle)
    if path is None or None in texts or pack not in held_out.READ:
        return None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    shipped = Bundle.open().tokenizer
    tokenizer = replace(
        bundle.tokenizer, pronunciations=shipped.pronunciations, characters=shipped.characters,
        unstated=shipped.unstated,
    )  # fmt: skip
    inputs = [tokenizer.encode(text, language=language).inputs for text, language in texts]
    return np.concatenate([session.run(None, one)[0] for one in inputs])


def episode_distances(answers: Answers, episode: Episode, text: np.ndarray | None, text_weight: float) -> np.ndarray:
    """Distance of each query to each label: float [n_queries, n_way].

    Embeddings: cosine distance to the prototypes of `edgealign.kernels`; a pairwise method: to the nearest recording.
    text  float32 [n_way, dim] joins the prototypes with its weight; with text_weight = inf it is the whole prototype.
    """
    if answers.distances is not None:
        return answers.distances[episode.queries][:, episode.support].min(axis=2)
    n_way, n_shot = episode.support.shape
    support, queries = answers.embeddings[episode.support.ravel()], answers.embeddings[episode.queries]
    if answers.centered:
        center = support.mean(axis=0)
        support, queries = support - center, queries - center
    labels, weights = np.repeat(np.arange(n_way), n_shot), np.ones(n_way * n_shot)
    if text is not None and np.isinf(text_weight):
        prototypes = text
    elif text is not None:
        labels, weights = np.append(labels, np.arange(n_way)), np.append(weights, np.full(n_way, text_weight))
        prototypes = kernels.prototypes(np.concatenate([support, text]), labels, n_way, weights)
    else:
        prototypes = kernels.prototypes(support, labels, n_way, weights)
    return kernels.cosine(queries, prototypes)


def accuracies(
    answers: Answers, drawn: Sequence[Episode], texts: dict[str, np.ndarray] | None = None, text_weight: float = 0.0
) -> np.ndarray:
    """Share of right answers in each episode: float64 [n_episodes]. The first of several nearest labels is the answer.

    A query in which no word was found is wrong.
    texts  label -> float32 [dim]
    """
    shares = np.empty(len(drawn))
    for i, episode in enumerate(drawn):
        text = None if texts is None else np.stack([texts[label] for label in episode.labels])
        right = episode_distances(answers, episode, text, text_weight).argmin(axis=1) == episode.query_labels
        if answers.embeddings is not None:
            right &= answers.embeddings[episode.queries].any(axis=1)
        shares[i] = right.mean()
    return shares


@dataclass(frozen=True)
class Measured:
    """Per-episode shares of one method under one condition, in [0, 1].

    measure  what is counted: "right", or one of the open set's
    """

    condition: str
    k: int
    method: str
    measure: str
    shares: np.ndarray
    way: int
    episodes_sha256: str
    seconds: float


def measure_pack(
    pack: Pack, methods: dict[str, Answers], bundle: Bundle | None, n_episodes: int, seed: int, folder: Path
) -> list[Measured]:
    """All methods on the same episodes of one pack; with texts where pack and bundle have them.

    A condition that the pack has too few clips for is told and left out.
    "text" and "read text" ask the queries of "other speaker", k = 1, without its support, so that all are paired.
    """
    measured: list[Measured] = []
    texts = {} if bundle is None else _texts_by_label(pack, bundle)
    able = [method for method in methods if method.startswith(OURS)]
    for condition, k in CELLS:
        try:
            drawn = episodes.draw(pack.clips, condition, k, n_episodes, seed)
        except episodes.TooFewClips as error:
            print(f"{pack.name}, {condition}, k={k} has no rows: {error}", file=sys.stderr)
            continue
        sha256 = episodes.save(pack.clips, drawn, folder)
        asked = [(condition, k, method, None, 0.0) for method in methods]
        for name, of_label in texts.items():
            asked += [(f"{condition} with {name}", k, method, of_label, bundle.text_weight) for method in able]
            if (condition, k) == ("other speaker", 1):
                asked += [(name, 0, method, of_label, np.inf) for method in able]
        for name, n_shot, method, text, weight in asked:
            started = time.perf_counter()
            shares = accuracies(methods[method], drawn, text, weight)
            seconds = time.perf_counter() - started
            measured.append(Measured(name, n_shot, method, "right", shares, len(drawn[0].labels), sha256, seconds))
    return measured


def measure_open_set(
    pack: Pack, embeddings: np.ndarray, bundle: Bundle, others: dict[str, np.ndarray], n_episodes: int, seed: int,
    folder: Path,
) -> list[Measured]:  # fmt: skip
    """Answers of the shipped calibration to enrolled words, never-enrolled words and no words at all.

    embeddings  float32 [n_clips, dim]
    others      name of a kind of sound -> float32 [n, dim]; OPEN_SET_OTHERS of each are drawn for an episode

    "open set, text" and "open set, read text" ask the queries of "open set", k = 1, of labels that have a text in place
    of its support.
    """
    texts = _texts_by_label(pack, bundle)
    measured = []
    for k in OPEN_SET_SHOTS:
        drawn = episodes.draw(pack.clips, "open set", k, n_episodes, seed)
        sha256 = episodes.save(pack.clips, drawn, folder)
        asked = [("open set", k, None)]
        if k == 1:
            asked += [(f"open set, {name}", 0, of_label) for name, of_label in texts.items()]
        for condition, n_shot, text in asked:
            started = time.perf_counter()
            shares = open_set_shares(drawn, embeddings, bundle, others, text, seed)
            seconds = time.perf_counter() - started
            method, way = f"{OURS}{bundle.variant}", len(drawn[0].labels)
            measured += [
                Measured(condition, n_shot, method, measure, np.array(values), way, sha256, seconds)
                for measure, values in shares.items()
            ]
    return measured


def open_set_shares(
    drawn: Sequence[Episode], embeddings: np.ndarray, bundle: Bundle, others: dict[str, np.ndarray],
    texts: dict[str, np.ndarray] | None, seed: int,
) -> dict[str, list[float]]:  # fmt: skip
    """What is counted -> its share in each episode; see measure_open_set.

    texts   label -> float32 [dim], all that is enrolled; None: the support is
    """
    rng = np.random.default_rng(seed)
    shares: dict[str, list[float]] = {"enrolled right": [], "never enrolled accepted": []}
    shares |= {f"{name} accepted": [] for name in others}
    for episode in drawn:
        matcher = _matcher(bundle, episode, embeddings, texts)

        def answers(rows_: np.ndarray, matcher: kernels.Matcher = matcher) -> np.ndarray:
            """Label number of each row, -1 for unknown."""
            matches = [matcher.classify(row, 1)[0] if row.any() else None for row in rows_]
            return np.array([match.label if match is not None and match.accepted else -1 for match in matches])

        given = answers(embeddings[episode.queries])
        enrolled = episode.query_labels >= 0
        shares["enrolled right"].append((given == episode.query_labels)[enrolled].mean())
        shares["never enrolled accepted"].append((given >= 0)[~enrolled].mean())
        for name, rows_ in others.items():
            chosen = rows_[rng.choice(len(rows_), OPEN_SET_OTHERS, replace=False)]
            shares[f"{name} accepted"].append((answers(chosen) >= 0).mean())
    return shares


def _texts_by_label(pack: Pack, bundle: Bundle) -> dict[str, dict[str, np.ndarray]]:
    """ "text" and "read text", where there are such -> label -> float32 [dim]."""
    labels = sorted({clip.label for clip in pack.clips})
    embedded = {
        "text": text_embeddings(bundle, pack.name, labels),
        "read text": read_text_embeddings(bundle, pack.name, labels),
    }
    return {name: dict(zip(labels, x, strict=True)) for name, x in embedded.items() if x is not None}


def _matcher(
    bundle: Bundle, episode: Episode, embeddings: np.ndarray, texts: dict[str, np.ndarray] | None
) -> kernels.Matcher:
    """What classify would answer from after enrolling the support, less the clips in which there is no word, as enroll
    does; or the texts alone."""
    n_way, n_shot = episode.support.shape
    if texts is None:
        support, labels = embeddings[episode.support.ravel()], np.repeat(np.arange(n_way), n_shot)
    else:
        support, labels = np.stack([texts[label] for label in episode.labels]), np.arange(n_way)
    found = support.any(axis=1)
    kinds = np.full(found.sum(), kernels.RECORDING if texts is None else kernels.TEXT)
    return kernels.Matcher(
        support[found], labels[found], kinds, n_way, bundle.bank, bundle.calibration, bundle.text_weight or 1.0
    )


def to_rows(pack: Pack, measured: list[Measured], compared: Sequence[tuple[str, str]], common: dict) -> list[dict]:
    """One row per measured mean, and one per paired difference on the same episodes. All in percent.

    compared  pairs of methods; what the text adds is told for the first method of the first pair
    """
    made = []

    def add(what: str, one: Measured, shares: np.ndarray, **more: object) -> None:
        mean, ci95 = episodes.mean_and_ci95(100 * shares)
        made.append(
            {
                "what": what, "pack": pack.name, "condition": one.condition, "k": one.k, "way": one.way,
                "method": one.method, **more, "measure": one.measure, "mean": round(mean, 3), "ci95": round(ci95, 3),
                "episodes": len(shares), "episodes_sha256": one.episodes_sha256, "split_sha256": pack.split_sha256,
                **common, "seconds": round(one.seconds, 3),
            }
        )  # fmt: skip

    by_key = {(one.condition, one.k, one.method, one.measure): one for one in measured}
    for one in measured:
        add("fewshot", one, one.shares)
    for method, other in compared:
        for one in measured:
            rival = by_key.get((one.condition, one.k, other, one.measure))
            if one.method == method and rival is not None:
                add("fewshot difference", one, one.shares - rival.shares, minus=other)
    for one in measured:
        bare, _, text = one.condition.partition(" with ")
        if text and one.method == compared[0][0]:
            without = by_key[bare, one.k, one.method, one.measure]
            add("fewshot difference", one, one.shares - without.shares, minus="without text")
    return made


def measure(
    bundle_path: str | Path | None, data: Path, cache_folder: Path, packs: Sequence[str], n_episodes: int, seed: int,
    with_bundle: bool = True,
) -> list[dict]:  # fmt: skip
    """All rows of packs that one bundle is asked for."""
    cache = Cache(cache_folder / "embeddings")
    variants: dict[str, Bundle] = {}
    if with_bundle:
        first = held_out.open_unheard(bundle_path, packs)
        others = [name for name in first.manifest["encoder"]["variants"] if name != first.variant]
        variants = {name: Bundle.open(bundle_path, variant=name) for name in (first.variant, *others)}
    default = next(iter(variants.values()), None)
    names = [f"{OURS}{name}" for name in variants]
    compared = [(name, "openWakeWord") for name in names[:1]] + [(names[0], name) for name in names[1:]]
    common = {
        "seed": seed,
        "bundle": default.encoder_sha256 if default else None,
        "machine": machine.describe(),
        "commit": rows.commit(),
        "command": rows.command("fewshot"),
    }
    sounds: dict[str, np.ndarray] = {}
    if default:
        noises, quiet = read_noises(data), silences(seed)
        source = _source_sha256(sys.modules[__name__])
        sounds["noises"] = bundle_embeddings(default, "noises", noises, source, cache)
        sounds["silences"] = bundle_embeddings(default, "silences", quiet, f"{source} {seed}", cache)

    made: list[dict] = []
    for name in packs:
        pack = read_pack(name, (data, cache_folder / "packs"))
        methods = {
            f"{OURS}{variant}": Answers(bundle_embeddings(bundle, name, pack.samples, pack.split_sha256, cache))
            for variant, bundle in variants.items()
        }
        methods |= rival_answers(pack, cache, cache_folder / rivals.OPENWAKEWORD)
        folder = cache_folder / "episodes"
        measured = measure_pack(pack, methods, default, n_episodes, seed, folder)
        if default:
            embeddings = methods[names[0]].embeddings
            measured += measure_open_set(pack, embeddings, default, sounds, n_episodes, seed, folder)
        made += to_rows(pack, measured, compared, common)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fewshot", description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", help="folder of a bundle; default: for each pack one that does not know its words")
    parser.add_argument("--rivals-only", action="store_true", help="measure no bundle")
    parser.add_argument("--packs", nargs="+", default=PACKS, help="names of files in benchmarks/splits")
    parser.add_argument("--episodes", type=int, default=MIN_EPISODES, help="episodes per condition")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=os.environ.get("EDGEALIGN_DATA"), help="$EDGEALIGN_DATA")
    parser.add_argument("--cache", type=Path, default=rows.default_cache(), help="for embeddings, episodes and rivals")
    parser.add_argument("--rows", type=Path, default=rows.FOLDER / "fewshot.jsonl", help="JSONL file to update")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("where the packs are is not known: set EDGEALIGN_DATA or give --data")
    made = []
    for pack in arguments.packs:
        made += measure(
            arguments.bundle or held_out.bundle_for(pack), arguments.data, arguments.cache, [pack], arguments.episodes,
            arguments.seed, not arguments.rivals_only,
        )  # fmt: skip
    rows.replace(arguments.rows, made, ("pack",))
    for row in made:
        name = f"{row['method']} - {row['minus']}" if "minus" in row else row["method"]
        print(f"{row['pack']:16} {row['condition']:24} k={row['k']} {name:36} {row['measure']:24} "
              f"{row['mean']:6.2f} ± {row['ci95']:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
