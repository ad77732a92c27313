"""Bytes of protobuf messages, read and written without the protobuf package: what an ONNX model is made of."""

from __future__ import annotations

from collections.abc import Iterator

MAX_DEPTH = 64  # of messages in each other; a subgraph of an ONNX model takes three

Span = tuple[int, int]  # where a message lies in the data


class Reader:
    """Walks the messages in some bytes; ValueError, as a clause about "it", where they are none."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:
            byte = self.data[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value & (2**64 - 1), at
        raise ValueError("it is no ONNX model: a number is cut short")

    def fields(self, span: Span, depth: int) -> Iterator[tuple[int, int | None, Span]]:
        """Number of each field, and its value where it is a varint; else None and the bytes that hold it."""
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        at, end = span
        while at < end:
            key, at = self.varint(at, end)
            wire, value, start = key & 7, None, at
            if wire == 2:
                size, start = self.varint(at, end)
                at = start + size
            elif wire == 0:
                value, at = self.varint(at, end)
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            else:
                raise ValueError(f"it is no ONNX model: wire type {wire}")
            if at > end:
                raise ValueError("it is no ONNX model: a field reaches past its message")
            yield key >> 3, value, (start, at)

    def messages(self, span: Span, depth: int) -> Iterator[tuple[int, Span]]:
        return ((number, part) for number, value, part in self.fields(span, depth) if value is None)

    def bytes(self, span: Span) -> bytes:
        return self.data[span[0] : span[1]]

    def text(self, span: Span) -> str:
        return self.bytes(span).decode("utf-8", "replace")


def field(number: int, value: bytes | int) -> bytes:
    """A field of a message: bytes that it holds, or a number that is not negative."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    digits = []
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
