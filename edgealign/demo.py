"""The main job on clips that are shipped: learn a few words, name other clips, draw what came out.

The clips were synthesized for this project, with voices that the encoder never heard in training. `manifest.json`
beside them lists file, label (null for what was never enrolled), voice and role (enroll or query).
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass

from edgealign.bundle import Bundle
from edgealign.errors import InputUnreadable
from edgealign.recognizer import Answer, Recognizer
from edgealign.writing import replace_file

CLIPS = os.path.join(os.path.dirname(__file__), "demo_clips")


@dataclass(frozen=True)
class Query:
    """One clip that was asked about, what it really is (None: nothing that was enrolled), who spoke, and the answer."""

    file: str
    label: str | None
    voice: str | None
    answer: Answer

    @property
    def right(self) -> bool:
        return self.answer.label == self.label


@dataclass(frozen=True)
class Result:
    """What the demo learned and was asked.

    labels               in the order in which they were learned
    n_enrolled           clips that they were learned from
    accept_probability   the least probability at which a label is answered
    queries              of one label after the other, those of no label last
    """

    labels: tuple[str, ...]
    n_enrolled: int
    accept_probability: float
    queries: tuple[Query, ...]

    def share_right(self, enrolled: bool) -> tuple[int, int]:
        """How many queries were answered right, of how many: of the words that were enrolled, or of the others."""
        of_kind = [query.right for query in self.queries if (query.label is not None) == enrolled]
        return sum(of_kind), len(of_kind)


def run(bundle_path: str | os.PathLike | None = None, device: str = "auto", clips: str | None = None) -> Result:
    """Enrolls and classifies the demo's clips with a store of its own, which is thrown away."""
    clips = clips if clips is not None else CLIPS
    entries = _read_manifest(clips)
    with tempfile.TemporaryDirectory(prefix="edgealign-demo-") as folder:
        recognizer = Recognizer(Bundle.open(bundle_path, device=device), os.path.join(folder, "demo.store"))
        to_enroll = [entry for entry in entries if entry["role"] == "enroll"]
        labels = tuple(dict.fromkeys(entry["label"] for entry in to_enroll))
        for label in labels:
            files = [os.path.join(clips, entry["file"]) for entry in to_enroll if entry["label"] == label]
            recognizer.enroll(files, label=label)
        queries = []
        for entry in entries:
            if entry["role"] == "query":
                answer = recognizer.classify(os.path.join(clips, entry["file"]), top_k=len(labels))
                queries.append(Query(entry["file"], entry["label"], entry["voice"], answer))
    order = {label: i for i, label in enumerate(labels)}
    queries.sort(key=lambda query: order.get(query.label, len(labels)))
    return Result(labels, len(to_enroll), recognizer.accept_probability, tuple(queries))


def _read_manifest(clips: str) -> list[dict]:
    path = os.path.join(clips, "manifest.json")
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise InputUnreadable(f"the demo's clips are not installed: '{path}' cannot be read ({error})") from None


CELL_WIDTH, CELL_HEIGHT = 92, 26
LEFT, TOP, RIGHT, BOTTOM = 210, 128, 150, 70
# From almost white to dark blue, in equal steps of lightness; from FIRST_DARK_SHADE on white text is read best.
SHADES = ("#f4f7fb", "#dbe7f4", "#bdd4ec", "#94badf", "#659ccd", "#3b7ab5", "#1f5c98", "#0d3f75")
FIRST_DARK_SHADE = 5
INK, FAINT, RIGHT_COLOR, WRONG_COLOR = "#1d2733", "#66727f", "#1a7f4b", "#c0392b"


def draw(result: Result) -> str:
    """The result as an SVG: one row per clip, one column per label, and the probability of each."""
    columns = [*result.labels, "unknown"]
    gaps = _group_gaps(result.queries)
    width = LEFT + CELL_WIDTH * len(columns) + RIGHT
    height = TOP + CELL_HEIGHT * len(result.queries) + gaps[-1] + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="Inter, Segoe UI, Helvetica, Arial, DejaVu Sans, sans-serif" font-size="13" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(24, 36, "What edgealign made of the demo clips", size=20, weight="600"),
        _text(24, 60, _summary(result), color=FAINT),
    ]
    for i, label in enumerate(columns):
        style = {"color": FAINT} if i == len(result.labels) else {"weight": "600"}
        parts.append(_text(LEFT + CELL_WIDTH * (i + 0.5), TOP - 14, _fitted(label, 12), anchor="middle", **style))
    parts.append(_text(LEFT - 14, TOP - 14, "clip", color=FAINT, anchor="end"))
    for row, (query, gap) in enumerate(zip(result.queries, gaps, strict=True)):
        parts += _draw_row(query, columns, TOP + CELL_HEIGHT * row + gap)
    parts += _draw_legend(result, height - 30)
    return "\n".join([*parts, "</svg>\n"])


