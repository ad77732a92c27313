"""The main path: sample -> embedding, then into a store (enroll) or to its closest label (classify)."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgealign.audio import MIX, AudioSource
from edgealign.bundle import Bundle
from edgealign.errors import (
    AnnotationUnreadable,
    AudioUnreadable,
    BundleMismatch,
    EdgealignError,
    EnrollmentRefused,
    InputUnreadable,
    InvalidInput,
    StoreUnreadable,
    StoreUnwritable,
)
from edgealign.inputs import ImageInput, Windows
from edgealign.manifest import check_modality
from edgealign.samples import Embedded, Sample, check_takes_samples, check_type, embed, open_sample, word_values
from edgealign.store import ANOTHER_ENCODER, PICTURE, RECORDING, TEXT, Matcher, Store
from edgealign.words import SEARCH_WINDOW_S, Word

if TYPE_CHECKING:
    from edgealign.images import Picture
    from edgealign.quality import LabelReport

MAX_CLIP_S = 3.0  # what the encoder was trained on; of anything longer only the clearest word is used
MAX_UNKNOWN_TEXT_SHARE = 0.5
ANOTHER_PLACE = "name a file with --store, or a folder in $EDGEALIGN_STORE"


@dataclass(frozen=True)
class Candidate:
    """A label, its cosine distance to the clip, and the probability that the clip is this label."""

    label: str
    distance: float
    probability: float


@dataclass(frozen=True)
class Answer:
    """What a clip or picture was taken for.

    file         as it was given
    label        None is unknown
    probability  of the closest label; None, as are the distances, where no sound stands out of the clip
    distance     cosine distance to the closest label
    threshold    the largest distance at which the closest label would have been accepted
    accept_probability   the least probability at which a label is answered, as the bundle says
    runner_up    the second closest label, where there is one
    top          the closest labels, closest first, filled for unknowns too
    start_s, end_s   which stretch of a clip was used: the word, or all of it; None for a picture
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
    """What an enrollment did.

    labels     those that it named, as the store knows them now
    warnings   one sentence each
    failures   what could not be learned from
    """

    labels: tuple[LabelReport, ...]
    warnings: tuple[str, ...]
    failures: tuple[EdgealignError, ...]


@dataclass(frozen=True)
class _Row:
    """One row on its way into the store."""

    label: str
    kind: int
    embedding: np.ndarray
    source_sha256: bytes
    name: str


