"""Projections on frozen encoders: written words start labels of recorded ones, before and after the heads.

    python -m benchmarks.projection            rows into benchmarks/rows/projection.jsonl

Two targets: the shipped speech encoder, and openWakeWord's speech embedding, imported (its license forbids more than a
comparison: it stays in the cache). Pairs are synthetic words and recorded ones of the role train; labels and speakers
of the role test are others. Needs the packs, the `train` and `export` extras, and openWakeWord in the cache.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import soundfile
from onnx import TensorProto, compose, helper, numpy_helper

from benchmarks import held_out, rivals, rows
from edgealign import Bundle, machine
from edgealign.episodes import mean_and_ci95
from edgealign.export.import_onnx import ImportOptions, import_onnx
from edgealign.inputs import Windows
from edgealign.samples import open_sample
from edgealign.train import packs, projection
from edgealign.train.evaluation import Cell, Evaluation
from edgealign.train.features import SAMPLE_RATE_HZ, Spoken
from edgealign.train.paired import Protocol
from edgealign.train.synthesis import Espeak
from edgealign.words import find_word

RENDERINGS = 4  # of a synthetic word
RECORDINGS = {"train": 25, "val": 40, "test": 40}  # of a recorded word
PROTOCOLS = (
    Protocol("English digits", 5, True, "fsdd "),
    Protocol("Mandarin and English words", 5, True, "dspspeech20 "),
)
SHOTS, QUERIES = (1, 5), 10
WINDOW_S = rivals.OWW_MIN_SAMPLES / SAMPLE_RATE_HZ


def write_pairs(data: Path, folder: Path) -> Path:
    """pairs.csv, and the synthetic words that it names, as files; made once."""
    table = folder / "pairs.csv"
    if table.exists():
        return table
    folder.mkdir(parents=True, exist_ok=True)
    listing, espeak, rng = packs.words(data, 0), Espeak(), random.Random(1)
    targets: dict[str, list] = {}
    for item, label in listing.targets:
        targets.setdefault(label, []).append(item)
    for row in packs.read_table(packs.SPLITS / "dspspeech20.tsv"):
        if row["role"] == "train":
            label = f"dspspeech20 {row['label']}"
            listing.roles[label] = "train"
            listing.source(row["label"], label)
            targets.setdefault(label, []).append(packs.recording(data, row))
    texts: dict[str, str] = {}
    for text, label in listing.sources:
        if "/" not in label or text == label.split(" ", 1)[1].split(" /")[0]:  # as it is written, not its phonemes
            texts.setdefault(label, text)
    with table.with_suffix(".partial").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("source", "target", "label", "pairing", "split"))
        for number, label in enumerate(sorted(texts.keys() & targets.keys())):
            role, items = listing.roles[label], targets[label]
            n = RENDERINGS if isinstance(items[0], Spoken) else RECORDINGS[role]
            for i, item in enumerate(rng.sample(items, min(n, len(items)))):
                path = item
                if isinstance(item, Spoken):
                    path = folder / f"{number}_{i}.flac"
                    espeak.set_voice(item.language, item.manner)
                    soundfile.write(path, espeak.say(item.text), SAMPLE_RATE_HZ)
                writer.writerow((texts[label], os.path.relpath(path, folder), label, "weak", role))
    os.replace(table.with_suffix(".partial"), table)
    return table


def openwakeword_bundle(models: Path, target: Path) -> Bundle:
    """openWakeWord's two graphs as one, imported with windows of 0.78 s every 0.16 s over a clip."""
    if (target / "manifest.json").exists():
        return Bundle.open(target)
    mel, embedding = (onnx.load(models / f"{name}.onnx") for name in ("melspectrogram", "embedding_model"))
    for model in (mel, embedding):
        del model.opset_import[:]
        model.opset_import.append(helper.make_opsetid("", 13))
        model.ir_version = 8
    joint = compose.add_prefix(mel, "mel/")
    found = compose.add_prefix(embedding, "net/").graph
    graph, (spectrum,) = joint.graph, joint.graph.output
    constants = {
        "scale": np.float32(rivals.INT16_SCALE), "ten": np.float32(10), "two": np.float32(2),
        "window": np.array([1, rivals.OWW_WINDOW_FRAMES, 32, 1]), "flat": np.array([1, 96]),
    }  # fmt: skip
    graph.initializer.extend([numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()])
    graph.initializer.extend(found.initializer)
    for tensor in graph.initializer:  # a clip has no upper bound; the importer takes infinity for damage
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and np.isinf(values).any():
            tensor.CopyFrom(numpy_helper.from_array(np.nan_to_num(values), tensor.name))
    old = list(graph.node)
    del graph.node[:]
    graph.node.extend([
        helper.make_node("Mul", ["waveform", "scale"], ["pcm"]), helper.make_node("Round", ["pcm"], ["mel/input"]),
        *old,
        helper.make_node("Div", [spectrum.name, "ten"], ["tenth"]), helper.make_node("Add", ["tenth", "two"], ["fit"]),
        helper.make_node("Reshape", ["fit", "window"], [found.input[0].name]), *found.node,
        helper.make_node("Reshape", [found.output[0].name, "flat"], ["features"]),
    ])  # fmt: skip
    for values, name, shape in ((graph.input, "waveform", rivals.OWW_MIN_SAMPLES), (graph.output, "features", 96)):
        del values[:]
        values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, shape]))
    path = target.with_suffix(".onnx")
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(joint, path)
    options = ImportOptions(
        "audio", "waveform", sample_rate_hz=SAMPLE_RATE_HZ, window_s=WINDOW_S, hop_s=0.16,
        name="openwakeword", license="CC BY-NC-SA 4.0",
    )  # fmt: skip
    return import_onnx(path, target, options, _report)


