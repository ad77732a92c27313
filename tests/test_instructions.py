"""The hot paths of the core take no more instructions than the committed numbers say.

Run: python -m pytest tests/test_instructions.py
Where a change is worth its price: python -m benchmarks.instructions --update
"""

from __future__ import annotations

import pytest

from benchmarks import instructions, rows


def test_hot_paths_take_no_more_instructions_than_committed() -> None:
    lacking = instructions.missing()
    if lacking:
        pytest.skip(lacking)
    committed = rows.read(instructions.ROWS)
    compared = instructions.compare(instructions.count(), committed)
    shares = {row["what"]: share for row, share in compared if share is not None}
    if not shares:
        row = compared[0][0]
        pytest.skip(f"no numbers of {row['compiler']}, {row['libc']}, {row['instruction_set']}")
    assert len(shares) == len(instructions.PATHS)
    slower = {what: f"{share - 1:+.1%}" for what, share in shares.items() if share > 1 + instructions.TOLERANCE}
    assert not slower, f"python -m benchmarks.instructions --update, if this is worth it: {slower}"


def test_numbers_of_another_compiler_are_not_compared() -> None:
    row = {"path": "p", "instruction_set": "avx2", "compiler": "GCC 12", "libc": "glibc 2.36", "instructions": 100}
    assert instructions.compare([row | {"instructions": 110}], [row]) == [(row | {"instructions": 110}, 1.1)]
    assert instructions.compare([row], [row | {"compiler": "GCC 13"}]) == [(row, None)]
