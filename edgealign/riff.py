"""The chunks of WAV files: RIFF, and RF64 for what is larger than 4 GB."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

MAX_CHUNKS = 10_000
OPEN_END_BYTES = 0x7FFFF000  # what a program that does not know how much will come writes, or more


def chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Name, stated size and size as far as the file goes of each chunk; the file is positioned at its content."""
    head = file.read(12)
    if len(head) < 12 or head[:4] not in (b"RIFF", b"RF64", b"BW64") or head[8:] != b"WAVE":
        return
    end = os.fstat(file.fileno()).st_size
    data_bytes = None  # of an RF64, whose own field says 0xFFFFFFFF
    at = 12
    for _ in range(MAX_CHUNKS):
        file.seek(at)
        header = file.read(8)
        if len(header) < 8:
            return
        name, size = header[:4], struct.unpack("<I", header[4:])[0]
        if name == b"ds64" and size >= 16:
            data_bytes = struct.unpack("<Q", file.read(16)[8:])[0]
            file.seek(at + 8)
        if size == 0xFFFFFFFF:
            if name != b"data" or data_bytes is None:
                return
            size = data_bytes
        yield name, size, min(size, end - at - 8)
        at += 8 + size + size % 2


def unannounced_bytes(path: str) -> int:
    """How much follows the header of a WAV that announces no sound, as in one that was never closed; 0 in others."""
    with open(path, "rb") as file:
        for name, stated, _ in chunks(file):
            if name == b"data":
                return 0 if stated else os.fstat(file.fileno()).st_size - file.tell()
    return 0


def data_bytes(path: str) -> tuple[int, int] | None:
    """How many bytes of sound a WAV file announces, and how many it holds; None where its header does not tell."""
    try:
        with open(path, "rb") as file:
            is_large = file.read(4) != b"RIFF"
            file.seek(0)
            for name, stated, held in chunks(file):
                if name == b"data":
                    return (stated, held) if is_large or stated < OPEN_END_BYTES else None
    except OSError:
        pass  # whoever decodes the file says what is wrong with it
    return None
