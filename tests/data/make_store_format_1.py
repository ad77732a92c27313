"""Writes store-format-1.store, the file that every later version must read. It was run once, and says what is in it.

Run: python tests/data/make_store_format_1.py OUT
"""

from __future__ import annotations

import hashlib
import sys

import numpy as np

from edgealign.store import PICTURE, RECORDING, TEXT, Store


def make() -> Store:
    store = Store.create("speech", hashlib.sha256(b"encoder").hexdigest(), 3)
    rows = np.eye(3, dtype=np.float32)
    digests = [hashlib.sha256(bytes([i])).digest() for i in range(3)]
    store.add("maji", rows[:2], RECORDING, digests[:2], ["a.wav", "b.wav"])  # operation 1
    with store.operation():  # operation 2
        store.add("ماء 💧", rows[1:], TEXT, digests[1:], ["ماء", ""])
        store.add("gone", rows, PICTURE, digests, ["x", "y", "z"])
    store.remove("gone")  # operation 3
    return store


if __name__ == "__main__":
    make().save(sys.argv[1])
