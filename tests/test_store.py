"""The store: what it keeps, what it refuses, and what no crash, crowd or full disk may take from it.

Run: python -m pytest tests/test_store.py
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import stat
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgealign import store
from edgealign.errors import BundleMismatch, EdgealignError, InvalidInput, StoreUnreadable, StoreUnwritable
from edgealign.kernels import Calibration
from edgealign.store import PICTURE, RECORDING, TEXT, Matcher, Store

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "store-format-1.store"
ENCODER = hashlib.sha256(b"encoder").hexdigest()
CALIBRATION = Calibration(
    w_bias=4, w_z=0, w_t=0, w_distance=-8, w_margin=0, w_loo=0, w_shots=0, w_text=0, accept_logit=0, top=1,
    prior_loo=0.2, prior_weight=1, lone_margin=0.1,
)  # fmt: skip


def digest(*of: object) -> bytes:
    return hashlib.sha256(repr(of).encode()).digest()


def embeddings(n_rows: int, dim: int = 4, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n_rows, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def enroll(into: Store, label: str, n_rows: int = 2, kind: int = RECORDING, seed: int = 0) -> int:
    names = [f"{label}{i}.wav" for i in range(n_rows)]
    sources = [digest(label, seed, i) for i in range(n_rows)]
    return into.add(label, embeddings(n_rows, into.dim, seed), kind, sources, names)


def new_store(dim: int = 4) -> Store:
    return Store.create("speech", ENCODER, dim)


def content(of: Store) -> tuple:
    """All that a caller can see."""
    rows = [(int(row["label"]), int(row["kind"]), row["name"]) for row in of.rows()]
    return of.modality, of.encoder_sha256, of.dim, of.n_ops, of.labels(), rows, of.embeddings().tobytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "speech.store"


# ---- what it keeps ----


def test_a_saved_store_comes_back_as_it_was(path: Path) -> None:
    made = new_store()
    enroll(made, "maji", 3)
    enroll(made, "moto", 1, TEXT)
    enroll(made, "picha", 1, PICTURE)
    made.remove("moto")
    made.save(path)
    loaded = Store.load(path)
    assert content(loaded) == content(made)
    assert loaded.labels() == ["maji", "picha"]
    assert loaded.rows()["name"].tolist() == ["maji0.wav", "maji1.wav", "maji2.wav", "picha0.wav"]
    assert loaded.rows()["kind"].tolist() == [RECORDING] * 3 + [PICTURE]
    assert loaded.rows()["label"].tolist() == [0, 0, 0, 1]
    np.testing.assert_array_equal(loaded.embeddings()[:3], embeddings(3))


def test_the_file_is_readable_by_its_owner_only(path: Path) -> None:
    new_store().save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    new_store().save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_checksum_is_that_of_the_file(path: Path) -> None:
    made = new_store()
    enroll(made, "maji")
    before = made.sha256
    made.save(path)
    data = path.read_bytes()
    assert before == made.sha256 == Store.load(path).sha256
    assert before == hashlib.sha256(data[:-32]).hexdigest() == data[-32:].hex()
    enroll(made, "moto")
    assert made.sha256 != before
    made.undo()
    assert made.sha256 == before


@pytest.mark.parametrize(
    "label",
    ["two words", "a/b\\c", "ماء", "💧🔥", "=1+1", "\x1b[31mred\x1b[0m", "tab\tnewline\n", " ", "..", "-", "x" * 1024],
)
def test_labels_may_be_any_text(label: str, path: Path) -> None:
    made = new_store()
    enroll(made, label)
    made.save(path)
    assert Store.load(path).labels() == [label]


def test_one_label_in_two_unicode_forms_is_one_label() -> None:
    made = new_store()
    enroll(made, "caf\N{LATIN SMALL LETTER E WITH ACUTE}", seed=1)
    enroll(made, "cafe\N{COMBINING ACUTE ACCENT}", seed=2)
    assert made.labels() == ["caf\N{LATIN SMALL LETTER E WITH ACUTE}"]
    assert made.remove("cafe\N{COMBINING ACUTE ACCENT}") == 4


def test_names_are_cut_at_a_character_and_never_refused() -> None:
    made = new_store()
    names = ["\N{WATER WAVE}" * 100, "bad\udce9name", "nul\0name", "x" * 300]
    made.add("maji", embeddings(4), RECORDING, [digest(i) for i in range(4)], names)
    assert made.rows()["name"].tolist() == ["\N{WATER WAVE}" * 63, "bad?name", "nul?name", "x" * 255]


def test_enrolling_the_same_clip_twice_keeps_one_copy() -> None:
    made = new_store()
    assert enroll(made, "maji", 3) == 3
    before = content(made)
    assert enroll(made, "maji", 3) == 0
    assert content(made) == before, "and it is no operation"
    assert enroll(made, "moto", 3) == 3, "under another label it is another sample"
    assert enroll(made, "maji", 3, TEXT) == 3, "and so it is as another kind"
    twice = [digest("same")] * 2
    assert made.add("maji", embeddings(2), RECORDING, twice, ["a", "b"]) == 1


def test_a_removed_clip_can_be_enrolled_again() -> None:
    made = new_store()
    enroll(made, "maji", 3)
    assert made.remove("maji") == 3
    assert made.labels() == [] and len(made.rows()) == 0
    assert enroll(made, "maji", 3) == 3
    assert made.labels() == ["maji"]


def test_adding_to_a_label_keeps_its_place() -> None:
    made = new_store()
    for label in ("b", "a", "c"):
        enroll(made, label)
    enroll(made, "a", seed=9)
    assert made.labels() == ["b", "a", "c"]
    assert np.bincount(made.rows()["label"]).tolist() == [2, 4, 2]


# ---- undo ----


def test_undo_takes_back_one_operation_after_another() -> None:
    made = new_store()
    states = [content(made)]

    def step(change: Callable[[], object]) -> None:
        change()
        states.append(content(made))

    other = new_store()
    enroll(other, "from elsewhere", 3)
    step(lambda: enroll(made, "maji"))
    step(lambda: enroll(made, "moto"))
    step(lambda: made.remove("maji"))
    step(lambda: enroll(made, "maji", seed=5))
    step(lambda: made.merge(other))
    step(lambda: made.remove("moto"))
    for state in states[-2::-1]:
        made.undo()
        assert content(made) == state
    with pytest.raises(InvalidInput, match="nothing has been enrolled"):
        made.undo()


def test_undo_works_across_files(path: Path) -> None:
    made = new_store()
    enroll(made, "maji")
    state = content(made)
    made.remove("maji")
    made.save(path)
    loaded = Store.load(path)
    loaded.undo()
    assert content(loaded) == state


def test_what_one_operation_encloses_is_undone_as_one() -> None:
    made = new_store()
    enroll(made, "old")
    state = content(made)
    with made.operation():
        enroll(made, "maji")
        enroll(made, "moto")
        made.remove("old")
    assert made.n_ops == 2
    made.undo()
    assert content(made) == state


def test_added_and_removed_in_one_operation_leaves_nothing_to_come_back() -> None:
    made = new_store()
    with made.operation():
        enroll(made, "maji")
        made.remove("maji")
    assert (made.n_ops, made.labels()) == (1, [])
    made.undo()
    assert (made.n_ops, made.labels()) == (0, [])


def test_only_the_last_hundred_operations_can_be_undone(path: Path) -> None:
    made = new_store()
    enroll(made, "removed early")
    made.remove("removed early")
    for i in range(150):
        enroll(made, f"label {i}", 1)
    assert made.n_ops == 152
    made.save(path)
    loaded = Store.load(path)
    for _ in range(100):
        loaded.undo()
    assert loaded.labels() == [f"label {i}" for i in range(50)]
    with pytest.raises(InvalidInput, match="only the last 100 operations"):
        loaded.undo()
    data = path.read_bytes()
    assert b"removed early" not in data, "what cannot come back is not kept"


class Model:
    """What a store is meant to be, in a few lines: rows (label, source, added, removed)."""

    def __init__(self) -> None:
        self.rows: list[list] = []
        self.n_ops = 0

    def live(self) -> list[tuple[str, int]]:
        return [(label, source) for label, source, _, removed in self.rows if not removed]

    def labels(self) -> list[str]:
        alive = {label for label, _ in self.live()}
        return [label for label in dict.fromkeys(row[0] for row in self.rows) if label in alive]

    def add(self, wanted: list[tuple[str, int]]) -> int:
        new = [key for key in dict.fromkeys(wanted) if key not in self.live()]
        self.n_ops += bool(new)
        self.rows += [[*key, self.n_ops, 0] for key in new]
        return len(new)

    def remove(self, label: str) -> None:
        self.n_ops += 1
        for row in self.rows:
            if row[0] == label and not row[3]:
                row[3] = self.n_ops

    def drop(self, index: int) -> None:
        self.n_ops += 1
        [row for row in self.rows if not row[3]][index][3] = self.n_ops

    def rename(self, label: str, new_label: str) -> int:
        moved = [(new_label, source) for owner, source in self.live() if owner == label]
        n_ops = self.n_ops
        n_moved = self.add(moved)
        self.n_ops = n_ops  # the same operation
        self.remove(label)
        return n_moved

    def undo(self) -> None:
        self.rows = [row for row in self.rows if row[2] != self.n_ops]
        for row in self.rows:
            row[3] *= row[3] != self.n_ops
        self.n_ops -= 1


def source_row(source: int) -> np.ndarray:
    return embeddings(1, 4, source)


def add_sources(into: Store, label: str, sources: list[int]) -> int:
    digests, names = [digest(i) for i in sources], [str(i) for i in sources]
    return into.add(label, np.concatenate([source_row(i) for i in sources]), RECORDING, digests, names)


some_labels, some_sources = st.sampled_from("abc"), st.lists(st.integers(0, 5), min_size=1, max_size=4)
steps = st.one_of(
    st.tuples(st.just("add"), some_labels, some_sources),
    st.tuples(st.just("remove"), some_labels),
    st.tuples(st.just("drop"), st.integers(0, 20)),
    st.tuples(st.just("rename"), some_labels, some_labels),
    st.tuples(st.just("undo")),
    st.tuples(st.just("merge"), st.lists(st.tuples(some_labels, some_sources), max_size=3)),
    st.tuples(st.just("reload")),
)


@given(st.lists(steps, max_size=25))
@settings(max_examples=200, deadline=None)
def test_any_sequence_of_changes_does_what_the_model_does(
    tmp_path_factory: pytest.TempPathFactory, sequence: list[tuple]
) -> None:
    path = tmp_path_factory.getbasetemp() / "sequence.store"
    made, model = new_store(), Model()
    for step, *arguments in sequence:
        if step == "add":
            label, sources = arguments
            assert add_sources(made, label, sources) == model.add([(label, source) for source in sources])
        elif step == "remove" and arguments[0] in model.labels():
            made.remove(arguments[0])
            model.remove(arguments[0])
        elif step == "drop" and arguments[0] < len(model.live()):
            label, source = model.live()[arguments[0]]
            assert made.remove(label, str(source)) == 1
            model.drop(arguments[0])
        elif step == "rename" and arguments[0] in model.labels() and arguments[0] != arguments[1]:
            assert made.rename(*arguments) == model.rename(*arguments)
        elif step == "undo" and model.n_ops:
            made.undo()
            model.undo()
        elif step == "merge":
            other = new_store()
            for label, sources in arguments[0]:
                add_sources(other, label, sources)
            rows = [(other.labels()[row["label"]], int(row["name"])) for row in other.rows()]
            assert made.merge(other) == model.add(rows)
        elif step == "reload":
            made.save(path)
            made = Store.load(path)
        labels = made.labels()
        assert (labels, made.n_ops) == (model.labels(), model.n_ops)
        assert [(labels[row["label"]], int(row["name"])) for row in made.rows()] == model.live()
        for (_, source), row in zip(model.live(), made.embeddings(), strict=True):
            assert (row == source_row(source)).all()


# ---- rename, and remove a sample ----


def test_a_renamed_label_keeps_all_that_was_learned(path: Path) -> None:
    made = new_store()
    enroll(made, "maji", 3)
    enroll(made, "maji", 1, TEXT, seed=1)
    enroll(made, "moto")
    before = content(made)
    with made.operation():
        assert made.rename("maji", "water") == 4
    made.save(path)
    loaded = Store.load(path)
    assert loaded.labels() == ["moto", "water"]
    water = loaded.rows()["label"] == 1
    assert loaded.rows()["name"][water].tolist() == ["maji0.wav", "maji1.wav", "maji2.wav", "maji0.wav"]
    assert loaded.rows()["kind"][water].tolist() == [RECORDING] * 3 + [TEXT]
    np.testing.assert_array_equal(loaded.embeddings()[water], np.concatenate([embeddings(3), embeddings(1, seed=1)]))
    assert loaded.ids()[2] == digest("maji", 0, 0).hex()[:8]
    loaded.undo()
    assert content(loaded) == before


def test_a_label_that_is_renamed_to_another_joins_it_and_undo_parts_them() -> None:
    made = new_store()
    add_sources(made, "maji", [0, 1])
    add_sources(made, "Maji", [1, 2, 3])
    before = content(made)
    assert made.rename("Maji", "maji") == 2
    assert made.labels() == ["maji"]
    assert made.rows()["name"].tolist() == ["0", "1", "2", "3"]
    made.undo()
    assert content(made) == before


def test_a_label_that_holds_nothing_else_leaves_when_it_is_renamed() -> None:
    made = new_store()
    add_sources(made, "a", [0, 1])
    add_sources(made, "b", [0])
    before = content(made)
    assert made.rename("b", "a") == 0
    assert made.labels() == ["a"]
    made.undo()
    assert content(made) == before


def test_a_rename_beyond_the_limit_of_rows_is_refused_and_changes_nothing() -> None:
    n_rows = 1_000_000  # EA_MAX_ROWS; those of the past count, which undo may bring back
    made = Store.create("speech", ENCODER, 1)
    sources = [i.to_bytes(32, "big") for i in range(n_rows)]
    made.add("a", np.ones((n_rows, 1), np.float32), RECORDING, sources, [""] * n_rows)
    with pytest.raises(InvalidInput, match="at most 1000000 rows"):
        made.rename("a", "b")
    assert (made.labels(), made.n_ops) == (["a"], 1)


def test_a_sample_is_removed_by_its_name_and_comes_back_by_undo() -> None:
    made = new_store()
    enroll(made, "maji", 3)
    before = content(made)
    assert made.remove("maji", "maji1.wav") == 1
    assert made.rows()["name"].tolist() == ["maji0.wav", "maji2.wav"]
    np.testing.assert_array_equal(made.embeddings(), embeddings(3)[[0, 2]])
    made.undo()
    assert content(made) == before


def test_the_last_sample_of_a_label_takes_the_label_with_it() -> None:
    made = new_store()
    enroll(made, "maji", 1)
    enroll(made, "moto", 1)
    made.remove("maji", "maji0.wav")
    assert made.labels() == ["moto"]


def test_samples_of_one_name_are_told_apart_by_their_ids() -> None:
    made = new_store()
    sources = [digest(0), digest(1)]
    made.add("maji", embeddings(2), RECORDING, sources, ["1.wav", "1.wav"])
    ids = [source.hex()[:8] for source in sources]
    with pytest.raises(InvalidInput, match=f"2 samples of 'maji' are named '1.wav'.* {ids[0]}, {ids[1]}"):
        made.remove("maji", "1.wav")
    made.remove("maji", ids[0])
    np.testing.assert_array_equal(made.embeddings(), embeddings(2)[1:])


def test_a_name_is_found_as_a_terminal_shows_it() -> None:
    made = new_store()
    made.add("maji", embeddings(1), RECORDING, [digest(0)], ["a\x1b[2Jb.wav"])
    assert made.remove("maji", r"a\x1b[2Jb.wav") == 1


# ---- merge ----


def test_merge_adds_what_is_missing() -> None:
    ours, theirs = new_store(), new_store()
    enroll(ours, "maji", 2)
    enroll(theirs, "maji", 3)  # two of them are ours
    enroll(theirs, "moto", 2)
    enroll(theirs, "gone", 2)
    theirs.remove("gone")
    assert ours.merge(theirs) == 3
    assert ours.labels() == ["maji", "moto"]
    assert np.bincount(ours.rows()["label"]).tolist() == [3, 2]
    assert ours.merge(theirs) == 0
    assert ours.n_ops == 2


def test_merge_with_itself_changes_nothing() -> None:
    made = new_store()
    enroll(made, "maji")
    before = content(made)
    assert made.merge(made) == 0
    assert content(made) == before


@pytest.mark.parametrize(
    "other",
    [
        lambda: Store.create("speech", "00" * 32, 4),
        lambda: Store.create("audio", ENCODER, 4),
        lambda: Store.create("speech", ENCODER, 5),
    ],
)
def test_stores_of_different_encoders_are_not_merged(other: Callable[[], Store]) -> None:
    with pytest.raises(BundleMismatch, match="different encoders"):
        new_store().merge(other())


# ---- update ----


def test_update_creates_changes_and_saves(path: Path) -> None:
    with Store.update(path, "speech", ENCODER, 4) as opened:
        enroll(opened, "maji")
        enroll(opened, "moto")
    with Store.update(path) as opened:
        opened.remove("maji")
    loaded = Store.load(path)
    assert (loaded.labels(), loaded.n_ops) == (["moto"], 2)


def test_update_that_fails_leaves_the_file(path: Path) -> None:
    with Store.update(path, "speech", ENCODER, 4) as opened:
        enroll(opened, "maji")
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="oops"), Store.update(path) as opened:
        enroll(opened, "moto")
        raise RuntimeError("oops")
    assert path.read_bytes() == before
    with Store.update(path) as opened:  # the lock is free again
        assert opened.labels() == ["maji"]


def test_update_that_changes_nothing_writes_nothing(path: Path) -> None:
    with Store.update(path, "speech", ENCODER, 4):
        pass
    assert not path.exists()
    new_store().save(path)
    inode = path.stat().st_ino
    with Store.update(path) as opened:
        assert opened.labels() == []
    assert path.stat().st_ino == inode


def test_update_refuses_a_store_of_another_encoder(path: Path) -> None:
    new_store().save(path)
    before = path.read_bytes()
    for wrong in (("speech", "00" * 32, 4), ("audio", ENCODER, 4), ("speech", ENCODER, 5)):
        with pytest.raises(BundleMismatch, match="use the bundle it was made with"), Store.update(path, *wrong):
            pytest.fail("the block must not run")
    assert path.read_bytes() == before


def test_update_of_no_store_needs_to_know_the_encoder(path: Path) -> None:
    with pytest.raises(StoreUnreadable, match="there is no store"), Store.update(path):
        pytest.fail("the block must not run")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "elsewhere.store", tmp_path / "speech.store"
    new_store().save(target)
    link.symlink_to(target)
    with Store.update(link) as opened:
        enroll(opened, "maji")
    assert link.is_symlink()
    assert Store.load(target).labels() == ["maji"]


def test_a_leftover_of_a_crash_is_no_obstacle(path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(b"half a store")
    new_store().save(path)
    assert Store.load(path).labels() == []
    assert not partial.exists()


def test_a_link_in_place_of_the_leftover_is_not_followed(path: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    path.with_name(path.name + ".partial").symlink_to(precious)
    new_store().save(path)
    assert precious.read_text() == "mine"


def test_a_stuck_writer_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOCK_WAIT_S", 0.05)
    with (
        Store.update(path, "speech", ENCODER, 4),
        pytest.raises(StoreUnwritable, match="somebody else is writing"),
        Store.update(path, "speech", ENCODER, 4),
    ):
        pytest.fail("the block must not run")


# ---- what it refuses ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: enroll(made, ""), "label has 0 bytes of UTF-8, expected 1 to 1024"),
        (lambda made: enroll(made, "x" * 1025), "label has 1025 bytes"),
        (lambda made: enroll(made, "\N{WATER WAVE}" * 257), "label has 1028 bytes"),
        (lambda made: enroll(made, "a\0b"), "NUL"),
        (lambda made: enroll(made, "caf\udce9"), "cannot be written as UTF-8"),
        (lambda made: enroll(made, "a", kind=4), "4 is not a kind"),
        (lambda made: made.add("a", embeddings(2, 5), RECORDING, [digest(0)] * 2, ["", ""]), r"expected \[n, 4\]"),
        (lambda made: made.add("a", embeddings(2) * np.nan, RECORDING, [digest(0)] * 2, ["", ""]), "NaN or infinity"),
        (lambda made: made.add("a", embeddings(2), RECORDING, [digest(0)], ["", ""]), "2 embeddings need as many"),
        (lambda made: made.add("a", embeddings(1), RECORDING, [b"short"], [""]), "sha256s of 32 bytes"),
        (lambda made: made.remove("b"), "no label 'b'"),
        (lambda made: made.remove("b", "maji0.wav"), "no label 'b'"),
        (lambda made: made.remove("maji", "other.wav"), "'maji' has no sample 'other.wav'"),
        (lambda made: made.remove("maji", ""), "'maji' has no sample ''"),
        (lambda made: made.rename("b", "c"), "no label 'b'"),
        (lambda made: made.rename("maji", "maji"), "'maji' is the name of the label already"),
        (lambda made: made.rename("maji", ""), "label has 0 bytes"),
        (lambda made: made.rename("maji", "x" * 1025), "label has 1025 bytes"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused_and_changes_nothing(
    change: Callable[[Store], object], message: str
) -> None:
    made = new_store()
    enroll(made, "maji")
    before = content(made)
    with pytest.raises(InvalidInput, match=message):
        change(made)
    assert content(made) == before


@pytest.mark.parametrize(
    "arguments",
    [("", ENCODER, 4), ("x" * 33, ENCODER, 4), ("speech", "zz" * 32, 4), ("speech", "ab", 4), ("speech", ENCODER, 0),
     ("speech", ENCODER, 4097)],
)  # fmt: skip
def test_a_store_that_makes_no_sense_is_not_created(arguments: tuple) -> None:
    with pytest.raises(InvalidInput):
        Store.create(*arguments)


def test_without_the_core_a_store_says_so(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setattr(store, "_core", None)
    for call in (lambda: Store.load(path), lambda: Store.create("speech", ENCODER, 4), lambda: new_store().save(path)):
        with pytest.raises(EdgealignError, match="needs the compiled core"):
            call()


def test_what_is_no_store_is_named(path: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreUnreadable, match=r"there is no store at '.*speech\.store'"):
        Store.load(path)
    with pytest.raises(StoreUnreadable, match="is not a file"):
        Store.load(tmp_path)
    for nonsense in (b"", b"RIFF", b"RIFF" * 1000):
        path.write_bytes(nonsense)
        with pytest.raises(StoreUnreadable, match="does not begin with EDGSTOR"):
            Store.load(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StoreUnreadable, match="is not a file"):
        Store.load(path)  # and does not wait for somebody to write into the pipe


def test_a_store_of_a_later_format_is_named(path: Path) -> None:
    path.write_bytes(GOLDEN.read_bytes()[:8] + struct.pack("<I", 2) + b"whatever format 2 may be" * 20)
    with pytest.raises(StoreUnreadable, match="format 2, and this version of edgealign reads format 1"):
        Store.load(path)


def test_every_flipped_byte_is_noticed(path: Path) -> None:
    data = GOLDEN.read_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(StoreUnreadable):
            Store.load(path)


def test_every_truncation_and_every_tail_is_noticed(path: Path) -> None:
    data = GOLDEN.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(StoreUnreadable):
            Store.load(path)
    for tail in (b"\0", data[-32:], data):
        path.write_bytes(data + tail)
        with pytest.raises(StoreUnreadable):
            Store.load(path)


@given(st.binary(max_size=600))
@settings(max_examples=300, deadline=None)
def test_arbitrary_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "arbitrary.store"
    for file in (data, GOLDEN.read_bytes()[:12] + data, GOLDEN.read_bytes()[:80] + data):
        path.write_bytes(file)
        with pytest.raises(StoreUnreadable):
            Store.load(path)


def sealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


edits = st.lists(
    st.one_of(
        st.tuples(st.just("byte"), st.integers(8, 643), st.integers(0, 255)),
        st.tuples(st.just("u32"), st.integers(2, 160).map(lambda i: 4 * i), st.integers(0, 2**32 - 1)),
        st.tuples(st.just("u32"), st.integers(12, 640), st.sampled_from([0, 1, 2, 3, 255, 256, 2**31, 2**32 - 1])),
        st.tuples(st.just("cut"), st.integers(0, 643), st.integers(1, 40)),
        st.tuples(st.just("insert"), st.integers(0, 643), st.integers(1, 40)),
    ),
    min_size=1,
    max_size=4,
)


@given(edits)
@settings(max_examples=1500, deadline=None)
@example([("u32", 64, 2**32 - 1)])
@example([("u32", 68, 2**32 - 1)])
@example([("u32", 12, 2**32 - 1)])
@example([("u32", 12, 0)])
@example([("u32", 72, 2**32 - 1)])
def test_a_forged_store_is_refused_or_means_something(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[str, int, int]]
) -> None:
    """With a checksum that fits, so that everything behind it is reached."""
    body = bytearray(GOLDEN.read_bytes()[:-32])
    for kind, at, value in edits:
        at = min(at, len(body))
        if kind == "byte":
            body[at : at + 1] = bytes([value])
        elif kind == "u32":
            body[at : at + 4] = struct.pack("<I", value)
        elif kind == "cut":
            del body[at : at + value]
        else:
            body[at:at] = b"\x01" * value
    path = tmp_path_factory.getbasetemp() / "forged.store"
    path.write_bytes(sealed(bytes(body)))
    try:
        forged = Store.load(path)
    except StoreUnreadable:
        return
    # What is accepted is a store in every respect: it can be used, and written byte for byte as it was read.
    assert len(forged.rows()) == len(forged.embeddings())
    assert all(0 < len(label.encode()) <= 1024 for label in forged.labels())
    assert np.isfinite(forged.embeddings()).all()
    forged.save(path)
    assert path.read_bytes() == sealed(bytes(body))
    enroll(forged, "one more", 1)


# ---- the format ----


def spec_bytes(
    modality: str,
    encoder: bytes,
    dim: int,
    n_ops: int,
    undo_floor: int,
    labels: list[str],
    rows: list[tuple[int, int, int, int, bytes, str]],
    vectors: np.ndarray,
) -> bytes:
    """Format 1 as docs/formats.md has it, written by other hands than the core's."""
    head = struct.pack("<8sII32sQQ", b"EDGSTOR\0", 1, dim, encoder, n_ops, undo_floor)
    body = head + struct.pack("<IIII", len(labels), len(rows), len(modality), 0) + modality.encode()
    for label in labels:
        body += struct.pack("<I", len(label.encode())) + label.encode()
    for label, kind, added, removed, source, name in rows:
        body += struct.pack("<IIQQ32sI", label, kind, added, removed, source, len(name.encode())) + name.encode()
    body += bytes(-len(body) % 16) + vectors.astype("<f4").tobytes()
    return sealed(body)


