"""Quantization that is checked: the traps of other people's graphs, which layers stay in fp32, and the gates."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from edgealign.errors import InvalidInput
from edgealign.export import gates
from edgealign.export.gates import SampleEvaluation, SourceEvaluation, quantize_checked
from edgealign.export.int8 import STATIC_OPERATORS, Dynamic, Static
from edgealign.export.quantize import QuantizationLost, Samples, measure_drift
from edgealign.export.sensitivity import least_excluded

N_MELS, N_FRAMES = 20, 40


class Unit(nn.Module):
    """x [batch, 20, 40] -> unit rows [batch, 24]."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.out = body, nn.Linear(width, 24)

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(self.body(x).mean(dim=2))
        return y / y.norm(dim=1, keepdim=True)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(N_MELS, 48)
        layers = [nn.TransformerEncoderLayer(48, 4, 96, batch_first=True) for _ in range(2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.first(x.transpose(1, 2))).transpose(1, 2)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.gru = nn.Conv1d(N_MELS, 64, 5), nn.GRU(64, 48, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(self.first(x).relu().transpose(1, 2))[0].transpose(1, 2)


def exported(body: nn.Module, width: int, **options: bool) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Unit(body, width).eval(), (torch.randn(1, N_MELS, N_FRAMES),), file, dynamo=False, opset_version=17,
            input_names=["x"], output_names=["embedding"], dynamic_axes={"x": {0: "batch"}, "embedding": {0: "batch"}},
            **options,
        )  # fmt: skip
    return file.getvalue()


@pytest.fixture(scope="module")
def transformer() -> bytes:
    torch.manual_seed(0)
    return exported(Transformer(), 48)


@pytest.fixture(scope="module")
def recurrent() -> bytes:
    torch.manual_seed(1)
    return exported(Recurrent(), 48)


@pytest.fixture(scope="module")
def convolutional() -> bytes:
    torch.manual_seed(2)
    layers = [nn.Conv1d(N_MELS, 32, 5), nn.ReLU(), nn.Conv1d(32, 32, 5, groups=32), nn.ReLU6(), nn.Conv1d(32, 64, 1)]
    return exported(nn.Sequential(*layers), 64)


SAMPLES = [np.random.default_rng(i).normal(size=(1, N_MELS, N_FRAMES)).astype(np.float32) for i in range(40)]
NONE = frozenset()


def graph_of(data: bytes) -> onnx.GraphProto:
    return onnx.load_from_string(data).graph


# ---- traps ----


def test_a_shared_weight_becomes_one_of_each_node(tmp_path: Path) -> None:
    """Two layers, one of which takes the weight the other way round: exporters store equal weights once."""
    weight = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32) / 6
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], transB=1),
        helper.make_node("Tanh", ["a"], ["t"]),
        helper.make_node("MatMul", ["t", "w"], ["c"]),
        helper.make_node("LpNormalization", ["c"], ["embedding"], axis=1, p=2),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 32]) for name in ("x", "embedding")]
    graph = helper.make_graph(nodes, "shared", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    rows = [np.random.default_rng(i).normal(size=(1, 32)).astype(np.float32) for i in range(40)]
    for made in (Dynamic(data), Static(data, "x", rows[:20])):
        assert len(made.layers) == 2
        weights = [node.input[1] for node in made.prepared.graph.node if node.op_type in ("Gemm", "MatMul")]
        assert len(set(weights)) == 2
        assert measure_drift(data, made.without(NONE), "x", rows[20:]).snr_db > 30


def test_weight_norm_is_folded_so_that_the_convolution_has_a_weight_to_quantize() -> None:
    """wav2vec2's position embedding: the weight is computed, which the quantizer takes for "not an initializer"."""
    conv = nn.Conv1d(N_MELS, 32, 8, groups=4, padding=4)
    data = exported(nn.utils.parametrizations.weight_norm(conv, dim=2), 32, do_constant_folding=False)
    (conv_node,) = [node for node in graph_of(data).node if node.op_type == "Conv"]
    assert conv_node.input[1] not in {tensor.name for tensor in graph_of(data).initializer}
    for made in (Dynamic(data), Static(data, "x", SAMPLES[:20])):
        assert measure_drift(data, made.without(NONE), "x", SAMPLES[20:]).snr_db > 30
    assert "ConvInteger" not in {node.op_type for node in graph_of(Dynamic(data).without(NONE)).node}


def test_recurrent_layers_stay_in_fp32(recurrent: bytes) -> None:
    for made in (Dynamic(recurrent), Static(recurrent, "x", SAMPLES[:20])):
        data = made.without(NONE)
        graph = graph_of(data)
        floats = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
        (gru,) = [node for node in graph.node if node.op_type == "GRU"]
        assert set(gru.input[1:4]) <= floats
        assert "DynamicQuantizeLSTM" not in {node.op_type for node in graph.node}
        assert measure_drift(recurrent, data, "x", SAMPLES[20:]).snr_db > 30


def test_layer_normalization_and_softmax_stay_in_fp32(transformer: bytes) -> None:
    for made in (Dynamic(transformer), Static(transformer, "x", SAMPLES[:20])):
        data = made.without(NONE)
        graph, was = graph_of(data), Counter(node.op_type for node in made.prepared.graph.node)
        types = Counter(node.op_type for node in graph.node)
        assert types["LayerNormalization"] == was["LayerNormalization"] > 0
        assert types["Softmax"] == was["Softmax"] > 0
        floats = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
        for node in graph.node:
            if node.op_type == "LayerNormalization":
                assert set(node.input[1:]) <= floats
        assert measure_drift(transformer, data, "x", SAMPLES[20:]).snr_db > 25


def test_a_transformer_that_symbolic_shape_inference_gives_up_on_is_quantized(
    transformer: bytes, tmp_path: Path
) -> None:
    (tmp_path / "t.onnx").write_bytes(transformer)
    with pytest.raises(AssertionError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quant_pre_process(tmp_path / "t.onnx", tmp_path / "p.onnx", skip_symbolic_shape=False)
    assert quantize_checked(transformer, "x", SAMPLES, "int8-dynamic").drift.snr_db > gates.MIN_SNR_DB


def test_a_graph_that_calls_onnx_by_both_of_its_names_is_quantized(convolutional: bytes) -> None:
    """As optimum's exporter and torch's together leave it."""
    model = onnx.load_from_string(convolutional)
    model.opset_import.append(helper.make_opsetid("ai.onnx", model.opset_import[0].version))
    model.graph.node[-1].domain = "ai.onnx"
    both = model.SerializeToString()
    quantized = Static(both, "x", SAMPLES[:20]).without(NONE)
    assert measure_drift(both, quantized, "x", SAMPLES[20:]).snr_db > 25


def test_a_graph_that_would_end_the_process_is_no_candidate(
    convolutional: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers in fp16 did with ONNX Runtime 1.31: it is loaded in another process before anything uses it."""

    def crash(_: bytes) -> None:
        raise ValueError("ONNX Runtime breaks down on it (exit code -11)")

    monkeypatch.setattr(gates, "load_apart", crash)
    with pytest.raises(QuantizationLost, match=r"int8-static: ONNX Runtime breaks down on it \(exit code -11\)"):
        quantize_checked(convolutional, "x", SAMPLES)


# ---- which layers stay in fp32 ----


@pytest.mark.parametrize("body", ["convolutional", "transformer"])
def test_leaving_layers_out_afterwards_is_what_leaving_them_out_from_the_start_is(
    body: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data = request.getfixturevalue(body)
    made = Static(data, "x", SAMPLES[:10])
    onnx.save(made.prepared, tmp_path / "prepared.onnx")
    apart = [node.name for node in made.prepared.graph.node if node.op_type in STATIC_OPERATORS]
    apart = sorted(set(apart) - made.quantized)
    for excluded in (made.layers[:1], made.layers[1:3], made.layers[::2]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_static(
                tmp_path / "prepared.onnx", tmp_path / "int8.onnx", Samples("x", SAMPLES[:10]),
                quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8, op_types_to_quantize=list(STATIC_OPERATORS),
                nodes_to_exclude=apart + excluded,
            )  # fmt: skip
        theirs, ours = (tmp_path / "int8.onnx").read_bytes(), made.without(frozenset(excluded))
        onnx.checker.check_model(onnx.load_from_string(ours))
        assert abs(len(theirs) - len(ours)) < 1000
        assert measure_drift(theirs, ours, "x", SAMPLES[10:]).snr_db == float("inf")


class Noisy:
    """A network whose layers add noise of known powers; a model is the names that stay in fp32."""

    def __init__(self, powers: dict[str, float]) -> None:
        self.powers, self.n_made = powers, 0

    def without(self, excluded: frozenset[str]) -> bytes:
        self.n_made += 1
        return ",".join(sorted(excluded)).encode()

    def snr_db(self, model: bytes) -> float:
        excluded = set(model.decode().split(","))
        return -10 * np.log10(sum(power for name, power in self.powers.items() if name not in excluded) + 1e-9)

    def search(self, enough_db: float, budget_s: float = 60) -> tuple[set[str], float]:
        lines: list[str] = []
        found = least_excluded(
            self.without, self.snr_db, [frozenset([name]) for name in self.powers], enough_db, budget_s, lines.append
        )
        assert bool(lines) == bool(found.excluded) or budget_s == 0
        assert found.data.decode() == ",".join(sorted(found.excluded))
        return set(found.excluded), found.snr_db


def test_the_costly_layers_stay_in_fp32_and_no_more_than_are_needed() -> None:
    powers = {f"layer{i}": 1e-4 for i in range(40)} | {"first": 0.03, "last": 0.02, "middle": 0.004}
    assert Noisy(powers).search(10)[0] == set()
    assert Noisy(powers).search(15)[0] == {"first"}
    assert Noisy(powers).search(20)[0] == {"first", "last"}
    excluded, snr_db = Noisy(powers).search(23)
    assert excluded == {"first", "last", "middle"}
    assert snr_db == pytest.approx(-10 * np.log10(0.004), abs=0.01)
    network = Noisy(powers)
    assert len(network.search(27)[0]) == 3 + 21  # 19 of 40 small ones make 27.2 dB, 20 make 27.0
    assert network.n_made < 1 + 43 + 14


def test_the_search_ends_when_its_time_is_up() -> None:
    network = Noisy({f"layer{i}": 1.0 for i in range(1000)})
    assert network.search(20, budget_s=0) == (set(), pytest.approx(-30))
    assert network.n_made == 1


def test_one_bad_layer_of_a_real_graph_is_found(convolutional: bytes) -> None:
    """A first layer of which one channel is a thousand times the others: its activations have no range for both."""
    model = onnx.load_from_string(convolutional)
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == first.input[1])
    values = numpy_helper.to_array(tensor).copy()
    values[0] *= 1000
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    second = [node for node in model.graph.node if node.op_type == "Conv"][1]
    other = next(tensor for tensor in model.graph.initializer if tensor.name == second.input[1])
    values = numpy_helper.to_array(other).copy()
    values[0] /= 1000
    other.CopyFrom(numpy_helper.from_array(values, other.name))
    data = model.SerializeToString()
    made = Static(data, "x", SAMPLES[:20])
    assert measure_drift(data, made.without(NONE), "x", SAMPLES[20:]).snr_db < gates.MIN_SNR_DB
    lines: list[str] = []
    found = quantize_checked(data, "x", SAMPLES, "int8-static", report=lines.append)
    assert found.drift.snr_db >= gates.MIN_SNR_DB
    assert 1 <= len(found.in_fp32 & set(made.layers)) <= 3
    assert any("measuring what each of" in line for line in lines)


# ---- gates ----


def test_auto_takes_the_fastest_that_passes_and_says_what_was_measured(transformer: bytes) -> None:
    lines: list[str] = []
    best = quantize_checked(transformer, "x", SAMPLES, report=lines.append)
    passed = [line for line in lines if " passes: " in line]
    assert best.method in {line.split()[0] for line in passed}
    assert best.drift.snr_db >= gates.MIN_SNR_DB and 0 < best.drift.max_cosine_drift < 0.1
    assert best.latency_ms > 0 and best.fp32_latency_ms > 0
    types = {tensor.data_type for tensor in graph_of(best.data).initializer if np.prod(tensor.dims) > 1000}
    assert types == {TensorProto.INT8}


def test_a_noise_that_is_too_loud_is_refused_with_what_was_tried(
    convolutional: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "MIN_SNR_DB", 90.0)
    with pytest.raises(
        QuantizationLost,
        match=r"int8-static: .* of the 90 dB that are asked for, with \d+ of \d+ layers in fp32; int8-dyn",
    ):
        quantize_checked(convolutional, "x", SAMPLES)


def clusters(spread: float) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(6, 24))
    rows = np.repeat(centers, 12, axis=0) + spread * rng.normal(size=(72, 24))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), [
        f"label{i}" for i in range(6) for _ in range(12)
    ]


def test_accuracy_that_is_lost_on_the_same_episodes_is_refused(convolutional: bytes) -> None:
    clean, labels = clusters(0.5)
    noisy, _ = clusters(2.5)
    same = SampleEvaluation(lambda model: clean, labels)
    found = quantize_checked(convolutional, "x", SAMPLES, "int8-static", same)
    assert found.accuracy.loss == 0 and found.accuracy.loss_ci95 == 0 and found.accuracy.percent > 90
    worse = SampleEvaluation(lambda model: clean if model == convolutional else noisy, labels)
    with pytest.raises(QuantizationLost, match=r"\d+\.\d\d ± \d+\.\d\d points of accuracy lost, at most 0.5"):
        quantize_checked(convolutional, "x", SAMPLES, "int8-static", worse)
    better = SampleEvaluation(lambda model: noisy if model == convolutional else clean, labels)
    assert quantize_checked(convolutional, "x", SAMPLES, "int8-static", better).accuracy.loss < 0


def test_an_evaluation_without_two_clips_of_a_label_is_refused(convolutional: bytes) -> None:
    alone = SampleEvaluation(lambda model: np.eye(3, 24, dtype=np.float32), ["a", "b", "c"])
    with pytest.raises(InvalidInput, match="no two labels of two clips each"):
        quantize_checked(convolutional, "x", SAMPLES, evaluation=alone)


def test_an_encoder_that_labels_start_from_is_judged_by_samples_that_are_asked_for_them(convolutional: bytes) -> None:
    """Labels at right angles: each query lies at one, and a model that swaps two loses the queries of both."""
    starts = np.eye(4, dtype=np.float32)
    queries, labels = starts[[0, 0, 1, 2, 3]], ["a", "a", "b", "c", "never started"]
    swapped = starts[[1, 0, 2, 3]]
    evaluation = SourceEvaluation(
        {b"right": starts, b"swapped": swapped}.__getitem__, ["a", "b", "c", "not asked"], queries, labels
    )
    assert evaluation.shares_right(b"right").tolist() == [1, 1, 1, 1]
    assert evaluation.shares_right(b"swapped").tolist() == [0, 0, 0, 1]
    worse = SourceEvaluation(
        lambda model: starts if model == convolutional else swapped, ["a", "b", "c", "d"], queries, labels
    )
    with pytest.raises(QuantizationLost, match=r"75\.00 ± \d+\.\d\d points of accuracy lost, at most 0.5"):
        quantize_checked(convolutional, "x", SAMPLES, "int8-static", worse)
    alone = SourceEvaluation(lambda model: starts, ["a", "d", "e", "f"], queries, labels)
    with pytest.raises(InvalidInput, match="fewer than two are among those that can be started: a, d, e, f"):
        quantize_checked(convolutional, "x", SAMPLES, evaluation=alone)


def test_the_table_of_a_text_encoder_is_quantized_and_other_gathers_are_not() -> None:
    """Tokens -> rows of a table -> a linear layer; a second Gather picks from a vector, which is no table."""
    rng = np.random.default_rng(0)
    tensors = {
        "table": rng.normal(size=(200, 32)).astype(np.float32), "w": rng.normal(size=(32, 24)).astype(np.float32) / 6,
        "scales": np.array([1, 2, 3], np.float32), "second": np.array([1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["linear"]),
        helper.make_node("Shape", ["linear"], ["size"]),
        helper.make_node("Gather", ["size", "second"], ["width"]),
        helper.make_node("Sub", ["width", "width"], ["zero"]),
        helper.make_node("Gather", ["scales", "zero"], ["scale"]),
        helper.make_node("Mul", ["linear", "scale"], ["scaled"]),
        helper.make_node("LpNormalization", ["scaled"], ["embedding"], axis=1, p=2),
    ]
    taken = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "n"])
    given = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 24])
    weights = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "text", [taken], [given], weights)
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    texts = [rng.integers(0, 200, (1, rng.integers(3, 9))) for _ in range(40)]
    found = quantize_checked(data, "tokens", texts, "int8-dynamic")
    types = {tensor.name: tensor.data_type for tensor in graph_of(found.data).initializer}
    assert (types["table_quantized"], types["w_quantized"]) == (TensorProto.UINT8, TensorProto.INT8)
    assert "scales_quantized" not in types
    assert found.drift.snr_db > 30 and len(found.data) < 0.5 * len(data)


def test_too_few_samples_and_unknown_methods_are_refused(convolutional: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"3 quantization samples were found: at least 8"):
        quantize_checked(convolutional, "x", SAMPLES[:3])
    with pytest.raises(InvalidInput, match=r"'int4': expected auto or one of int8-static, int8-dynamic"):
        quantize_checked(convolutional, "x", SAMPLES, "int4")


def test_a_graph_without_layers_to_quantize_is_refused() -> None:
    node = helper.make_node("LpNormalization", ["x"], ["embedding"], axis=1, p=2)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8]) for name in ("x", "embedding")]
    model = helper.make_model(
        helper.make_graph([node], "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    rows = [np.random.default_rng(i).normal(size=(1, 8)).astype(np.float32) for i in range(10)]
    with pytest.raises(QuantizationLost, match="no layer that this way can quantize"):
        quantize_checked(model.SerializeToString(), "x", rows)
