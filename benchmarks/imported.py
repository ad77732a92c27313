"""What a foreign encoder costs when edgealign runs it: beside bare onnxruntime, transformers with torch, and optimum.

    pip install "optimum-onnx[onnxruntime]==0.1.0" "edgealign[export,image]"
    python -m benchmarks.imported

Random models are made on the spot and exported by optimum; every engine then runs the same weights in a process of its
own, with one thread, on the same tensor: decoding and resizing are left out. `bare onnxruntime` runs the very graph of
the bundle, in the process of edgealign, in turn with it. A bundle holds graphs of up to 200 MB, so models of base size
have no rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rows
from benchmarks.latency import COMMAND, cold_rows, run_cold
from edgealign import machine

N_WARM_UP, MAX_RUNS, MAX_S = 5, 400, 3.0
N_COLD_RUNS, N_IMPORTS = 3, 3
HEAD_RUNS = 3_000
RUNTIME = ("numpy", "onnxruntime", "platformdirs", "soundfile", "soxr", "typer")  # what edgealign itself installs
RIVALS = {
    "transformers + torch": ("transformers", "torch"),
    "optimum's ORTModel": ("optimum-onnx", "onnxruntime", "torch"),
}


PICTURES = ("--modality", "image", "--size", "224x224", "--mean", "0.5", "--std", "0.5")
SOUNDS = ("--modality", "audio", "--input", "waveform", "--sample-rate", "16000", "--window", "1.0", "--normalize",
          "zero-mean-unit-variance")  # fmt: skip


@dataclass(frozen=True)
class Model:
    """config   of transformers' configuration class;  shape   of one input;  options   of `edgealign bundle import`"""

    kind: str
    config: dict
    shape: tuple[int, ...]
    options: tuple[str, ...]


MODELS = {
    "ViT, tiny": Model("vit", {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3,
                               "intermediate_size": 768}, (1, 3, 224, 224), PICTURES),
    "ViT, 50 MB": Model("vit", {"hidden_size": 384, "num_hidden_layers": 7, "num_attention_heads": 6,
                                "intermediate_size": 1536}, (1, 3, 224, 224), PICTURES),
    "wav2vec2, tiny": Model("wav2vec2", {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
                                         "intermediate_size": 192, "conv_dim": [64] * 7,
                                         "num_conv_pos_embeddings": 16}, (1, 16_000), SOUNDS),
}  # fmt: skip


def values_of(model: Model) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.1, 0.9, model.shape).astype(np.float32)


def make(name: str, folder: Path) -> None:
    """folder/torch for transformers and folder/onnx/model.onnx, of random weights. Runs in a process of its own."""
    import torch
    import transformers
    from optimum.exporters.onnx import main_export

    torch.manual_seed(0)
    model = MODELS[name]
    config, of = {
        "vit": (transformers.ViTConfig, transformers.ViTModel),
        "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
    }[model.kind]
    of(config(**model.config)).save_pretrained(folder / "torch")
    main_export(
        str(folder / "torch"), str(folder / "onnx"), task="feature-extraction", do_validation=False,
        library_name="transformers",
    )  # fmt: skip
    np.save(folder / "values.npy", values_of(model))


def import_rows(name: str, folder: Path) -> list[dict]:
    """`edgealign bundle import` of the exported model to folder/bundle, as a command that never saw it before."""
    path, taken = folder / "onnx" / "model.onnx", []
    words = [sys.executable, "-c", COMMAND, "bundle", "import", path, *MODELS[name].options, "--output",
             "last_hidden_state", "--pool", "mean", "-o", folder / "bundle"]  # fmt: skip
    for _ in range(N_IMPORTS):
        with tempfile.TemporaryDirectory() as cache:  # it remembers which graphs are known to load
            taken.append(run_cold(words, XDG_CACHE_HOME=cache))
    seconds, cpu_seconds, megabytes = np.array(taken).T
    return [
        {"what": name, "stage": "import", "value": round(float(np.median(seconds)), 2), "unit": "s",
         "cpu_value": round(float(np.median(cpu_seconds)), 2), "n_runs": N_IMPORTS,
         "model_mb": round(path.stat().st_size / 1e6, 1), "peak_rss_mb": round(float(megabytes.max()), 1)}
    ]  # fmt: skip


class TimedSession:
    """A session that notes how long its last run took: what `Bundle.encode` takes beyond that is edgealign's own."""

    def __init__(self, session: Any) -> None:
        self.get_inputs, self.session, self.seconds = session.get_inputs, session, 0.0

    def run(self, *arguments: Any) -> list[np.ndarray]:
        started = time.perf_counter()
        answer = self.session.run(*arguments)
        self.seconds = time.perf_counter() - started
        return answer