def golden_spec() -> bytes:
    sources = [hashlib.sha256(bytes([i])).digest() for i in range(3)]
    rows = [
        (0, RECORDING, 1, 0, sources[0], "a.wav"),
        (0, RECORDING, 1, 0, sources[1], "b.wav"),
        (1, TEXT, 2, 0, sources[1], "ماء"),
        (1, TEXT, 2, 0, sources[2], ""),
        (2, PICTURE, 2, 3, sources[0], "x"),
        (2, PICTURE, 2, 3, sources[1], "y"),
        (2, PICTURE, 2, 3, sources[2], "z"),
    ]
    vectors = np.eye(3)[[0, 1, 1, 2, 0, 1, 2]]
    return spec_bytes("speech", bytes.fromhex(ENCODER), 3, 3, 0, ["maji", "ماء 💧", "gone"], rows, vectors)


def test_the_file_of_format_1_is_read() -> None:
    golden = Store.load(GOLDEN)
    assert (golden.modality, golden.encoder_sha256, golden.dim, golden.n_ops) == ("speech", ENCODER, 3, 3)
    assert golden.labels() == ["maji", "ماء 💧"]
    assert golden.rows().tolist() == [
        (0, RECORDING, "a.wav"),
        (0, RECORDING, "b.wav"),
        (1, TEXT, "ماء"),
        (1, TEXT, ""),
    ]
    np.testing.assert_array_equal(golden.embeddings(), np.eye(3)[[0, 1, 1, 2]])
    golden.undo()
    assert golden.labels() == ["maji", "ماء 💧", "gone"]


