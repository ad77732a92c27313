"""Markdown tables from the rows: python -m benchmarks.tables writes benchmarks/RESULTS.md.

Nothing in the tables is typed by hand; a number that is not in a row does not exist.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks import rows

RESULTS = Path(__file__).parent / "RESULTS.md"
CONDITIONS = (
    ("same speaker", 1), ("same speaker", 5), ("other speaker", 1), ("other speaker", 5),
    ("several speakers", 3), ("text", 0), ("read text", 0),
    ("other speaker with text", 1), ("other speaker with text", 5), ("same speaker with text", 1),
    ("same speaker with text", 5), ("several speakers with text", 3),
    ("other speaker with read text", 1), ("other speaker with read text", 5), ("same speaker with read text", 1),
    ("same speaker with read text", 5), ("several speakers with read text", 3),
    ("open set, text", 0), ("open set, read text", 0), ("open set", 1), ("open set", 5),
)  # fmt: skip
LATENCY_NOTE = (
    "Times by the clock, then processor time, which other processes on the machine disturb less. Accuracy: mean over "
    "the packs, other speaker, k=5, of what is timed; empty where not measured."
)
README = Path(__file__).parent.parent / "README.md"
START = ("import and load", "load ONNX Runtime", "load the bundle", "load the store", "first clip")
SPEED_BEGIN, SPEED_END = "<!-- Speed, by python -m benchmarks.tables -->\n", "<!-- end of Speed -->\n"
MEAN_OF_PACKS = "mean of the packs"


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(cells) + " |" for cells in body]
    return "\n".join(lines) + "\n"


def interval(mean: float, ci95: float, sign: bool = False) -> str:
    return f"{mean:{'+' if sign else ''}.1f} ± {ci95:.1f}"


def mean_of(cells: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean of independent means and half-width of its interval: sqrt(sum of squared half-widths) / n."""
    means, widths = np.array(cells).T
    return float(means.mean()), float(np.sqrt((widths**2).sum()) / len(cells))


def condition_name(condition: str, k: int) -> str:
    return f"{condition}, k={k}" if k else f"{condition} alone"


def fewshot_tables(found: list[dict]) -> str:
    """One table per condition: methods by packs; then paired differences and the open set."""
    parts = []
    for what, title in (("fewshot", ""), ("fewshot difference", "paired difference, ")):
        for condition, k in CONDITIONS:
            here = [row for row in found if (row["what"], row["condition"], row["k"]) == (what, condition, k)]
            if not here:
                continue
            packs = list(dict.fromkeys(row["pack"] for row in here))
            ways = {row["pack"]: row["way"] for row in here}
            lines: dict[str, dict[str, tuple[float, float]]] = {}
            for row in here:
                name = f"{row['method']} − {row['minus']}" if "minus" in row else row["method"]
                if row["measure"] != "right":
                    name += f": {row['measure']}"
                lines.setdefault(name, {})[row["pack"]] = row["mean"], row["ci95"]
            body = []
            for name, cells in lines.items():
                texts = [interval(*cells[pack], what != "fewshot") if pack in cells else "–" for pack in packs]
                whole = len(cells) == len(packs)
                texts.append(interval(*mean_of(list(cells.values())), what != "fewshot") if whole else "–")
                body.append([name, *texts])
            head = ["method", *(f"{pack} ({ways[pack]}-way)" for pack in packs), MEAN_OF_PACKS]
            parts.append(f"### {title}{condition_name(condition, k)} (%)\n\n{table(head, body)}")
    return "\n".join(parts)


def ratio(row: dict) -> str:
    """How a time compares to that of another row, on the clock and, where measured, in processor time."""
    if "ratio" not in row:
        return ""
    cpu = f" (processor time {row['cpu_ratio']:.2f} x)" if "cpu_ratio" in row else ""
    return f"{row['ratio']:.2f} x {row['ratio_to']}{cpu}"