class Recognizer:
    """Learns labels from a few clips or pictures, or from text, and names others.

    Threads: `classify` and `embed` may run in any number of threads on one Recognizer. `enroll` may run beside them:
    a classification sees the labels from before or from after it, never half. Two enrollments into one store, also by
    two processes, wait for each other and lose nothing. A Recognizer answers from the store as it was when it was
    opened or last enrolled; what other processes add is seen after opening again. Processes open one each: it is not
    pickled, but may be opened before a fork.
    """

    def __init__(self, bundle: Bundle, store_path: str | os.PathLike | None = None):
        """`Recognizer.open` with a bundle that is open already; the store is read when it is first needed."""
        check_takes_samples(bundle)
        self.bundle = bundle
        self.store_path = os.fspath(store_path if store_path is not None else default_store_path(bundle.modality))
        self._given_path = None if store_path is None else self.store_path
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
        modality: str | None = None,
        variant: str | None = None,
        device: str = "auto",
    ) -> Recognizer:
        """A recognizer over a store, which need not exist before the first enrollment.

        store     path of a file; default_store_path of the modality where None
        bundle    folder; the shipped one for the modality where None, see Bundle.open
        modality  "speech", "audio" or "image"; where None, that of the bundle that is named, else of the store if it
                  exists, else speech
        variant   which encoder of the bundle, see Bundle.open
        """
        opened = None
        if modality is None and store is not None and not bundle and not os.environ.get("EDGEALIGN_BUNDLE"):
            opened = Store.load(store) if os.path.lexists(store) else None
            modality = None if opened is None else opened.modality
        recognizer = cls(Bundle.open(bundle, modality=modality, variant=variant, device=device), store)
        if opened is not None:
            recognizer._check_fits(opened)
            recognizer._store = opened
        return recognizer

    @property
    def store(self) -> Store:
        """The store that answers come from, for one thread at a time; StoreUnreadable before the first enrollment."""
        if self._store is None:
            if not os.path.lexists(self.store_path):
                raise StoreUnreadable(f"there is no store at '{self.store_path}': {self._enroll_first}")
            store = Store.load(self.store_path)
            self._check_fits(store)
            self._store = store
        return self._store

    @property
    def _enroll_first(self) -> str:
        return f"enroll {self.bundle.sample_noun}s first"

    @property
    def accept_probability(self) -> float:
        """The least probability at which a label is answered; below it a clip is unknown."""
        return 1 / (1 + math.exp(-self.bundle.calibration.accept_logit))

    def classify(
        self,
        sample: Sample,
        sample_rate_hz: float | None = None,
        *,
        channel: int | None = None,
        top_k: int = 5,
    ) -> Answer:
        """The label of a clip or picture, or unknown.

        sample    path; or samples [n] or [n, n_channels] with their rate, floating point in [-1, 1] or integers; or
                  pixels [height, width, 3], uint8 or floating point in [0, 1]
        channel   counts from 1; the mean of all where None
        raises    InputUnreadable for what is no clip or picture, StoreUnreadable without labels
        """
        return self.classify_embedded(sample, sample_rate_hz, channel=channel, top_k=top_k)[0]

    def classify_embedded(
        self,
        sample: Sample,
        sample_rate_hz: float | None = None,
        *,
        channel: int | None = None,
        top_k: int = 5,
    ) -> tuple[Answer, np.ndarray | None]:
        """`classify`, and the embedding that was named, float32 [dim]; None where no sound stands out."""
        if top_k < 1:
            raise InvalidInput(f"top_k is {top_k}: expected at least 1")
        self.current_matcher()
        source = open_sample(self.bundle, sample, sample_rate_hz, channel)
        found = embed(self.bundle, source)
        if found is None:
            answer = Answer(
                source.name, label=None, probability=None, distance=None, threshold=None,
                accept_probability=self.accept_probability, runner_up=None, top=(), start_s=None, end_s=None,
                reason=_no_sound(source), warnings=(),
            )  # fmt: skip
            return answer, None
        return self._name(source.name, found, top_k, tuple(_warnings(source, found))), found.embedding

    def name_word(self, file: str, word: Word, top_k: int = 5, warnings: tuple[str, ...] = ()) -> Answer:
        """The label of a word that was found in `file`, or unknown; StoreUnreadable without labels."""
        self.current_matcher()
        embedding = self.bundle.encode(word_values(self.bundle, word))[0]
        return self._name(file, Embedded(embedding, word, word.start_s, word.end_s), top_k, warnings)

    def _name(self, file: str, found: Embedded, top_k: int, warnings: tuple[str, ...]) -> Answer:
        matcher, labels = self.current_matcher()
        matches = matcher.classify(found.embedding, max(top_k, 2))
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
            label=candidates[0].label if best.accepted else None,
            probability=best.probability,
            distance=best.distance,
            threshold=best.threshold,
            accept_probability=self.accept_probability,
            runner_up=candidates[1] if len(candidates) > 1 else None,
            top=candidates[:top_k],
            start_s=found.start_s,
            end_s=found.end_s,
            reason=reason,
            warnings=warnings,
        )

    def embed(self, sample: Sample, sample_rate_hz: float | None = None, *, channel: int | None = None) -> np.ndarray:
        """The embedding of a clip or picture, see `classify`: float32 [dim], of unit length.

        With a bundle for speech it is that of the clearest word: AudioUnreadable where no sound stands out.
        """
        source = open_sample(self.bundle, sample, sample_rate_hz, channel)
        found = embed(self.bundle, source)
        if found is None:
            raise AudioUnreadable(_no_sound(source))
        return found.embedding

    def enroll(
        self,
        sources: Sample | Iterable[Sample] = (),
        *,
        label: str | None = None,
        text: str | None = None,
        ipa: str | None = None,
        image: str | os.PathLike | np.ndarray | None = None,
        language: str | None = None,
        labels_are_words: bool = False,
        sample_rate_hz: float | None = None,
        channel: int | Literal["mix"] | None = None,
        tables: Iterable[str | os.PathLike] = (),
        tier: str | None = None,
    ) -> EnrollReport:
        """Adds recordings or pictures, a text or a picture that they start from, or both, as one operation.

        sources   files, folders (see `sources.collect_clips`), or arrays with a label and, of sound, their
                  sample_rate_hz; with tables, the recordings that these are about (see `excerpts.collect_excerpts`)
        channel   counts from 1, or "mix" for the mean of all; None is the one that a table names, else the mean of all
        tables, tier   files of annotations, and which tier of EAF and TextGrid: every annotation is a clip
        label     for all of them; without it the folder names are the labels, or the text is
        text, ipa   the word as it is written, or as it is pronounced
        image     a picture of what the label stands for, where the bundle aligns pictures with its samples
        language  BCP 47 tag of text or ipa, such as "sw"; optional
        labels_are_words   each label is a text as well, as it is written: where the folders of words are named after
                  them. One that the bundle cannot read is told in the warnings, its recordings are learned
        raises    InputUnreadable where no source can be read, EnrollmentRefused where none is good enough, and both
                  leave the store as it was; what fails beside others that succeed is listed in the report
        """
        # Imported here because classify, which has to start fast, needs neither.
        from edgealign.quality import Quality, in_two_labels, unlike_their_labels
        from edgealign.sources import checked_label

        if text is not None and ipa is not None:
            raise InvalidInput("both text and ipa were given: enroll the same word twice, once with each")
        typed = text if text is not None else ipa
        if typed is not None and not typed.strip():
            raise InvalidInput("the text is empty: type the word, as it is written or in IPA")
        if labels_are_words and typed is not None:
            raise InvalidInput("labels are words and a text was given: one label needs no more than the text")
        if language is not None and typed is None and not labels_are_words:
            raise InvalidInput("a language was given without a text: it says how a text is read")
        label = label if label is not None else typed
        label = None if label is None else checked_label(label)
        if image is not None and label is None:
            raise InvalidInput("a picture to start from has no label: say which it is of")
        warnings: list[str] = []
        failures: list[EdgealignError] = []
        tables = list(tables)
        if tier is not None and not tables:
            raise InvalidInput("a tier was given without a table: it says which tier of a table is meant")
        if tables:
            samples = list(self._learn_excerpts(sources, tables, tier, label, channel, failures))
        else:
            samples = list(self._learn_samples(sources, label, sample_rate_hz, channel, warnings, failures))
        if typed is not None and label is not None:
            kind = "grapheme" if text is not None else "ipa"
            samples.append(self._learn_text(typed, kind, language, label, warnings))
        if image is not None and label is not None:
            samples.append(self._learn_image(image, label))
        if labels_are_words:
            recordings: dict[str, list[np.ndarray]] = {}
            for sample in samples:
                recordings.setdefault(sample.label, []).append(sample.embedding)
            written = list(self._learn_labels(recordings, language, warnings))
            if self.bundle.modality == "speech":
                texts = {row.label: row.embedding for row in written}
                warnings += unlike_their_labels(recordings, texts, self.bundle.bank, self._given_path)
            samples += written
        if not samples:
            raise _nothing_learned(failures)
        with self._enrolling:
            store, counts = self._add(samples)
            quality = Quality.of(store, self.bundle.calibration, self.bundle.text_weight, list(counts))
            with self._lock:
                self._store, self._matcher = store, None
        return EnrollReport(
            tuple(quality.report(label, *count) for label, count in counts.items()),
            (
                *warnings,
                *in_two_labels(store, list(counts), self._given_path),
                *quality.outliers(self._given_path),
                *quality.confusable_labels(),
            ),
            tuple(failures),
        )

    def _learn_samples(
        self,
        sources: Sample | Iterable[Sample],
        label: str | None,
        sample_rate_hz: float | None,
        channel: int | Literal["mix"] | None,
        warnings: list[str],
        failures: list[EdgealignError],
    ) -> Iterable[_Row]:
        from edgealign.sources import collect_clips

        sources = _listed(sources)
        paths = [source for source in sources if not isinstance(source, np.ndarray)]
        arrays = [source for source in sources if isinstance(source, np.ndarray)]
        if arrays and label is None:
            raise InvalidInput("samples without a label: say which label they are of")
        collected = collect_clips(paths, label, self.bundle.modality)
        warnings += collected.notes
        failures += collected.problems
        todo: list[tuple[str, Sample]] = [(clip.label, clip.path) for clip in collected.clips]
        todo += [(label, samples) for samples in arrays if label is not None]
        for clip_label, sample in todo:
            try:
                rate_hz = sample_rate_hz if isinstance(sample, np.ndarray) else None
                source = open_sample(self.bundle, sample, rate_hz, None if channel == MIX else channel)
                found = embed(self.bundle, source, hashed=True)
                if found is None:
                    raise EnrollmentRefused(f"{_no_sound(source)}: record it closer or louder")
            except (InputUnreadable, EnrollmentRefused) as error:
                failures.append(error)
                continue
            warnings += _warnings(source, found)
            name = os.path.basename(source.name)
            yield _Row(clip_label, RECORDING, found.embedding, bytes.fromhex(source.sha256), name)

    def _learn_excerpts(
        self,
        sources: Sample | Iterable[Sample],
        tables: Sequence[str | os.PathLike],
        tier: str | None,
        label: str | None,
        channel: int | Literal["mix"] | None,
        failures: list[EdgealignError],
    ) -> Iterable[_Row]:
        from edgealign.audio import AudioExcerpt
        from edgealign.excerpts import collect_excerpts

        recordings = _listed(sources)
        if any(isinstance(recording, np.ndarray) for recording in recordings):
            raise InvalidInput("samples and a table were given: a table is about files")
        taken = self.bundle.input
        if isinstance(taken, ImageInput):
            raise InvalidInput(f"the bundle '{self.bundle.name}' takes pictures: a table is about recordings")
        excerpts, problems = collect_excerpts(tables, [os.fspath(path) for path in recordings], tier, label)
        failures += problems
        if not excerpts and not problems:
            failures += [AnnotationUnreadable(f"'{os.fspath(table)}' holds no annotations") for table in tables]
        is_word = isinstance(taken.windows, Windows)
        pad_s = self.bundle.front_end.seconds(taken.windows.pad_frames) if is_word else 0.0
        for excerpt in excerpts:
            try:
                heard_channel = excerpt.channel if channel is None else channel
                source = AudioExcerpt(
                    excerpt.path, excerpt.start_s, excerpt.end_s, None if heard_channel == MIX else heard_channel, pad_s
                )
                found = embed(self.bundle, source, hashed=True, whole=True)
            except InputUnreadable as error:
                failures.append(error)
                continue
            if found is None:
                failures.append(EnrollmentRefused(f"no sound stands out of '{source.name}'"))
                continue
            name = f"{os.path.basename(excerpt.path)} {excerpt.start_s:.3f}-{excerpt.end_s:.3f} s"
            yield _Row(excerpt.label, RECORDING, found.embedding, bytes.fromhex(source.sha256), name)

    def _learn_text(self, text: str, kind: str, language: str | None, label: str, warnings: list[str]) -> _Row:
        tokens = self.bundle.tokenizer.encode(text, kind, language)
        read = text if tokens.read_as is None else tokens.read_as[1]
        unknown = ", ".join(f"'{character}'" for character in tokens.unknown)
        if tokens.unknown_share > MAX_UNKNOWN_TEXT_SHARE:
            hint = "type how it is pronounced with --ipa" if kind == "grapheme" else "check that it is IPA"
            raise EnrollmentRefused(
                f"the bundle '{self.bundle.name}' does not know most of the characters of '{text}' ({unknown}): "
                f"{hint}, or enroll {self.bundle.sample_noun}s"
            )
        if tokens.unknown:
            warnings.append(f"the bundle does not know these characters of '{read}', they were passed over: {unknown}")
        if tokens.n_cut:
            warnings.append(
                f"'{read}' is longer than the bundle reads: the last {tokens.n_cut} of its characters were passed over"
            )
        if language is not None and not tokens.known_language:
            warnings.append(f"the bundle does not know the language '{language}': '{text}' is read without one")
        if language is None and tokens.read_as is not None:
            warnings.append(
                f"'{text}' is read as a word of the language '{tokens.read_as[0]}', {read}: give --language if it is "
                f"of another"
            )
        embedding = self.bundle.encode_text(tokens)
        digest = hashlib.sha256(tokens.ids.astype("<i8").tobytes()).digest()
        return _Row(label, TEXT, embedding, digest, text)

    def _learn_labels(self, labels: Iterable[str], language: str | None, warnings: list[str]) -> Iterable[_Row]:
        for label in labels:
            try:
                yield self._learn_text(label, "grapheme", language, label, warnings)
            except EnrollmentRefused as error:
                warnings.append(str(error))

    def _learn_image(self, image: str | os.PathLike | np.ndarray, label: str) -> _Row:
        source = self.bundle.source("image")
        from edgealign.images import fit, read_picture

        picture = read_picture(image)
        embedding = self.bundle.encode_image_source(fit(picture.pixels, source.input))
        return _Row(label, PICTURE, embedding, bytes.fromhex(picture.sha256), os.path.basename(picture.name))

    def _add(self, samples: Sequence[_Row]) -> tuple[Store, dict[str, tuple[int, int]]]:
        """Puts the samples into the store on disk, as one operation.

        Returns the store as saved, and per label how many rows are new and how many were there already.
        """
        by_label: dict[str, list[_Row]] = {}
        for sample in samples:
            by_label.setdefault(sample.label, []).append(sample)
        n_added: dict[str, int] = {}
        _make_folder(os.path.dirname(self.store_path))
        with Store.update(self.store_path, self.bundle.modality, self.bundle.encoder_sha256, self.bundle.dim) as store:
            for label, of_label in by_label.items():
                for kind in (RECORDING, TEXT, PICTURE):
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
                    raise StoreUnreadable(f"the store at '{self.store_path}' has no labels: {self._enroll_first}")
                self._matcher = Matcher(store, self.bundle.bank, self.bundle.calibration, self.bundle.text_weight)
                self._matcher_labels = store.labels()
            return self._matcher, self._matcher_labels

    def _check_fits(self, store: Store) -> None:
        if store.modality != self.bundle.modality:
            raise BundleMismatch(
                f"'{self.store_path}' holds {store.modality} but the bundle '{self.bundle.name}' is for "
                f"{self.bundle.modality}: use another store or another bundle"
            )
        if store.encoder_sha256 != self.bundle.encoder_sha256:
            raise BundleMismatch(
                f"'{self.store_path}' was enrolled with encoder {store.encoder_sha256[:12]} but '{self.bundle.path}' "
                f"holds {self.bundle.encoder_sha256[:12]}: {ANOTHER_ENCODER}"
            )