def test_the_file_of_format_1_is_what_the_specification_says() -> None:
    assert GOLDEN.read_bytes() == golden_spec()


def test_the_script_of_format_1_still_writes_the_same_bytes(path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_store_format_1", DATA / "make_store_format_1.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.make().save(path)
    assert path.read_bytes() == GOLDEN.read_bytes()


def test_limits_of_the_specification_are_those_of_the_header() -> None:
    header = (Path(__file__).parents[1] / "cpp_ext/include/edgealign.h").read_text()
    formats = (Path(__file__).parents[1] / "docs/formats.md").read_text()
    for name, stated in (
        ("EA_MAX_MODALITY_BYTES = 32", "modality_bytes, u32: 1 to 32"),
        ("EA_MAX_LABEL_BYTES = 1024", "u32 length 1 to 1,024"),
        ("EA_MAX_NAME_BYTES = 255", "u32, 0 to 255"),
        ("EA_MAX_DIM = 4096", "1 to 4,096"),
        ("EA_MAX_LABELS = 100000", "at most 100,000"),
        ("EA_MAX_ROWS = 1000000", "at most 1,000,000"),
        ("EA_MAX_UNDO = 100 ", "last 100 operations"),
    ):
        assert name in header and stated in formats


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda kept: kept.update(labels=["a", "a"]), "a label appears twice"),
        (lambda kept: kept.update(labels=["a", "b\0"]), "a label is damaged"),
        (lambda kept: kept.update(labels=["a", ""]), "a label is damaged"),
        (lambda kept: kept.update(labels=["a", "b" * 1025]), "damaged|after its end"),
        (lambda kept: kept["rows"].__setitem__(1, (0, 1, 1, 0, digest(1), "")), "a label has no rows"),
        (lambda kept: kept["rows"].__setitem__(1, (2, 1, 1, 0, digest(1), "")), "a row is damaged"),
        (lambda kept: kept["rows"].__setitem__(1, (1, 4, 1, 0, digest(1), "")), "a row is damaged"),
        (lambda kept: kept["rows"].__setitem__(1, (1, 1, 0, 0, digest(1), "")), "a row is damaged"),
        (lambda kept: kept["rows"].__setitem__(1, (1, 1, 3, 0, digest(1), "")), "a row is damaged"),
        (lambda kept: kept["rows"].__setitem__(1, (1, 1, 2, 1, digest(1), "")), "a row is damaged"),
        (lambda kept: kept.update(vectors=np.full((2, 3), np.nan)), "NaN or infinity"),
        (lambda kept: kept.update(vectors=np.ones((3, 3))), "bytes after its end"),
        (lambda kept: kept.update(vectors=np.ones((1, 3))), "cut short"),
        (lambda kept: kept.update(undo_floor=3), "its head is damaged"),
        (lambda kept: kept.update(dim=0), "its head is damaged"),
        (lambda kept: kept.update(modality=""), "its head is damaged"),
    ],
)
def test_each_must_of_the_specification_is_checked(change: Callable[[dict], None], message: str, path: Path) -> None:
    kept = {
        "modality": "speech",
        "encoder": bytes(32),
        "dim": 3,
        "n_ops": 2,
        "undo_floor": 0,
        "labels": ["a", "b"],
        "rows": [(0, 1, 1, 0, digest(0), "x"), (1, 1, 2, 0, digest(1), "y")],
        "vectors": np.ones((2, 3)),
    }
    path.write_bytes(spec_bytes(**kept))
    assert Store.load(path).labels() == ["a", "b"]
    change(kept)
    path.write_bytes(spec_bytes(**kept))
    with pytest.raises(StoreUnreadable, match=message):
        Store.load(path)


