"""An evaluation as one HTML file: sentences, a table by label, the confusion matrix, precision against recall."""

from __future__ import annotations

import html
from collections.abc import Sequence
from datetime import UTC, datetime

from edgealign import __version__
from edgealign.evaluation import UNKNOWN, Evaluation, shown_share, summary_lines, taken_for

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>edgealign evaluate</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1d2733; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ padding: .2rem .6rem; text-align: right; font-weight: 400; border-bottom: 1px solid #e3e8ee }}
th:first-child {{ text-align: left }} thead th {{ color: #66727f; vertical-align: bottom }}
.matrix td {{ text-align: center; min-width: 2rem; border: 1px solid white }} .scroll {{ overflow-x: auto }}
.source {{ color: #66727f; font-size: 12px; overflow-wrap: anywhere }}
.matrix td.right {{ outline: 2px solid #1a7f4b; outline-offset: -2px }}
</style>
<h1>How well these clips were named</h1>
{summary}
<h2>By label</h2>
{labels}
<h2>What was answered</h2>
<p>A line for what a clip holds, a column for the answer. Outlined: what is right.</p>
<div class="scroll">{matrix}</div>
<h2>Precision and recall</h2>
<p>If answers needed another probability: each point is one; the dot is the {accept:.0%} that they do need. Average
precision {average:.3f}.</p>
{curve}
<p class=source>Store {store}<br>encoder {encoder}<br>edgealign {version}, {date}</p>
</html>
"""


def page(evaluation: Evaluation) -> str:
    """The evaluation as one HTML file without scripts, and without anything from elsewhere."""
    summary = "".join(f"<p>{html.escape(line)}</p>" for line in summary_lines(evaluation))
    rows = [
        [one.label, str(one.n), *(str(n) for n in (one.right, one.unknown)), taken_for(one), shown_share(one.share)]
        for one in evaluation.by_label
    ]
    return PAGE.format(
        summary=summary,
        labels=_html_table(("label", "clips", "right", "unknown", "taken for", "right, 95 % interval"), rows),
        matrix=_matrix(evaluation),
        average=evaluation.average_precision,
        curve=_curve(evaluation.precision_recall(), evaluation.accept_probability),
        accept=evaluation.accept_probability,
        store=evaluation.store_sha256,
        encoder=evaluation.encoder_sha256,
        version=__version__,
        date=datetime.now(UTC).date().isoformat(),
    )


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _matrix(evaluation: Evaluation) -> str:
    truths, answers, counts = evaluation.confusion()
    enrolled = set(evaluation.labels)
    head = "".join(f"<th>{html.escape('unknown' if a is UNKNOWN else a)}</th>" for a in answers)
    body = []
    for truth, row in zip(truths, counts, strict=True):
        right = truth if truth in enrolled else UNKNOWN
        cells = "".join(
            f'<td style="background:rgba(13,63,117,{0.85 * n / sum(row):.2f});color:{_ink(n / sum(row))}"'
            f"{' class=right' if answer == right else ''}>{n or ''}</td>"
            for answer, n in zip(answers, row, strict=True)
        )
        name = html.escape(truth) if truth in enrolled else f"{html.escape(truth)} <small>(not enrolled)</small>"
        body.append(f"<tr><th>{name}</th>{cells}</tr>")
    return f"<table class=matrix><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _ink(share: float) -> str:
    return "white" if share > 0.75 else "#1d2733"  # what is read best on the color of this share


def _curve(points: Sequence[tuple[float, float, float]], accept: float) -> str:
    side, margin = 360, 44
    dot = "".join(
        f'<circle cx="{margin + side * r:.1f}" cy="{margin / 2 + side * (1 - p):.1f}" r="4.5" fill="#1a7f4b"/>'
        for _, p, r in [point for point in points if point[0] >= accept][-1:]
    )
    line = " ".join(f"{margin + side * r:.1f},{margin / 2 + side * (1 - p):.1f}" for _, p, r in points)
    ticks = "".join(
        f'<text x="{margin + side * t:.0f}" y="{side + margin / 2 + 18}" text-anchor="middle">{t:.0%}</text>'
        f'<text x="{margin - 6}" y="{margin / 2 + side * (1 - t) + 4:.0f}" text-anchor="end">{t:.0%}</text>'
        for t in (0, 0.25, 0.5, 0.75, 1)
    )
    return (
        f'<svg width="{side + 2 * margin}" height="{side + 2 * margin}" font-size="11" fill="#66727f">'
        f'<rect x="{margin}" y="{margin / 2}" width="{side}" height="{side}" fill="none" stroke="#c5ced8"/>{ticks}'
        f'<text x="{margin + side / 2}" y="{side + margin}" text-anchor="middle" dy="14">recall</text>'
        f'<text x="4" y="{margin / 2 - 6}">precision</text>'
        f'<polyline points="{line}" fill="none" stroke="#1f5c98" stroke-width="2"/>{dot}</svg>'
    )