def latency_table(found: list[dict]) -> str:
    head = ["what", "stage", "median ms", "p95 ms", "processor ms", "runs", "threads", "ratio", "peak MB", "accuracy %"]
    body = [
        [
            row["what"], row.get("stage", ""), f"{row['median_ms']:.3f}", f"{row['p95_ms']:.3f}",
            f"{row['cpu_median_ms']:.3f}" if "cpu_median_ms" in row else "", str(row["n_runs"]), str(row["threads"]),
            ratio(row), str(row.get("peak_rss_mb", "")), str(row.get("accuracy_percent") or ""),
        ]
        for row in found
        if "median_ms" in row
    ]  # fmt: skip
    return table(head, body) if body else ""


def size_table(found: list[dict]) -> str:
    tabled = ("scan_first_look", "scan_transfer")
    body = []
    for row in found:
        if "value" in row and row["what"] not in tabled:
            cpu = f"{row['cpu_value']:.2f}" if "cpu_value" in row else ""
            body.append([row["what"], row.get("stage", ""), f"{row['value']:.2f}", cpu, row["unit"]])
    return table(["what", "of", "value", "processor time", "unit"], body) if body else ""


def growth_table(found: Sequence[dict]) -> str:
    """A line for each series: its times by size, and the exponent fitted to them."""
    lines: dict[tuple[str, str], list[str]] = {}
    exponents = {}
    for row in found:
        series = row["of"], row["stage"]
        if row["what"] == "growth":
            lines.setdefault(series, []).append(f"{row['x']}: {row.get('cpu_median_ms', row.get('median_ms'))}")
        else:
            exponents[series] = str(row["value"])
    body = [[of, stage, ", ".join(points), exponents[of, stage]] for (of, stage), points in lines.items()]
    return table(["with", "of", "size: ms", "exponent"], body)


def speed_table(latency: list[dict], footprint: list[dict]) -> str:
    """The README's table: what it takes to name one second, beside the field."""
    of = {(row["what"], row.get("stage")): row for row in latency}
    all_of_it = "edgealign and all of its dependencies"
    installed = next((row["value"] for row in footprint if row.get("stage") == all_of_it), None)
    colds = {
        "edgealign int8, Python": "edgealign classify clip.wav",
        "edgealign int8, C": "edgealign-rt classify clip.wav",
    }
    body = []
    for (what, stage), row in of.items():
        if stage != "pcm to label" or what == "Recognizer.classify" or row["threads"] > 1:
            continue
        cold = of.get((colds.get(what, f"{what}: names clip.wav"), "cold process"))
        size = of.get((what, "installed"), {}).get("value", installed if what == "edgealign int8, Python" else None)
        # Some load with the import, some with the first clip: together they can be compared.
        start = [of[what, part]["cpu_value"] for part in START if (what, part) in of]
        body.append(
            [
                what + (f" ({row['note']})" if "note" in row else ""),
                f"{row['cpu_median_ms']:.2f}",
                f"{sum(start):.0f}" if start else "–",
                f"{cold['cpu_ratio']:.1f} x" if cold else "–",
                f"{row['peak_rss_mb']:.0f}" if "peak_rss_mb" in row else "–",
                f"{size:.0f}" if size else "–",
                f"{row['accuracy_percent']:.1f}" if row.get("accuracy_percent") else "–",
            ]
        )
    head = (
        "one thread", "PCM of 1 s to label, ms", "import to first answer, ms", "cold command, `import numpy` = 1",
        "memory, MB", "installed, MB", "right, %",
    )  # fmt: skip
    return table(head, body)


def instructions_table(found: Sequence[dict]) -> str:
    body = [[row["what"], f"{row['instructions']:,}", row["instruction_set"], row["compiler"]] for row in found]
    return table(["what", "instructions", "instruction set", "compiler"], body)


