"""Learning curves of the training runs: python -m benchmarks.curves draws benchmarks/curves.svg from benchmarks/runs.

A run's file is the log.jsonl of its folder. Needs `[report]`.
"""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
MEASURES = {
    "recorded_1shot": "recorded words, other speaker, 1 shot (6-way)",
    "recorded_5shot": "recorded words, other speaker, 5 shots (6-way)",
    "text_grapheme": "synthetic words from spelling alone (10-way)",
}


def main() -> None:
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(5 * len(MEASURES), 5), sharex=True, layout="constrained")
    paths = sorted((HERE / "runs").glob("*.jsonl"))
    looks = [(color, line) for line in ("-", "--", ":") for color in plt.get_cmap("tab10").colors]
    for path, (color, line) in zip(paths, cycle(looks), strict=False):
        points = [json.loads(text) for text in path.read_text().splitlines()]
        minutes = [point["trained_s"] / 60 for point in points]
        for axis, name in zip(axes, MEASURES, strict=True):
            wrong = [100 - point[name] for point in points]
            axis.plot(minutes, wrong, marker=".", color=color, linestyle=line, label=path.stem)
    for axis, title in zip(axes, MEASURES.values(), strict=True):
        axis.set(title=title, xlabel="minutes of training in this run", ylabel="wrong, %", yscale="log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.tick_params(axis="y", which="minor", labelsize=7)
        axis.grid(which="both", alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    matplotlib.rcParams["svg.hashsalt"] = "edgealign"  # the same runs draw the same file
    figure.savefig(HERE / "curves.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
