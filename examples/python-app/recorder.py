"""Listens to a file, or to the microphone, and writes what it hears: a WAV with GUANO and an Audacity label track.

python recorder.py words.store out.wav [in.wav]
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import soundfile

from edgealign import EdgealignError, Recognizer
from edgealign.audio import AudioFile, AudioSource
from edgealign.listen import Microphone, listen


class Recorded(AudioSource):
    """Another source, of which all that is heard is kept."""

    def __init__(self, source: AudioSource, path: str):
        super().__init__(source.name, source.sample_rate_hz, source.n_channels)
        self.source = source
        self.file = soundfile.SoundFile(
            path, "x", int(source.sample_rate_hz), source.n_channels, "PCM_16", format="WAV"
        )

    def native_blocks(self) -> Iterator[np.ndarray]:
        for block in self.source.native_blocks():
            self.file.write(block)
            yield block


def add_guano(path: Path, started: datetime, note: str) -> None:
    """Appends the metadata as a chunk of the WAV file."""
    text = (
        f"GUANO|Version:1.0\nTimestamp:{started.isoformat(timespec='seconds')}\nMake:edgealign\nNote:{note}\n".encode()
    )
    with path.open("r+b") as file:
        file.seek(0, 2)
        file.write(b"guan" + struct.pack("<I", len(text)) + text + b"\0" * (len(text) % 2))
        riff_bytes = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", riff_bytes))


def main(store: str, out: str, source_path: str | None = None) -> int:
    recognizer = Recognizer.open(store)
    track = Path(out).with_suffix(".txt").open("x", encoding="utf-8")  # neither labels nor a recording are written over
    recording = Recorded(Microphone() if source_path is None else AudioFile(source_path), out)
    started, n_marks = datetime.now(UTC), 0
    try:
        for heard in listen(recognizer, recording, debounce_s=0.5):
            answer = heard.answer
            if answer.label is not None:
                track.write(f"{answer.start_s:.6f}\t{answer.end_s:.6f}\t{answer.label} {answer.probability:.2f}\n")
                track.flush()  # a power cut takes no word that was heard
                n_marks += 1
                print(f"{answer.start_s:8.2f} s  {answer.label}", flush=True)
    except (KeyboardInterrupt, EdgealignError) as end:  # what was recorded until then is kept
        print(f"ended: {end or 'Ctrl-C'}", file=sys.stderr)
    recording.file.close()
    track.close()
    add_guano(Path(out), started, f"{n_marks} marked words")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