def kernels_table(found: Sequence[dict]) -> str:
    """Squared distances by shape, threads and method: time, beside the limit and the best rival, and both errors."""
    head = ["queries x prototypes x dim", "threads", "method", "µs", "GFLOP/s", "of the limit", "best rival takes",
            "error", "error, near rows"]  # fmt: skip
    body = []
    for row in found:
        if row["what"] != "sq_l2":
            continue
        rival = f"{row['best_rival_over_this']:.2f} x ({row['best_rival']})" if "best_rival" in row else ""
        share = f"{100 * row['share_of_limit']:.0f} %" if "share_of_limit" in row else ""
        errors = ["" if row[name] is None else f"{row[name]:.0e}" for name in ("max_error", "near_error")]
        body.append(
            [
                row["stage"],
                str(row["threads"]),
                row["method"],
                f"{row['value']:.2f}",
                f"{row['gflops']:.1f}",
                share,
                rival,
                *errors,
            ]
        )
    others = [[row["stage"], f"{row['value']:.2f}", row.get("unit", "")] for row in found if row["what"] != "sq_l2"]
    return table(head, body) + "\n" + table(["limits, calls from C, log-mel, size", "value", "unit"], others)


def episodic_table(found: Sequence[dict]) -> str:
    body = [
        [
            row["what"], row["stage"], str(row["threads"]), f"{row['median_ms']:.2f}", f"{row['min_ms']:.2f}",
            f"{row.get('forward_min_ms', 0):.2f}", f"{row.get('backward_min_ms', 0):.2f}", ratio(row),
            f"{row['cold_median_ms']:.2f}",
        ]
        for row in found
    ]  # fmt: skip
    head = [
        "what",
        "method",
        "threads",
        "median ms in a row",
        "least",
        "forward",
        "backward",
        "takes",
        "median ms, cold",
    ]
    return table(head, body)


def quantize_table(found: Sequence[dict]) -> str:
    """Ways to quantize each model: noise, layers that stay in fp32, size and time."""
    body = [
        [
            row["what"].removeprefix("quantize "), row["stage"],
            "" if row["snr_db"] is None else f"{row['snr_db']:.1f}",
            "" if row["n_layers_fp32"] is None else str(row["n_layers_fp32"]),
            f"{row['size_bytes'] / 1e6:.2f}", f"{row['median_ms']:.2f}",
        ]
        for row in found
    ]  # fmt: skip
    return table(["model", "encoder", "SQNR dB", "layers in fp32", "MB", "median ms"], body)


def scan_table(found: list[dict]) -> str:
    """Quality of scanning: groups of recordings by ways of searching them and probabilities accepted from."""
    head = ["recordings", "search", "from", "recall", "precision", "false alarms / h", "ends off, ms (p90)", "words"]
    body = [
        [
            row["group"], row["stage"], f"{row['accept']:.1f}", f"{100 * row['recall']:.1f}",
            f"{100 * row['precision']:.1f}",
            f"{row['false_alarms_per_hour']:.0f} ({low:.0f} to {high:.0f})",
            f"{row['boundary_error_median_ms']} ({row['boundary_error_p90_ms']})", str(row["n_words"]),
        ]
        for row in found
        if row["what"] == "scan_quality"
        for low, high in [row["false_alarms_ci95"]]
    ]  # fmt: skip
    return table(head, body) if body else ""


def senses_table(found: list[dict]) -> str:
    """Sounds and pictures: one row per question, fold, number of samples and method, with the difference to int8."""
    head = ["question", "fold", "labels", "way", "k", "method", "right, %", "minus int8"]
    cells = ("condition", "fold", "k", "method")
    minus = {tuple(row[c] for c in cells): row for row in found if row["what"] == "senses difference"}
    body = []
    for row in found:
        if row["what"] == "senses":
            other = minus.get(tuple(row[c] for c in cells))
            difference = interval(other["mean"], other["ci95"], sign=True) if other else ""
            body.append([
                row["condition"], str(row["fold"]), str(row["labels"]), str(row["way"]), str(row["k"]), row["method"],
                interval(row["mean"], row["ci95"]), difference,
            ])  # fmt: skip
    return table(head, body) if body else ""