# ---- crashes, crowds, full disks ----


def start(code: str, *arguments: object) -> subprocess.Popen:
    """A Python process of its own, with this file's helpers at hand and its first argument as `path`."""
    preamble = f"""
        import importlib.util, os, resource, signal, sys, time
        spec = importlib.util.spec_from_file_location("helpers", {__file__!r})
        helpers = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(helpers)
        from edgealign.errors import StoreUnwritable
        from edgealign.store import Store
        path = sys.argv[1]
    """
    program = textwrap.dedent(preamble) + textwrap.dedent(code)
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


def test_killed_in_the_middle_of_a_save_leaves_the_old_store_or_the_new_one(path: Path) -> None:
    """A child saves version after version and is killed after a random while, 100 times."""
    output = finish(start(
        """
        import random
        delays = random.Random(0)
        made = Store.create("speech", helpers.ENCODER, 64)
        helpers.enroll(made, "version 0", 3000)
        rows = helpers.embeddings(500, 64)
        sources, names = [helpers.digest(i) for i in range(500)], [""] * 500
        made.save(path)
        began = time.monotonic()
        made.save(path)
        save_s = time.monotonic() - began
        versions, partial = set(), 0
        for attempt in range(100):
            before = int(Store.load(path).labels()[-1].split()[1])
            child = os.fork()
            if child == 0:
                for version in range(before + 1, 10**9):
                    n_new = 500 if version % 2 else 1
                    made.add(f"version {version}", rows[:n_new], 1, sources[:n_new], names[:n_new])
                    made.save(path)
                    made.undo()
            time.sleep(delays.uniform(0.5, 4) * save_s)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            partial += os.path.exists(path + ".partial")
            left = Store.load(path)
            version = int(left.labels()[-1].split()[1])
            assert version >= before, (version, before)
            expected = 3000 if version == 0 else 3000 + (500 if version % 2 else 1)
            assert len(left.rows()) == expected, (version, len(left.rows()))
            versions.add(version)
        print(len(versions), partial)
        """,
        path,
    ))  # fmt: skip
    n_versions, n_partial = map(int, output.split())
    assert n_versions > 10, "the child did not get to save"
    assert n_partial > 0, "no kill came in the middle of writing"