def _listed(sources: Sample | Iterable[Sample]) -> list[Sample]:
    listed = [sources] if isinstance(sources, (str, os.PathLike, np.ndarray)) else list(sources)
    for source in listed:
        check_type(source)
    return listed


def default_store_path(modality: str) -> str:
    """<modality>.store in the folder that $EDGEALIGN_STORE names, else in the platform's folder for user data."""
    check_modality(modality)
    folder = os.environ.get("EDGEALIGN_STORE")
    if not folder:
        import platformdirs

        try:
            folder = platformdirs.user_data_dir("edgealign", appauthor=False)
        except RuntimeError:
            folder = "~"
        if folder.startswith("~"):  # so says an older platformdirs
            raise InvalidInput(f"this user has no home folder for the store: {ANOTHER_PLACE}")
    return os.path.join(folder, f"{modality}.store")


def modality_of_only_store(fitting: Iterable[str]) -> str | None:
    """Of some modalities, the one that has a store in the default place; None without one, InvalidInput with two."""
    found = [modality for modality in fitting if os.path.lexists(default_store_path(modality))]
    if len(found) > 1:
        raise InvalidInput(f"there are stores for {' and '.join(found)}: say with --modality which one is meant")
    return found[0] if found else None


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder or ".", mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreUnwritable(
            f"the folder '{folder}' for the store cannot be made ({error.strerror}): {ANOTHER_PLACE}"
        ) from None


def _no_sound(source: AudioSource) -> str:
    return f"no sound stands out of the {source.duration_s:.1f} s of '{source.name}'"


def _warnings(source: AudioSource | Picture, found: Embedded) -> list[str]:
    """Says what of the clip was not there, and where the word was found when that is not plain."""
    cut_off = source.cut_off() if isinstance(source, AudioSource) else None
    return [*([] if cut_off is None else [cut_off]), *_where_found(source, found.word)]


def _where_found(source: AudioSource, word: Word | None) -> list[str]:
    if word is None:
        return []
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
        return InvalidInput("nothing to learn from: name samples or a folder of them, or type a text")
    if len(failures) == 1:
        return failures[0]
    kind = EnrollmentRefused if any(isinstance(failure, EnrollmentRefused) for failure in failures) else InputUnreadable
    return kind(f"none of {len(failures)} samples can be learned from; the first: {failures[0]}")