def first_look_table(found: list[dict]) -> str:
    """How a scan's first looks and embeddings differ from those of the candidates alone."""
    head = [
        "recordings", "first look: cosine to the candidate alone (5 % are below)", "embedding that shares layers",
        "get more than a look, %", "of those accepted alone, %",
    ]  # fmt: skip
    body = [
        [row["stage"], f"{row['value']:.2f} ({row['p5']:.2f})", f"{row['embedding']:.2f} ({row['embedding_p5']:.2f})",
         f"{row['embedded_percent']:.0f}", str(row["embedded_of_accepted_percent"])]
        for row in found
        if row["what"] == "scan_first_look"
    ]  # fmt: skip
    return f"### First look\n\n{table(head, body)}" if body else ""


def transfer_table(found: list[dict]) -> str:
    """False alarms of thresholds where they were made and elsewhere."""
    head = ["enrolled", "thresholds", "false alarms / h on", "rate", "enrolled words found, %"]
    body = [
        [
            row["group"], row["stage"], row["on"] + (" (calibrated on it)" if row["heard_in_calibration"] else ""),
            f"{row['value']:.1f} ({row['ci95'][0]:.1f} to {row['ci95'][1]:.1f})",
            f"{100 * row['found']:.0f} ({100 * row['found_ci95'][0]:.0f} to {100 * row['found_ci95'][1]:.0f})",
        ]
        for row in found
        if row["what"] == "scan_transfer"
    ]  # fmt: skip
    return f"### Thresholds elsewhere\n\n{table(head, body)}" if body else ""


def provenance(found: list[dict]) -> str:
    """Which machines, commits, bundles, seeds and commands the rows come from."""
    lines = []
    for command in dict.fromkeys(row["command"] for row in found):
        here = [row for row in found if row["command"] == command]
        bundles = ", ".join(sorted({str(row["bundle"])[:12] for row in here if row.get("bundle")})) or "none"
        commits = ", ".join(sorted({str(row["commit"])[:12] for row in here}))
        machines = {f"{row['machine']['cpu']}, {row['machine']['system']}, backend {row['machine']['backend']}"
                    for row in here}  # fmt: skip
        episodes = {row["episodes"] for row in here if "episodes" in row}
        drawn = f"; {min(episodes)} episodes a cell" if episodes else ""
        lines.append(f"- `{command}`: bundle {bundles}; commit {commits}; {'; '.join(sorted(machines))}{drawn}")
    return "\n".join(lines) + "\n"