def test_writers_at_the_same_time_lose_nothing(path: Path) -> None:
    code = """
        for i in range(25):
            with Store.update(path, "speech", helpers.ENCODER, 4) as opened:
                helpers.enroll(opened, f"{sys.argv[2]} {i}")
    """
    for writer in [start(code, path, name) for name in ("a", "b", "c")]:
        finish(writer)
    merged = Store.load(path)
    assert sorted(merged.labels()) == sorted(f"{name} {i}" for name in "abc" for i in range(25))
    assert merged.n_ops == 75


def test_a_full_disk_is_reported_and_costs_nothing(path: Path) -> None:
    """A limit on the size of files stands for the disk: writing fails in the middle either way."""
    made = new_store()
    enroll(made, "maji")
    made.save(path)
    before = path.read_bytes()
    output = finish(start(
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        try:
            with Store.update(path) as opened:
                helpers.enroll(opened, "moto", 500)
        except StoreUnwritable as error:
            print(error)
        """,
        path,
    ))  # fmt: skip
    assert f"cannot write '{path}'" in output and "errno" in output
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["speech.store", "speech.store.lock"]


AS_NOBODY = """
        if os.geteuid() == 0:  # nothing is read-only for root
            os.setgid(65534)
            os.setuid(65534)
        try:
            with Store.update("speech.store") as opened:
                helpers.enroll(opened, "moto")
        except StoreUnwritable as error:
            print(error)
        assert Store.load("speech.store").labels() == [], "reading still works"
        """


def test_a_read_only_folder_is_reported(path: Path) -> None:
    new_store().save(path)
    before = path.read_bytes()
    path.with_name("speech.store.lock").unlink()
    output = finish(start(
        """
        os.chdir(os.path.dirname(path))
        os.chmod(".", 0o555)
        os.chmod("speech.store", 0o444)
        """ + AS_NOBODY,
        path,
    ))  # fmt: skip
    path.parent.chmod(0o755)
    assert "cannot write 'speech.store" in output
    assert path.read_bytes() == before


def test_a_read_only_store_stays_as_it_is_in_a_folder_that_is_not(path: Path) -> None:
    new_store().save(path)
    before = path.read_bytes()
    output = finish(start(
        """
        os.chmod(path, 0o444)
        os.chmod(os.path.dirname(path), 0o777)
        os.chmod(path + ".lock", 0o666)
        os.chdir(os.path.dirname(path))
        """ + AS_NOBODY,
        path,
    ))  # fmt: skip
    assert "cannot write 'speech.store': Permission denied" in output
    assert path.read_bytes() == before


def test_ten_thousand_labels(path: Path) -> None:
    """Enrolled, saved, loaded, matched: seconds of the processor at most; a search per label would take minutes."""
    began = time.process_time()
    with Store.update(path, "speech", ENCODER, 64) as opened:
        for i in range(10_000):
            enroll(opened, f"label {i}", 2, seed=i)
    loaded = Store.load(path)
    assert loaded.labels() == [f"label {i}" for i in range(10_000)]
    matcher = Matcher(loaded, embeddings(500, 64, seed=10_001), CALIBRATION)
    assert matcher.classify(embeddings(2, 64, seed=77)[0])[0].label == 77
    loaded.remove("label 5000")
    loaded.undo()
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    ("change", "labels", "n_rows"),
    [("remove", ["moto"], [49]), ("add", ["maji", "moto"], [51, 49]), ("rename", ["moto", "mto"], [49, 50])],
)
def test_c_may_name_a_label_by_the_string_that_the_store_gave(
    path: Path, change: str, labels: list[str], n_rows: list[int]
) -> None:
    """Labels move in memory where a change drops what can be undone no more: here "gone", removed at first."""
    import ctypes

    from level2 import library

    made = new_store()
    enroll(made, "gone")
    made.remove("gone")
    for i in range(99):
        enroll(made, ("maji", "moto")[i % 2], 1, seed=i)
    made.save(path)
    opened, lock, count, name = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t(), str(path).encode()
    assert library.ea_store_load(name, ctypes.byref(opened), None) == 0
    label_of = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(("ea_store_label", library))
    maji = ctypes.c_void_p(label_of(opened, 0))
    if change == "remove":
        assert library.ea_store_remove(opened, maji, ctypes.byref(count), None) == 0
    elif change == "rename":
        assert library.ea_store_rename(opened, maji, b"mto", ctypes.byref(count), None) == 0
    else:
        row, source, names = embeddings(1).tobytes(), digest("new"), (ctypes.c_char_p * 1)(b"new.wav")
        one = ctypes.c_size_t(1)
        assert library.ea_store_add(opened, maji, RECORDING, row, one, source, names, ctypes.byref(count), None) == 0
    assert library.ea_store_lock_acquire(name, ctypes.byref(lock), None) == 0
    assert library.ea_store_save(opened, name, lock, None) == 0
    library.ea_store_lock_release(lock)
    library.ea_store_free(opened)
    kept = Store.load(path)
    assert kept.labels() == labels
    assert np.bincount(kept.rows()["label"]).tolist() == n_rows


# ---- the matcher of a store ----


def test_a_matcher_counts_labels_as_the_store_does() -> None:
    made = new_store(16)
    for i, label in enumerate(("gone", "b", "a")):
        enroll(made, label, 3, seed=i)
    made.remove("gone")
    matcher = Matcher(made, np.zeros((0, 16)), CALIBRATION)
    for i, label in ((1, "b"), (2, "a")):
        best = matcher.classify(embeddings(3, 16, seed=i).sum(axis=0))[0]
        assert made.labels()[best.label] == label
        assert best.distance < 1e-6 and best.accepted


def test_a_matcher_of_an_empty_store_is_refused() -> None:
    with pytest.raises(ValueError, match="0 labels"):
        Matcher(new_store(), np.zeros((0, 4)), CALIBRATION)
