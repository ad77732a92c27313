"""How `classify` prints its answers: a line for people, JSON lines, or CSV."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from edgealign import kernels
from edgealign.cli.options import Format
from edgealign.cli.output import csv_row, json_line, percent, printable

if TYPE_CHECKING:
    from edgealign.recognizer import Answer, Recognizer

DEFAULT_TOP_K = 5
CSV_ANSWER = ("file", "label", "probability", "distance", "threshold")
CSV_RUNNER_UP = ("runner_up_label", "runner_up_distance")
CSV_TOP = ("label", "distance", "probability")
CSV_SOURCE = ("modality", "store_sha256", "encoder_sha256", "backend")


class AnswerPrinter:
    """Prints answers to stdout, one at a time; CSV gets its header when the printer is made.

    top_k   how many labels to list, at most those of the store: None lists none for people and DEFAULT_TOP_K elsewhere
    """

    def __init__(self, recognizer: Recognizer, output_format: Format, top_k: int | None):
        self.output_format = output_format
        self.lists_top = top_k is not None
        # So that a large number does not become as many empty columns.
        self.n_listed = min(top_k or DEFAULT_TOP_K, max(DEFAULT_TOP_K, len(recognizer.store.labels())))
        if output_format is not Format.TEXT:
            self.source = {
                "modality": recognizer.bundle.modality,
                "store_sha256": recognizer.store.sha256,
                "encoder_sha256": recognizer.bundle.encoder_sha256,
                "backend": kernels.backend(),
            }
        if output_format is Format.CSV:
            top = [f"top{i}_{field}" for i in range(1, self.n_listed + 1) for field in CSV_TOP]
            sys.stdout.write(csv_row((*CSV_ANSWER, *CSV_RUNNER_UP, *top, *CSV_SOURCE)))

    def show(self, answer: Answer) -> None:
        if self.output_format is Format.TEXT:
            print(self.as_text(answer))
        elif self.output_format is Format.JSON:
            print(json_line(self.as_dict(answer)))
        else:
            sys.stdout.write(csv_row(self._as_row(answer)))

    def as_text(self, answer: Answer) -> str:
        file = printable(answer.file)
        if answer.distance is None:
            return f"{file}: (unknown), no sound stands out"
        sure = f"{percent(answer.probability)} sure"
        if answer.label is not None:
            line = f"{file}: {printable(answer.label)}, {sure}"
        else:
            needed = f"{percent(answer.accept_probability)} needed"
            line = f"{file}: (unknown), closest is {printable(answer.top[0].label)}, {sure}, {needed}"
        if answer.runner_up is not None:
            line += f", then {printable(answer.runner_up.label)}"
        if self.lists_top:
            for candidate in answer.top:
                sure = percent(candidate.probability)
                line += f"\n    {sure:>4}  {candidate.distance:.3f}  {printable(candidate.label)}"
        return line

    def as_dict(self, answer: Answer) -> dict[str, Any]:
        runner_up = answer.runner_up
        return {
            "file": answer.file,
            "label": answer.label,
            "probability": _rounded(answer.probability),
            "distance": _rounded(answer.distance),
            "threshold": _rounded(answer.threshold),
            "runner_up": None
            if runner_up is None
            else {"label": runner_up.label, "distance": _rounded(runner_up.distance)},
            "top": [
                {"label": top.label, "distance": _rounded(top.distance), "probability": _rounded(top.probability)}
                for top in answer.top
            ],
            **self.source,
        }

    def _as_row(self, answer: Answer) -> list[Any]:
        values = self.as_dict(answer)
        runner_up = values["runner_up"] or {"label": None, "distance": None}
        top = [entry[field] for entry in values["top"] for field in CSV_TOP]
        top += [None] * (len(CSV_TOP) * self.n_listed - len(top))
        return [
            *(values[key] for key in CSV_ANSWER),
            runner_up["label"],
            runner_up["distance"],
            *top,
            *(values[key] for key in CSV_SOURCE),
        ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