def run_edgealign(name: str, folder: Path) -> dict[str, dict]:
    """Times of `Bundle.encode` and of the bare graph, in turn, and what the former takes beside its session.

    On a busy machine, and by where two sessions happen to lie in memory, the two times differ by more than edgealign
    adds; what it adds is therefore measured within each call.
    """
    from edgealign import Bundle
    from edgealign.export.graph import session_of

    bundle, values = Bundle.open(folder / "bundle"), values_of(MODELS[name])
    file, tensor = bundle.encoder_file(), bundle.input.tensor
    session = session_of(bundle.read(file))
    found = timed({
        "edgealign": lambda: bundle.encode(values),
        "bare onnxruntime": lambda: session.run(["embedding"], {tensor: values}),
    })  # fmt: skip
    inner = bundle._sessions[file] = TimedSession(bundle._sessions[file])
    added_us, shares = np.empty((2, found["edgealign"]["n_runs"]))
    for at in range(len(added_us)):
        started = time.perf_counter()
        bundle.encode(values)
        added_s = time.perf_counter() - started - inner.seconds
        added_us[at], shares[at] = 1e6 * added_s, 100 * added_s / inner.seconds
    found["edgealign"] |= {
        "added_us": round(float(np.median(added_us)), 2), "added_percent": round(float(np.median(shares)), 3)
    }  # fmt: skip
    return found


def run_transformers(name: str, folder: Path) -> dict[str, dict]:
    import torch
    from transformers import AutoModel

    torch.set_num_threads(1)
    model, values = AutoModel.from_pretrained(folder / "torch").eval(), torch.from_numpy(values_of(MODELS[name]))
    with torch.inference_mode():
        return timed({"transformers + torch": lambda: model(values).last_hidden_state.mean(dim=1)})


def run_ortmodel(name: str, folder: Path) -> dict[str, dict]:
    import onnxruntime
    from optimum.onnxruntime import ORTModelForCustomTasks

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = ORTModelForCustomTasks.from_pretrained(folder / "onnx", session_options=options)
    given = {next(iter(model.input_names)): values_of(MODELS[name])}
    return timed({"optimum's ORTModel": lambda: model(**given)["last_hidden_state"].mean(axis=1)})


ENGINES: dict[str, Callable[[str, Path], dict[str, dict]]] = {
    "edgealign": run_edgealign, "transformers": run_transformers, "ortmodel": run_ortmodel,
}  # fmt: skip


def timed(calls: dict[str, Callable[[], object]]) -> dict[str, dict]:
    """Milliseconds of each call, in turn, so that a busy machine slows all of them."""
    taken: dict[str, list[float]] = {what: [] for what in calls}
    for _ in range(N_WARM_UP):
        for call in calls.values():
            call()
    began = time.perf_counter()
    while len(next(iter(taken.values()))) < MAX_RUNS and time.perf_counter() - began < MAX_S * len(calls):
        for what, call in calls.items():
            started = time.perf_counter()
            call()
            taken[what].append(1e3 * (time.perf_counter() - started))
    return {
        what: {
            "median_ms": round(float(np.median(ms)), 4), "p95_ms": round(float(np.percentile(ms, 95)), 4),
            "min_ms": round(min(ms), 4), "n_runs": len(ms), "threads": 1,
        }
        for what, ms in taken.items()
    }  # fmt: skip


def window_rows(name: str, folder: Path) -> list[dict]:
    """Every engine in a process of its own."""
    made = []
    for engine in ENGINES:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.imported", "--engine", engine, "--model", name, "--folder", folder],
            capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{engine} cannot run '{name}':\n{done.stderr}")
        found = json.loads(done.stdout.splitlines()[-1])
        made += [{"what": name, "stage": f"window, {what}", **times} for what, times in found.items()]
    bare = next(row for row in made if row["stage"] == "window, bare onnxruntime")
    for row in made:
        row |= {"ratio": round(row["min_ms"] / bare["min_ms"], 3), "ratio_to": "bare onnxruntime, fastest runs"}
    own = next(row for row in made if row["stage"] == "window, edgealign")
    added = {"what": name, "n_runs": own["n_runs"], "threads": 1}
    return [
        *made,
        added | {"stage": "edgealign adds to a window", "value": own.pop("added_us"), "unit": "us"},
        added | {"stage": "the same, of the session's time", "value": own.pop("added_percent"), "unit": "%"},
    ]


def cold_start_rows(name: str, folder: Path) -> list[dict]:
    """From nothing to the embedding of one and the same input, each in a process of its own."""
    values = f"import numpy as np; x = np.load({str(folder / 'values.npy')!r})"
    threads = "import torch; torch.set_num_threads(1)"
    commands = {
        "edgealign": f"{values}; from edgealign import Bundle; Bundle.open({str(folder / 'bundle')!r}).encode(x)",
        "transformers + torch": f"{values}; {threads}; from transformers import AutoModel; "
        f"AutoModel.from_pretrained({str(folder / 'torch')!r}).eval()(torch.from_numpy(x)).last_hidden_state.mean(1)",
        "optimum's ORTModel": f"{values}; {threads}; from optimum.onnxruntime import ORTModelForCustomTasks as M; "
        f"m = M.from_pretrained({str(folder / 'onnx')!r}); "
        "m(**{next(iter(m.input_names)): x})['last_hidden_state'].mean(1)",
    }
    words = {what: [sys.executable, "-c", code] for what, code in commands.items()}
    made = cold_rows(words, "edgealign", N_COLD_RUNS)
    return [row | {"what": name, "stage": f"cold process, {row['what']}"} for row in made]


