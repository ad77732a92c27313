"""Learning curves of the training runs: python -m benchmarks.curves draws benchmarks/curves.svg from benchmarks/runs.

A run's file is the log.jsonl of its folder. Needs `[report]`.
"""

from __future__ import annotations

import json
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
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(5 * len(MEASURES), 4), sharex=True)
    for path in sorted((HERE / "runs").glob("*.jsonl")):
        points = [json.loads(line) for line in path.read_text().splitlines()]
        for axis, (name, title) in zip(axes, MEASURES.items(), strict=True):
            axis.plot([p["trained_s"] / 60 for p in points], [p[name] for p in points], marker=".", label=path.stem)
            axis.set(title=title, xlabel="minutes of training in this run", ylabel="right, %")
            axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    matplotlib.rcParams["svg.hashsalt"] = "edgealign"  # the same runs draw the same file
    figure.savefig(HERE / "curves.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