def render(
    fewshot: list[dict],
    latency: list[dict],
    footprint: list[dict],
    scan: Sequence[dict] = (),
    instructions: Sequence[dict] = (),
    kernels: Sequence[dict] = (),
    episodic_step: Sequence[dict] = (),
    senses: Sequence[dict] = (),
    quantize: Sequence[dict] = (),
    growth: Sequence[dict] = (),
    listening: Sequence[dict] = (),
    imported: Sequence[dict] = (),
) -> str:
    parts = ["# Results\n\nGenerated by `python -m benchmarks.tables` from benchmarks/rows; not edited by hand.\n"]
    if fewshot:
        parts.append(
            "## Few-shot accuracy\n\nShare of right answers in percent with the 95 % interval over episodes; words "
            "and speakers of the test role of benchmarks/splits. Every method answers the same episodes. The interval "
            "speaks of other draws from these recordings, not of other speakers. Where the shipped encoder knows the "
            "words of a pack, the numbers are of one that does not; benchmarks/README.md says how it was made.\n\n"
            f"{fewshot_tables(fewshot)}"
        )
    if senses:
        parts.append(
            "## Sounds and pictures\n\nShare of right answers in percent with the 95 % interval over episodes, of "
            "classes that training did not see; benchmarks/senses.py says how. Every method answers the same episodes. "
            "The bundles measured are of the training that kept the classes of a fold aside.\n\n" + senses_table(senses)
        )
    if latency:
        parts.append(f"## Latency\n\n{LATENCY_NOTE}\n\n{latency_table(latency)}\n{size_table(latency)}")
    if growth:
        parts.append(
            "## Growth\n\nProcessor time in ms, the clock for workers; the exponent is fitted to the upper half of the "
            f"sizes.\n\n![time by size](growth.svg)\n\n{growth_table(growth)}"
        )
    if listening:
        parts.append(f"## Listening\n\n{size_table(list(listening))}")
    if footprint:
        parts.append(f"## Footprint\n\n{latency_table(footprint)}\n{size_table(footprint)}")
    if scan:
        parts.append(
            "## Scanning\n\nHeld-back words in recorded noise (10 to 25 dB), half of them enrolled with five clips of "
            "one speaker, beside other words and sounds; benchmarks/scan.py says how. Recall and precision in percent; "
            f"false alarms with their 95 % interval.\n\n{scan_table(scan)}\n{first_look_table(scan)}\n"
            f"{transfer_table(scan)}\n{size_table(scan)}"
        )
    if instructions:
        parts.append(f"## Instructions of the hot paths\n\nCounted by callgrind.\n\n{instructions_table(instructions)}")
    if kernels:
        parts.append(
            "## Kernels\n\nSquared distances, the least time of many calls, every method in the same run; "
            f"benchmarks/kernels.py says which rivals count.\n\n{kernels_table(kernels)}"
        )
    if episodic_step:
        parts.append(f"## Episodic step\n\n256 episodes, forward and backward.\n\n{episodic_table(episodic_step)}")
    if quantize:
        parts.append(
            "## Quantization of transformers\n\nRandom weights, made on the spot: benchmarks/quantize.py says which. "
            "SQNR is the signal-to-quantization-noise ratio of embeddings of inputs that quantization did not see; "
            "what has less than 20 dB is refused, and `bundle quantize` has no row where it refused.\n\n"
            + quantize_table(quantize)
        )
    if imported:
        parts.append(
            "## Encoders of other makes\n\nRandom weights, made on the spot: benchmarks/imported.py says which. Every "
            "engine runs the same weights on the same tensor, with one thread; bare onnxruntime runs the graph of the "
            "bundle. What edgealign adds is measured within each call, and a head beside the same graph without it.\n\n"
            f"{latency_table(list(imported))}\n{size_table(list(imported))}"
        )
    every = [
        *fewshot,
        *latency,
        *footprint,
        *scan,
        *instructions,
        *kernels,
        *episodic_step,
        *senses,
        *quantize,
        *growth,
        *listening,
        *imported,
    ]
    parts.append("## Where the rows come from\n\n" + provenance(every))
    return "\n".join(parts)


def with_speed(readme: str, latency: list[dict], footprint: list[dict]) -> str:
    """The README with its speed table renewed."""
    before, _, rest = readme.partition(SPEED_BEGIN)
    _, _, after = rest.partition(SPEED_END)
    return before + SPEED_BEGIN + "\n" + speed_table(latency, footprint) + "\n" + SPEED_END + after


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=Path, default=rows.FOLDER, help="folder of the JSONL files")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found = [
        rows.read(arguments.rows / f"{name}.jsonl")
        for name in (
            "fewshot",
            "latency",
            "footprint",
            "scan",
            "instructions",
            "kernels",
            "episodic_step",
            "senses",
            "quantize",
            "growth",
            "listening",
            "imported",
        )
    ]
    arguments.output.write_text(render(*found), encoding="utf-8")
    if arguments.output == RESULTS:
        README.write_text(with_speed(README.read_text(encoding="utf-8"), *found[1:3]), encoding="utf-8")


if __name__ == "__main__":
    main()
