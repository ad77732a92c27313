"""The main path: clip -> word -> embedding, then into a store (enroll) or to its closest label (classify)."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgealign.audio import AudioArray, AudioFile, AudioSource
from edgealign.bundle import MODALITIES, Bundle
from edgealign.errors import (
    AudioUnreadable,
    BundleMismatch,
    EdgealignError,
    EnrollmentRefused,
    InputUnreadable,
    InvalidInput,
    StoreUnreadable,
    StoreUnwritable,
)
from edgealign.store import RECORDING, TEXT, Matcher, Store
from edgealign.words import SEARCH_WINDOW_S, Word, find_word, whole_sound

if TYPE_CHECKING:
    from edgealign.quality import LabelReport

MAX_CLIP_S = 3.0  # what the encoder was trained on; of anything longer only the clearest word is used
MAX_UNKNOWN_TEXT_SHARE = 0.5

AudioLike = str | os.PathLike | np.ndarray


@dataclass(frozen=True)
class Candidate:
    """A label, its cosine distance to the clip, and the probability that the clip is this label."""

    label: str
    distance: float
    probability: float


@dataclass(frozen=True)
class Answer:
    """What a clip was taken for.

    file         as it was given
    label        None is unknown
    probability  of the closest label; None, as are the distances, where no sound stands out of the clip
    distance     cosine distance to the closest label
    threshold    the largest distance at which the closest label would have been accepted
    accept_probability   from which on a label is accepted; the bundle says it
    runner_up    the second closest label, where there is one
    top          the closest labels, closest first, filled for unknowns too
    start_s, end_s   where in the clip the word was found
    reason       one sentence on why the answer is unknown
    warnings     one sentence each
    """

    file: str
    label: str | None
    probability: float | None
    distance: float | None
    threshold: float | None
    accept_probability: float
    runner_up: Candidate | None
    top: tuple[Candidate, ...]
    start_s: float | None
    end_s: float | None
    reason: str | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class EnrollReport:
    """labels that were touched, warnings of one sentence each, and what could not be learned from."""

    labels: tuple[LabelReport, ...]
    warnings: tuple[str, ...]
    failures: tuple[EdgealignError, ...]


@dataclass(frozen=True)
class _Sample:
    """One row on its way into the store."""

    label: str
    kind: int
    embedding: np.ndarray
    source_sha256: bytes
    name: str


class Recognizer:
    """Learns labels from a few clips or from text, and names clips.

    Threads: `classify` and `embed` may run in any number of threads on one Recognizer. `enroll` may run beside them:
    a classification sees the labels from before or from after it, never half. Two enrollments into one store, also by
    two processes, wait for each other and lose nothing. A Recognizer answers from the store as it was when it was
    opened or last enrolled; what other processes add is seen after opening again.
    """

    def __init__(self, bundle: Bundle, store_path: str | os.PathLike | None = None):
        """`Recognizer.open` with a bundle that is open already; the store is read when it is first needed."""
        self.bundle = bundle
        self.store_path = os.fspath(store_path if store_path is not None else default_store_path(bundle.modality))
        self._enrolling = threading.Lock()  # so that the store taken over last is the one saved last
        self._lock = threading.Lock()  # of the three fields below
        self._store: Store | None = None
        self._matcher: Matcher | None = None
        self._matcher_labels: list[str] = []

    @classmethod
    def open(
        cls,
        store: str | os.PathLike | None = None,
        bundle: str | os.PathLike | None = None,
        *,
        modality: str = "speech",
        device: str = "auto",
    ) -> Recognizer:
        """A recognizer over a store, which need not exist before the first enrollment.

        store   path of a file; default_store_path(modality) where None
        bundle  folder; the shipped one where None, see Bundle.open
        """
        return cls(Bundle.open(bundle, modality=modality, device=device), store)

    @property
    def store(self) -> Store:
        """The store that answers come from, for one thread at a time; StoreUnreadable before the first enrollment."""
        if self._store is None:
            if not os.path.lexists(self.store_path):
                raise StoreUnreadable(f"there is no store at '{self.store_path}': enroll clips first")
            store = Store.load(self.store_path)
            self._check_fits(store)
            self._store = store
        return self._store

    @property
    def accept_probability(self) -> float:
        """From which probability on a label is accepted, and below which a clip is unknown."""
        return 1 / (1 + math.exp(-self.bundle.calibration.accept_logit))

    def classify(
        self,
        audio: AudioLike,
        sample_rate_hz: float | None = None,
        *,
        channel: int | None = None,
        top_k: int = 5,
    ) -> Answer:
        """The label of a clip, or unknown.

        audio   path, or samples [n] or [n, n_channels] with their rate: floating point in [-1, 1] or integers
        channel   counts from 1; the mean of all where None
        raises  InputUnreadable and AudioUnreadable for what is no clip, StoreUnreadable without labels
        """
        if top_k < 1:
            raise InvalidInput(f"top_k is {top_k}: expected at least 1")
        self.current_matcher()
        source = _open_source(audio, sample_rate_hz, channel)
        word = self._find_word(source)
        if word is None:
            return Answer(
                source.name,
                None,
                None,
                None,
                None,
                self.accept_probability,
                None,
                (),
                None,
                None,
                _no_sound(source),
                (),
            )
        return self.name_word(source.name, word, top_k, tuple(_word_warnings(source, word)))

    def name_word(self, file: str, word: Word, top_k: int = 5, warnings: tuple[str, ...] = ()) -> Answer:
        """The label of a word that was found in `file`, or unknown; StoreUnreadable without labels."""
        matcher, labels = self.current_matcher()
        embedding = self.bundle.encode(word.log_mels[None])[0]
        matches = matcher.classify(embedding, max(top_k, 2))
        candidates = tuple(Candidate(labels[m.label], m.distance, m.probability) for m in matches)
        best = matches[0]
        reason = None
        if not best.accepted:
            reason = (
                f"the closest label '{candidates[0].label}' is {best.distance:.3f} away, beyond its threshold of "
                f"{best.threshold:.3f}"
            )
        return Answer(
            file,
            candidates[0].label if best.accepted else None,
            best.probability,
            best.distance,
            best.threshold,
            self.accept_probability,
            candidates[1] if len(candidates) > 1 else None,
            candidates[:top_k],
            word.start_s,
            word.end_s,
            reason,
            warnings,
        )

    def embed(self, audio: AudioLike, sample_rate_hz: float | None = None, *, channel: int | None = None) -> np.ndarray:
        """The embedding of a clip's clearest word: float32 [dim], of unit length.

        AudioUnreadable where no sound stands out of it.
        """
        source = _open_source(audio, sample_rate_hz, channel)
        word = self._find_word(source)
        if word is None:
            raise AudioUnreadable(_no_sound(source))
        return self.bundle.encode(word.log_mels[None])[0]

    def enroll(
        self,
        sources: AudioLike | Iterable[AudioLike] = (),
        *,
        label: str | None = None,
        text: str | None = None,
        ipa: str | None = None,
        language: str | None = None,
        sample_rate_hz: float | None = None,
        channel: int | None = None,
        tables: Iterable[str | os.PathLike] = (),
        tier: str | None = None,
    ) -> EnrollReport:
        """Adds recordings, a text, or both, as one operation that one undo takes back.

        sources   files, folders (see `sources.collect_clips`), or arrays with their sample_rate_hz and a label; with
                  tables, the recordings that these are about (see `excerpts.collect_excerpts`)
        tables, tier   files of annotations, and which tier of EAF and TextGrid: every annotation is a clip
        label     for all of them; without it the folder names are the labels, or the text is
        text, ipa   the word as it is written, or as it is pronounced
        language  BCP 47 tag of text or ipa, such as "sw"; optional
        raises    InputUnreadable where no source can be read, EnrollmentRefused where none is good enough, and both
                  leave the store as it was; what fails beside others that succeed is listed in the report
        """
        # Imported here because classify, which has to start fast, needs neither.
        from edgealign.quality import Quality
        from edgealign.sources import checked_label

        if text is not None and ipa is not None:
            raise InvalidInput("both text and ipa were given: enroll the same word twice, once with each")
        typed = text if text is not None else ipa
        label = label if label is not None else typed
        label = None if label is None else checked_label(label)
        warnings: list[str] = []
        failures: list[EdgealignError] = []
        tables = list(tables)
        if tables:
            samples = list(self._learn_excerpts(sources, tables, tier, label, channel, failures))
        else:
            samples = list(self._learn_recordings(sources, label, sample_rate_hz, channel, warnings, failures))
        if typed is not None and label is not None:
            kind = "grapheme" if text is not None else "ipa"
            samples.append(self._learn_text(typed, kind, language, label, warnings))
        if not samples:
            raise _nothing_learned(failures)
        with self._enrolling:
            store, counts = self._add(samples)
            quality = Quality.of(store, self.bundle.calibration, self.bundle.text_weight, list(counts))
            with self._lock:
                self._store, self._matcher = store, None
        return EnrollReport(
            tuple(quality.report(label, *count) for label, count in counts.items()),
            (*warnings, *quality.outliers(), *quality.confusable_labels()),
            tuple(failures),
        )

    def _learn_recordings(
        self,
        sources: AudioLike | Iterable[AudioLike],
        label: str | None,
        sample_rate_hz: float | None,
        channel: int | None,
        warnings: list[str],
        failures: list[EdgealignError],
    ) -> Iterable[_Sample]:
        from edgealign.sources import collect_clips

        if isinstance(sources, (str, os.PathLike, np.ndarray)):
            sources = [sources]
        sources = list(sources)
        paths = [source for source in sources if not isinstance(source, np.ndarray)]
        arrays = [source for source in sources if isinstance(source, np.ndarray)]
        if arrays and label is None:
            raise InvalidInput("samples without a label: say which label they are of")
        collected = collect_clips(paths, label)
        warnings += collected.notes
        failures += collected.problems
        todo: list[tuple[str, AudioLike]] = [(clip.label, clip.path) for clip in collected.clips]
        todo += [(label, samples) for samples in arrays if label is not None]
        for clip_label, audio in todo:
            try:
                source = _open_source(audio, sample_rate_hz if isinstance(audio, np.ndarray) else None, channel)
                word = self._find_word(source, hashed=True)
                if word is None:
                    raise EnrollmentRefused(f"{_no_sound(source)}: record it closer or louder")
            except (InputUnreadable, EnrollmentRefused) as error:
                failures.append(error)
                continue
            warnings += _word_warnings(source, word)
            embedding = self.bundle.encode(word.log_mels[None])[0]
            name = os.path.basename(source.name)
            yield _Sample(clip_label, RECORDING, embedding, bytes.fromhex(source.sha256), name)

    def _learn_excerpts(
        self,
        sources: AudioLike | Iterable[AudioLike],
        tables: Sequence[str | os.PathLike],
        tier: str | None,
        label: str | None,
        channel: int | None,
        failures: list[EdgealignError],
    ) -> Iterable[_Sample]:
        from edgealign.audio import AudioExcerpt
        from edgealign.excerpts import collect_excerpts

        recordings = [sources] if isinstance(sources, (str, os.PathLike, np.ndarray)) else list(sources)
        if any(isinstance(recording, np.ndarray) for recording in recordings):
            raise InvalidInput("samples and a table were given: a table is about files")
        excerpts, problems = collect_excerpts(tables, [os.fspath(path) for path in recordings], tier, label)
        failures += problems
        bundle = self.bundle
        pad_s = bundle.front_end.seconds(bundle.windows.pad_frames)
        for excerpt in excerpts:
            try:
                heard_channel = excerpt.channel if channel is None else channel
                source = AudioExcerpt(excerpt.path, excerpt.start_s, excerpt.end_s, heard_channel, pad_s)
                blocks = source.blocks(bundle.front_end.sample_rate_hz)
                frames = whole_sound(blocks, bundle.front_end, bundle.windows, bundle.filters)
            except InputUnreadable as error:
                failures.append(error)
                continue
            if frames is None:
                failures.append(EnrollmentRefused(f"no sound stands out of '{source.name}'"))
                continue
            name = f"{os.path.basename(excerpt.path)} {excerpt.start_s:.3f}-{excerpt.end_s:.3f} s"
            embedding = bundle.encode(frames[None])[0]
            yield _Sample(excerpt.label, RECORDING, embedding, bytes.fromhex(source.sha256), name)

    def _learn_text(self, text: str, kind: str, language: str | None, label: str, warnings: list[str]) -> _Sample:
        tokens = self.bundle.tokenizer.encode(text, kind, language)
        unknown = " ".join(tokens.unknown)
        if tokens.unknown_share > MAX_UNKNOWN_TEXT_SHARE:
            hint = "type how it is pronounced with --ipa" if kind == "grapheme" else "check that it is IPA"
            raise EnrollmentRefused(
                f"the bundle '{self.bundle.name}' does not know most of the characters of '{text}' ({unknown}): "
                f"{hint}, or enroll recordings"
            )
        if tokens.unknown:
            warnings.append(f"the bundle does not know these characters of '{text}', they were passed over: {unknown}")
        if language is not None and not tokens.known_language:
            warnings.append(f"the bundle does not know the language '{language}': '{text}' is read without one")
        embedding = self.bundle.encode_text(tokens)
        digest = hashlib.sha256(tokens.ids.astype("<i8").tobytes()).digest()
        return _Sample(label, TEXT, embedding, digest, text)

    def _add(self, samples: Sequence[_Sample]) -> tuple[Store, dict[str, tuple[int, int]]]:
        """Puts the samples into the store on disk, as one operation.

        Returns the store as saved, and per label how many rows are new and how many were there already.
        """
        by_label: dict[str, list[_Sample]] = {}
        for sample in samples:
            by_label.setdefault(sample.label, []).append(sample)
        n_added: dict[str, int] = {}
        _make_folder(os.path.dirname(self.store_path))
        with Store.update(self.store_path, self.bundle.modality, self.bundle.encoder_sha256, self.bundle.dim) as store:
            for label, of_label in by_label.items():
                for kind in (RECORDING, TEXT):
                    rows = [sample for sample in of_label if sample.kind == kind]
                    if rows:
                        n_added[label] = n_added.get(label, 0) + store.add(
                            label,
                            np.stack([row.embedding for row in rows]),
                            kind,
                            [row.source_sha256 for row in rows],
                            [row.name for row in rows],
                        )
        return store, {label: (n_added[label], len(of_label) - n_added[label]) for label, of_label in by_label.items()}

    def current_matcher(self) -> tuple[Matcher, list[str]]:
        """What decides between the labels of the store as it was opened or last enrolled, and their names."""
        with self._lock:
            store = self.store
            if self._matcher is None:
                if not store.labels():
                    raise StoreUnreadable(f"the store at '{self.store_path}' has no labels: enroll clips first")
                self._matcher = Matcher(store, self.bundle.bank, self.bundle.calibration, self.bundle.text_weight)
                self._matcher_labels = store.labels()
            return self._matcher, self._matcher_labels

    def _find_word(self, source: AudioSource, hashed: bool = False) -> Word | None:
        bundle = self.bundle
        blocks = source.blocks(bundle.front_end.sample_rate_hz, hashed)
        return find_word(blocks, bundle.front_end, bundle.windows, bundle.filters)

    def _check_fits(self, store: Store) -> None:
        if store.modality != self.bundle.modality:
            raise BundleMismatch(
                f"'{self.store_path}' holds {store.modality} but the bundle '{self.bundle.name}' is for "
                f"{self.bundle.modality}: use another store or another bundle"
            )
        if store.encoder_sha256 != self.bundle.encoder_sha256:
            raise BundleMismatch(
                f"'{self.store_path}' was enrolled with encoder {store.encoder_sha256[:12]} but '{self.bundle.path}' "
                f"holds {self.bundle.encoder_sha256[:12]}: use the bundle it was made with, or enroll again"
            )


def default_store_path(modality: str) -> str:
    """<modality>.store in the folder that $EDGEALIGN_STORE names, else in the platform's folder for user data."""
    if modality not in MODALITIES:
        raise InvalidInput(f"modality is '{modality}': expected {' or '.join(MODALITIES)}")
    folder = os.environ.get("EDGEALIGN_STORE")
    if not folder:
        import platformdirs

        folder = platformdirs.user_data_dir("edgealign", appauthor=False)
    return os.path.join(folder, f"{modality}.store")


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder or ".", mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreUnwritable(f"the folder '{folder}' for the store cannot be made: {error.strerror}") from None


