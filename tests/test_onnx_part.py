"""Parts of ONNX models: what lies between two tensors gives what the whole gives."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgealign.onnx_part import FLOAT, names_of, part_of


@pytest.fixture(scope="module")
def model() -> bytes:
    """x -> double -> + bias -> sum with x; beside it something that nobody asked for."""
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["doubled"]),
        helper.make_node("Add", ["doubled", "bias"], ["shifted"]),
        helper.make_node("Add", ["shifted", "x"], ["y"]),
        helper.make_node("Neg", ["doubled"], ["unwanted"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")]
    weights = [
        helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0]),
        helper.make_tensor("bias", TensorProto.FLOAT, [2], [1.0, -1.0]),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def run(part: bytes, **given: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"]).run(None, given)


def test_names_are_what_nodes_give_and_weights(model: bytes) -> None:
    assert names_of(model) == {"doubled", "shifted", "y", "unwanted", "two", "bias"}


def test_two_parts_one_after_the_other_give_what_the_whole_gives(model: bytes) -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    (whole,) = run(model, x=x)
    (doubled,) = run(part_of(model, {"x": (FLOAT, 2)}, ["doubled"]), x=x)
    assert np.array_equal(doubled, 2 * x)
    rest = part_of(model, {"doubled": (FLOAT, 2), "x": (FLOAT, 2)}, ["y"])
    assert np.array_equal(run(rest, doubled=doubled, x=x)[0], whole)
    assert len(rest) < len(model) + 50


def test_several_outputs_and_weights_are_given_as_asked(model: bytes) -> None:
    x = np.ones((1, 2), np.float32)
    bias, doubled = run(part_of(model, {"x": (FLOAT, 2)}, ["bias", "doubled"]), x=x)
    assert np.array_equal(bias, [1, -1])
    assert np.array_equal(doubled, 2 * x)


def test_dimensions_come_in_the_order_that_is_asked_for(model: bytes) -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    doubled, y = run(part_of(model, {"x": (FLOAT, 2)}, ["doubled", "y"], order=(1, 0)), x=x)
    assert np.array_equal(doubled, 2 * x.T)
    assert y.shape == (2, 3)


def test_a_part_is_a_model_without_what_it_does_not_need(model: bytes) -> None:
    part = onnx.load_from_string(part_of(model, {"shifted": (FLOAT, 2), "x": (FLOAT, 2)}, ["y"]))
    assert [node.op_type for node in part.graph.node] == ["Add"]
    assert [value.name for value in part.graph.input] == ["shifted", "x"]
    assert not part.graph.initializer
