"""The progress of a long command: a line on stderr."""

from __future__ import annotations

import shutil
import sys
import time

from edgealign.cli.output import say


class Progress:
    """A line on stderr: rewritten on a terminal, else a new one every half minute."""

    EVERY_S, EVERY_S_ELSEWHERE = 0.2, 30.0

    def __init__(self, n_inputs: int, noun: str = "recordings") -> None:
        self.n_inputs, self.noun = n_inputs, noun
        self.began = self.shown = time.monotonic()
        self.on_terminal = sys.stderr.isatty()

    def __call__(self, share: float, n_done: int) -> None:
        now = time.monotonic()
        if now - self.shown < (self.EVERY_S if self.on_terminal else self.EVERY_S_ELSEWHERE) and share < 1:
            return
        self.shown = now
        left = f", {clock((now - self.began) * (1 - share) / share)} left" if 0 < share < 1 else ""
        line = f"{share:4.0%}  {n_done} of {self.n_inputs} {self.noun}{left}"
        if self.on_terminal:
            width = min(60, shutil.get_terminal_size().columns - 1)  # a line that wraps could not be written over
            print(f"\r{line[:width]:<{width}}", end="\n" if share >= 1 else "", file=sys.stderr, flush=True)
        elif share < 1:
            say(line)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