def measure(name: str, target: Bundle, table: Path, folder: Path, steps: int) -> list[dict]:
    """Rows of one target: test accuracies pack by pack, before and after, and their paired differences."""
    source = projection.SourceSide.of(Bundle.open(held_out.KNOWS_NO_TEST_WORD), "text")
    config = projection.default_config("croma-weak-nce", 0, steps)
    listing = projection.read_pairs(table, source, target)
    if isinstance(target.input.windows, Windows):  # some synthetic words are too short to be found
        listing.targets = [(item, label) for item, label in listing.targets if _has_word(target, item)]
    started = time.perf_counter()
    trained = projection.train(
        source, target, listing, folder / name, config, folder / "embeddings", SHOTS, QUERIES, 600, _report
    )
    seconds = time.perf_counter() - started
    data, after = (replace(one, protocols=PROTOCOLS) for one in (trained.data, trained.after))
    evaluation = Evaluation(data, "test", 600, QUERIES, SHOTS)
    before, then = (projection.cells(evaluation, one, head) for one, head in ((data, "before"), (after, "after")))
    with_word = list(projection.refined_cells(evaluation, after, "after, with the word", trained.weight))
    cells = [*before, *then, *with_word]
    cells += projection.difference(before, then) + projection.difference(before, with_word)
    common = {
        "target": name, "head": trained.head, "weight": trained.weight, "steps": steps, "seconds": round(seconds),
        "labels": len(data.with_role("train")), "samples": len(data.training_targets),
        "validation": {head: round(100 * score, 2) for head, score in trained.scores.items()},
        "target_sha256": target.encoder_sha256, "source_sha256": source.bundle.encoder_sha256,
        "split_sha256": data.split_sha256, "episodes_sha256": evaluation.sha256,
        "machine": machine.describe(), "commit": rows.commit(), "command": rows.command("projection"),
    }  # fmt: skip
    return [_row(cell) | common for cell in cells]


def _has_word(bundle: Bundle, item: Path) -> bool:
    blocks = open_sample(bundle, item).blocks(bundle.input.sample_rate_hz)
    return find_word(blocks, bundle.front_end, bundle.windows, bundle.filters) is not None


def _row(cell: Cell) -> dict:
    mean, ci95 = mean_and_ci95(100 * cell.accuracies)
    return {
        "what": "projection", "pack": cell.protocol, "way": cell.n_way, "k": cell.k, "measure": cell.head,
        "episodes": len(cell.accuracies), "mean": round(mean, 2), "ci95": round(ci95, 2),
    }  # fmt: skip


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.projection", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("EDGEALIGN_DATA"), help="folder of the packs")
    parser.add_argument("--cache", type=Path, default=rows.default_cache(), help="where all that is made lies")
    parser.add_argument("--target", choices=("speech", "openwakeword"), action="append", help="default: both")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rows", type=Path, default=rows.FOLDER / "projection.jsonl", help="JSONL file to write")
    given = parser.parse_args(arguments)
    if given.data is None:
        parser.error("where the packs are is not known: give --data or set $EDGEALIGN_DATA")
    folder = given.cache / "projection"
    table = write_pairs(Path(given.data), folder / "pairs")
    for name in given.target or ("speech", "openwakeword"):
        if name == "speech":
            bundle = Bundle.open(held_out.KNOWS_NO_TEST_WORD)
        else:
            models = given.cache / rivals.OPENWAKEWORD / "openwakeword" / "resources" / "models"
            bundle = openwakeword_bundle(models, folder / "openwakeword")
        made = measure(name, bundle, table, folder, given.steps)
        rows.replace(given.rows, made, ("what", "target", "pack", "k", "measure"))
        for row in made:
            print(f"{name:14}{row['pack']:28}{row['measure']:32} k={row['k']} {row['mean']:6.1f} ± {row['ci95']:.1f}")


if __name__ == "__main__":
    main()