def _open_source(audio: AudioLike, sample_rate_hz: float | None, channel: int | None) -> AudioSource:
    if not isinstance(audio, np.ndarray):
        if sample_rate_hz is not None:
            raise InvalidInput("sample_rate_hz was given with a file: it is for samples, a file knows its own")
        return AudioFile(audio, channel)
    if sample_rate_hz is None:
        raise InvalidInput("samples without their sample_rate_hz")
    return AudioArray(audio, sample_rate_hz, channel)


def _no_sound(source: AudioSource) -> str:
    return f"no sound stands out of the {source.duration_s:.1f} s of '{source.name}'"


def _word_warnings(source: AudioSource, word: Word) -> list[str]:
    """Says where the word was found, when that is not plain."""
    used = f"the clearest, at {word.start_s:.1f}-{word.end_s:.1f} s, was used"
    if source.duration_s > SEARCH_WINDOW_S:
        return [
            f"'{source.name}' lasts {source.duration_s / 60:.0f} min and has {word.n_sounds} sounds: only {used}; "
            f"cut it into clips, or scan it, to find every word"
        ]
    if word.n_sounds > 1:
        return [f"'{source.name}' has {word.n_sounds} sounds: {used}"]
    if source.duration_s > MAX_CLIP_S:
        where = f"{word.start_s:.1f}-{word.end_s:.1f} s"
        return [f"'{source.name}' lasts {source.duration_s:.1f} s: only its sound at {where} was used"]
    return []


def _nothing_learned(failures: Sequence[EdgealignError]) -> EdgealignError:
    """The one error for an enrollment of which nothing is left."""
    if not failures:
        return InvalidInput("nothing to learn from: name clips or a folder of clips, or type a text")
    if len(failures) == 1:
        return failures[0]
    kind = EnrollmentRefused if any(isinstance(failure, EnrollmentRefused) for failure in failures) else InputUnreadable
    return kind(f"none of {len(failures)} clips can be learned from; the first: {failures[0]}")