def _summary(result: Result) -> str:
    right, of_enrolled = result.share_right(enrolled=True)
    rejected, of_others = result.share_right(enrolled=False)
    return (
        f"{len(result.labels)} words learned from {result.n_enrolled} clips. Right: {right} of {of_enrolled} clips of "
        f"these words; left as unknown: {rejected} of {of_others} other words and noises."
    )


def _group_gaps(queries: tuple[Query, ...]) -> list[int]:
    """Vertical offset of each row: a little space between the words."""
    gaps, gap = [], 0
    for i, query in enumerate(queries):
        gap += 8 if i and query.label != queries[i - 1].label else 0
        gaps.append(gap)
    return gaps


def _draw_row(query: Query, columns: list[str], y: float) -> list[str]:
    answer = query.answer
    probabilities = {candidate.label: candidate.probability for candidate in answer.top}
    best = answer.probability or 0.0  # of the closest label, which the decision is about
    answered = "unknown" if answer.label is None else answer.label
    middle = y + CELL_HEIGHT / 2 + 4.5
    parts = [_text(LEFT - 14, middle, _fitted(_clip_name(query), 28), anchor="end")]
    for i, column in enumerate(columns):
        is_unknown_column = i == len(columns) - 1
        probability = 1 - best if is_unknown_column else probabilities.get(column, 0.0)
        shade = min(int(probability * len(SHADES)), len(SHADES) - 1)
        x = LEFT + CELL_WIDTH * i
        parts.append(
            f'<rect x="{x + 1}" y="{y + 1}" width="{CELL_WIDTH - 2}" height="{CELL_HEIGHT - 2}" rx="4" '
            f'fill="{SHADES[shade]}"/>'
        )
        chosen = column == answered and is_unknown_column == (answer.label is None)
        if chosen:
            parts.append(
                f'<rect x="{x + 1}" y="{y + 1}" width="{CELL_WIDTH - 2}" height="{CELL_HEIGHT - 2}" rx="4" fill="none" '
                f'stroke="{RIGHT_COLOR if query.right else WRONG_COLOR}" stroke-width="2.5"/>'
            )
        if chosen or probability >= 0.05:
            color = "white" if shade >= FIRST_DARK_SHADE else INK
            parts.append(
                _text(
                    x + CELL_WIDTH / 2, middle, f"{min(probability, 0.99):.0%}", color=color, anchor="middle", size=12
                )
            )
    color, verdict = (RIGHT_COLOR, "right") if query.right else (WRONG_COLOR, "wrong")
    x = LEFT + CELL_WIDTH * len(columns) + 14
    parts.append(_text(x, middle, f"{'✓' if query.right else '✗'} {verdict}", color=color, weight="600"))
    return parts


def _clip_name(query: Query) -> str:
    """water · awb · 25dB for ask/water_awb_25dB.ogg: what is spoken, by which voice, how much louder than the noise."""
    return " · ".join(os.path.splitext(os.path.basename(query.file))[0].split("_"))


def _draw_legend(result: Result, y: float) -> list[str]:
    legend = f"Outlined: the answer; a word needs {result.accept_probability:.0%}. All clips are synthetic speech."
    parts = [_text(24, y, legend, color=FAINT, size=12)]
    x = LEFT + 5.2 * CELL_WIDTH
    parts.append(_text(x - 8, y, "0 %", color=FAINT, size=12, anchor="end"))
    for i, shade in enumerate(SHADES):
        parts.append(f'<rect x="{x + 18 * i}" y="{y - 11}" width="18" height="14" fill="{shade}"/>')
    parts.append(_text(x + 18 * len(SHADES) + 8, y, "100 %", color=FAINT, size=12))
    return parts


def _text(
    x: float, y: float, text: str, *, size: int = 13, weight: str = "400", color: str = INK, anchor: str = "start"
) -> str:
    from xml.sax.saxutils import escape

    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" fill="{color}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )


def _fitted(text: str, n_characters: int) -> str:
    return text if len(text) <= n_characters else text[: n_characters - 1] + "…"


def save_picture(result: Result, path: str | os.PathLike) -> None:
    with replace_file(path) as file:
        file.write(draw(result).encode("utf-8"))