def size_rows() -> list[dict]:
    """Bytes that the distributions and all they require take, as they are installed here."""
    import edgealign

    package = Path(edgealign.__file__).parent
    own = sum(path.stat().st_size for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    made = [_size("edgealign", own + _installed_bytes(RUNTIME))]
    return made + [_size(what, _installed_bytes(names)) for what, names in RIVALS.items()]


def _size(what: str, n_bytes: int) -> dict:
    return {"what": "installed", "stage": what, "value": round(n_bytes / 1e6, 1), "unit": "MB"}


def _installed_bytes(names: tuple[str, ...]) -> int:
    from packaging.requirements import Requirement

    todo, known, total = list(names), set(), 0
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name in known:
            continue
        known.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # needed on other platforms
        total += sum(path.stat().st_size for file in found.files or () if (path := Path(file.locate())).is_file())
        for line in found.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return total


def head_rows() -> list[dict]:
    """What a projection adds to a window: a graph that hands an embedding on, without and with heads behind it."""
    from onnx import TensorProto, helper

    from edgealign.export.graph import session_of
    from edgealign.export.projection import append_head
    from edgealign.train.projection import Affine, Projection

    rng = np.random.default_rng(0)

    def affine(inputs: int, outputs: int) -> Affine:
        weight, bias = rng.normal(size=(outputs, inputs)) / inputs**0.5, rng.normal(size=outputs)
        return Affine(weight.astype(np.float32), bias.astype(np.float32))

    made = []
    for dim in (96, 192, 384):
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", dim]) for name in ("x", "embedding")]
        graph = helper.make_graph([helper.make_node("Neg", ["x"], ["embedding"])], "bare", ends[:1], ends[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
        graphs = {
            "bare": model,
            "linear head": append_head(model, Projection(affine(dim, dim))),
            "residual head": append_head(model, Projection(affine(dim, dim), affine(dim, 256), affine(256, dim))),
        }
        sessions = {what: session_of(data) for what, data in graphs.items()}
        x, taken = rng.normal(size=(1, dim)).astype(np.float32), {what: np.empty(HEAD_RUNS) for what in graphs}
        for i in range(HEAD_RUNS):
            for what, session in sessions.items():
                started = time.perf_counter()
                session.run(None, {"x": x})
                taken[what][i] = 1e6 * (time.perf_counter() - started)
        bare = taken.pop("bare")
        made += [
            {"what": f"projection, {dim} values", "stage": what,
             "value": round(float(np.median(us) - np.median(bare)), 2), "unit": "us",
             "fastest_us": round(float(us.min() - bare.min()), 2), "n_runs": HEAD_RUNS, "threads": 1}
            for what, us in taken.items()
        ]  # fmt: skip
    return made


def measure(part: str, folder: Path, names: list[str]) -> list[dict]:
    if part == "size":
        return size_rows()
    if part == "head":
        return head_rows()
    made = []
    for name in names:
        place = folder / name.replace(", ", "-").replace(" ", "-")
        if not (place / "onnx" / "model.onnx").exists():
            subprocess.run([sys.executable, "-m", "benchmarks.imported", "--make", name, "--folder", place], check=True)
        if part == "import" or not (place / "bundle").exists():
            imported = import_rows(name, place)
            made += imported if part == "import" else []
        if part == "window":
            made += window_rows(name, place)
        elif part == "cold":
            made += cold_start_rows(name, place)
    return made


PARTS = ("size", "head", "import", "window", "cold")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.imported", description=__doc__.partition("\n")[0])
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--rows", type=Path, default=rows.FOLDER / "imported.jsonl", help="JSONL file to write")
    parser.add_argument("--folder", type=Path, help="where the models are made and kept; default: nowhere for long")
    parser.add_argument("--make", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--model", choices=MODELS, help="default: all")
    given = parser.parse_args()
    if given.make:
        make(given.make, given.folder)
        return
    if given.engine:
        print(json.dumps(ENGINES[given.engine](given.model, given.folder)))
        return
    names = [given.model] if given.model else list(MODELS)
    common = {"machine": machine.describe(), "commit": rows.commit(), "command": rows.command("imported")}
    with tempfile.TemporaryDirectory() as passing:
        for part in given.part or PARTS:
            made = [row | {"part": part} | common for row in measure(part, given.folder or Path(passing), names)]
            rows.replace(given.rows, made, ("what", "stage"))
            rows.show(made)


if __name__ == "__main__":
    main()
