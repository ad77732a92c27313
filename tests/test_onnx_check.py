"""Hostile ONNX models: refused by their bytes where these say enough, and by the first load where they do not."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgealign import first_load
from edgealign.bundle import package_bundle
from edgealign.first_load import check_first_load, load_apart
from edgealign.onnx_check import MAX_NODES, check_onnx

IDENTITY = helper.make_node("Identity", ["x"], ["y"])
SHIPPED = sorted(Path(package_bundle("speech")).glob("*.onnx"))


def model(
    nodes: list[onnx.NodeProto],
    tensors: tuple[onnx.TensorProto, ...] = (),
    functions: tuple[onnx.FunctionProto, ...] = (),
    shape: tuple[object, ...] = ("n",),
) -> bytes:
    """x -> y, with nothing checked."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        list(tensors),
    )
    domains = [helper.make_opsetid("", 17), *(helper.make_opsetid(f.domain, 1) for f in functions)]
    made = helper.make_model(graph, opset_imports=domains, ir_version=8)
    made.functions.extend(functions)
    return made.SerializeToString()


def tensor(**fields: object) -> onnx.TensorProto:
    return onnx.TensorProto(**{"name": "t", "data_type": TensorProto.FLOAT, **fields})


def function(name: str, *calls: str) -> onnx.FunctionProto:
    """x -> y through functions of the domain `local`, or through Identity."""
    names = ["x", *(f"v{i}" for i in range(len(calls) - 1)), "y"]
    nodes = [
        helper.make_node(call, [names[i]], [names[i + 1]], domain="local" if call != "Identity" else "")
        for i, call in enumerate(calls)
    ]
    return helper.make_function("local", name, ["x"], ["y"], nodes, [helper.make_opsetid("", 17)])


def branch(inner: list[onnx.NodeProto], tensors: tuple[onnx.TensorProto, ...] = ()) -> onnx.NodeProto:
    """`If`, both of whose sides are a graph of the nodes."""
    side = helper.make_graph(inner, "side", [], [helper.make_tensor_value_info("z", 1, None)], list(tensors))
    return helper.make_node("If", ["x"], ["y"], then_branch=side, else_branch=side)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_shipped_encoders_pass(path: Path) -> None:
    check_onnx(path.read_bytes())


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3), np.array([], np.float32), np.array(3, np.int64),
        np.array([1, 2], np.float16), np.array([True, False]), np.array(["a", "bc"], dtype=object),
        np.array([1, -1], np.int8), np.zeros((0, 4), np.float64),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)  # fmt: skip
def test_tensors_of_every_kind_pass_raw_and_typed(array: np.ndarray) -> None:
    raw = numpy_helper.from_array(array, "t")
    typed = helper.make_tensor("t", raw.data_type, array.shape, array.ravel().tolist())
    for made in (raw, typed):
        check_onnx(model([IDENTITY], (made,)))


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4, TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN])
def test_tensors_of_small_elements_pass(kind: int) -> None:
    check_onnx(
        model([helper.make_node("Identity", ["x"], ["y"])], (helper.make_tensor("t", kind, [5], [1, 2, 3, 4, 5]),))
    )


def test_a_name_from_around_a_subgraph_and_nodes_in_any_order_pass() -> None:
    inner = [helper.make_node("Add", ["x", "later"], ["z"])]
    later = helper.make_node("Identity", ["x"], ["later"])
    check_onnx(model([branch(inner), later]))


def test_functions_that_call_each_other_pass() -> None:
    functions = (function("F", "G", "G"), function("G", "Identity"))
    check_onnx(model([helper.make_node("F", ["x"], ["y"], domain="local")], functions=functions))


HOSTILE = {
    "shape of a negative size": ([IDENTITY], (tensor(dims=[-2, 3]),), (), r"absurd shape \(-2, 3\)"),
    "shape of a million million": ([IDENTITY], (tensor(dims=[10**6, 10**6]),), (), "absurd shape"),
    "shape that wraps around": ([IDENTITY], (tensor(dims=[2**32, 2**32]),), (), "absurd shape"),
    "forty dimensions": ([IDENTITY], (tensor(dims=[1] * 40),), (), "absurd shape"),
    "more declared than held": (
        [IDENTITY], (tensor(dims=[1000], raw_data=b"1234"),), (), "declares 4000 bytes and holds 4",
    ),
    "more held than declared": ([IDENTITY], (tensor(dims=[1], raw_data=b"12345"),), (), "declares 4 bytes and holds 5"),
    "declared and not held": ([IDENTITY], (tensor(dims=[2**30]),), (), "declares 1073741824 values and holds 0"),
    "typed and too few": ([IDENTITY], (tensor(dims=[3], float_data=[1, 2]),), (), "declares 3 values and holds 2"),
    "unknown element type": ([IDENTITY], (tensor(data_type=99, dims=[1], raw_data=b"1"),), (), "element type 99"),
    "custom operator": (
        [helper.make_node("Run", ["x"], ["y"], domain="evil")], (), (), "'Run' of the unknown domain 'evil'",
    ),
    "custom operator in a branch": (
        [branch([helper.make_node("Run", ["x"], ["z"], domain="ai.onnx.contrib")])], (), (), "unknown domain",
    ),
    "custom operator in a function": (
        [helper.make_node("F", ["x"], ["y"], domain="local")], (),
        (helper.make_function("local", "F", ["x"], ["y"], [helper.make_node("Q", ["x"], ["y"], domain="q")], []),),
        "unknown domain 'q'",
    ),
    "file of an accelerator": (
        [helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="/etc/passwd")], (), (),
        "EPContext",
    ),
    "node that waits for itself": ([helper.make_node("Add", ["x", "y"], ["y"])], (), (), "cycle"),
    "nodes in a circle": (
        [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"]),
         helper.make_node("Neg", ["b"], ["y"])], (), (), "cycle",
    ),
    "circle in a branch": ([branch([helper.make_node("Add", ["z", "x"], ["z"])])], (), (), "cycle"),
    "circle through a branch": (
        [branch([helper.make_node("Identity", ["q"], ["z"])]), helper.make_node("Neg", ["y"], ["q"])], (), (), "cycle",
    ),
    "function that calls itself": (
        [helper.make_node("F", ["x"], ["y"], domain="local")], (), (function("F", "F"),), "call each other in a circle",
    ),
    "functions in a circle": (
        [helper.make_node("F", ["x"], ["y"], domain="local")], (), (function("F", "G"), function("G", "F")),
        "call each other in a circle",
    ),
    "a billion nodes in forty functions": (
        [helper.make_node("F0", ["x"], ["y"], domain="local")], (),
        (*(function(f"F{i}", f"F{i + 1}", f"F{i + 1}") for i in range(40)), function("F40", "Identity")),
        f"more than {MAX_NODES} nodes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_model_is_refused_by_its_bytes(name: str) -> None:
    nodes, tensors, functions, message = HOSTILE[name]
    with pytest.raises(ValueError, match=message) as refused:
        check_onnx(model(nodes, tensors, functions))
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("shape", [(-3,), (10**6, 10**6), (2**40,), (1,) * 40])
def test_an_absurd_input_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="absurd shape"):
        check_onnx(model([IDENTITY], shape=shape))


def test_sizes_that_are_not_known_pass() -> None:
    for shape in (("batch", 40, None), (-1, 40), (None,)):
        check_onnx(model([IDENTITY], shape=shape))


def test_a_sparse_tensor_that_stands_for_gigabytes_is_refused() -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    sparse = onnx.SparseTensorProto(values=values, indices=indices, dims=[2**15, 2**15])
    whole = onnx.load_from_string(model([IDENTITY]))
    whole.graph.sparse_initializer.append(sparse)
    with pytest.raises(ValueError, match="sparse tensors stand for"):
        check_onnx(whole.SerializeToString())


def test_nesting_without_end_is_refused() -> None:
    node = helper.make_node("Identity", ["x"], ["z"])
    for _ in range(25):  # onnx itself gives up soon after
        inner = helper.make_graph([node], "inner", [], [])
        node = helper.make_node("If", ["x"], ["z"], then_branch=inner)
    with pytest.raises(ValueError, match="nested deeper"):
        check_onnx(model([node]))


def test_external_data_is_found_wherever_a_tensor_can_hide() -> None:
    outside = tensor(dims=[1], data_location=TensorProto.EXTERNAL)
    keyed = tensor(dims=[1], external_data=[onnx.StringStringEntryProto(key="location", value="/etc/passwd")])
    constant = helper.make_node("Constant", [], ["z"])
    constant.attribute.append(helper.make_attribute("value", outside))
    listing = helper.make_node("Op", [], ["z"])
    listing.attribute.append(onnx.AttributeProto(name="many", type=onnx.AttributeProto.TENSORS, tensors=[keyed]))
    sparse = onnx.GraphProto(sparse_initializer=[onnx.SparseTensorProto(values=outside)])
    nested = onnx.FunctionProto(name="f", domain="d", node=[branch([constant])])
    default = onnx.FunctionProto(name="f", domain="d", attribute_proto=[helper.make_attribute("value", outside)])
    graphs = [
        onnx.GraphProto(node=[constant]), onnx.GraphProto(node=[branch([constant])]), onnx.GraphProto(node=[listing]),
        onnx.GraphProto(initializer=[outside]), onnx.GraphProto(initializer=[keyed]), sparse,
    ]  # fmt: skip
    models = [onnx.ModelProto(graph=graph) for graph in graphs]
    models += [onnx.ModelProto(graph=onnx.GraphProto(), functions=[f]) for f in (nested, default)]
    for hidden in models:
        with pytest.raises(ValueError, match="other files"):
            check_onnx(hidden.SerializeToString())


@pytest.mark.parametrize("data", [b"", b"ORTM1234 not a graph", b"\x08\x07", b"\x3a\xff\xff\xff\xff\x0f", b"\x0b"])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no ONNX model"):
        check_onnx(data)


def test_two_graphs_in_one_model_are_refused() -> None:
    """Protobuf would merge them, so that what was checked apart is used together."""
    with pytest.raises(ValueError, match="two graphs"):
        check_onnx(model([IDENTITY]) * 2)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_walking_any_bytes_ends(data: bytes) -> None:
    try:
        check_onnx(b"\x3a" + bytes([len(data) % 128]) + data)
    except ValueError as error:
        assert str(error).startswith("it")


# ---- the first load ----


def constants_of(shape: tuple[int, ...]) -> list[onnx.NodeProto]:
    return [
        helper.make_node("ConstantOfShape", ["shape"], ["c0"]),
        helper.make_node("ReduceSum", ["c0"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]


def test_a_few_bytes_that_take_gigabytes_are_refused() -> None:
    """ConstantOfShape is innocent by its bytes: 40 GB come into being when the graph runs."""
    bomb = model(constants_of((10**5, 10**5)), (numpy_helper.from_array(np.array([10**5, 10**5]), "shape"),))
    check_onnx(bomb)
    with pytest.raises(ValueError, match="takes more than 1024 MiB"):
        load_apart(bomb)


def test_a_graph_that_takes_for_ever_is_refused() -> None:
    go, on = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "on"))
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    have, give = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("have", "give"))
    steps = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["have"], ["give"])]
    forever = helper.make_graph(steps, "body", [count, go, have], [on, give])
    nodes = [helper.make_node("Loop", ["n", "yes", "x"], ["y"], body=forever)]
    tensors = (numpy_helper.from_array(np.array(2**62), "n"), numpy_helper.from_array(np.array(True), "yes"))
    slow = model(nodes, tensors)
    check_onnx(slow)
    started = time.monotonic()
    with pytest.raises(ValueError, match="takes more than 2 s"):
        load_apart(slow, max_seconds=2)
    assert time.monotonic() - started < 60


def test_what_onnx_runtime_refuses_is_refused_with_its_words() -> None:
    with pytest.raises(ValueError, match=r"ONNX Runtime refuses it: .*Nonsense"):
        load_apart(model([helper.make_node("Nonsense", ["x"], ["y"])]))


def test_a_process_that_dies_is_a_refusal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dying = tmp_path / "dying.py"
    dying.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(first_load, "__file__", str(dying))
    with pytest.raises(ValueError, match=r"breaks down on it \(exit code -11\)"):
        load_apart(model([IDENTITY]))


def test_what_loaded_once_is_not_loaded_apart_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    monkeypatch.setattr(first_load, "load_apart", lambda data: calls.append(data))
    for sha256 in ("a" * 64, "a" * 64, "b" * 64):
        check_first_load(model([IDENTITY]), sha256)
    assert len(calls) == 2

    def refuse(_: bytes) -> None:
        raise ValueError("it is hostile")

    monkeypatch.setattr(first_load, "load_apart", refuse)
    for _ in range(2):
        with pytest.raises(ValueError, match="hostile"):
            check_first_load(model([IDENTITY]), "c" * 64)
    with pytest.raises(ValueError, match="no ONNX model"):
        check_first_load(b"", "d" * 64)


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    check_first_load(SHIPPED[0].read_bytes(), "d" * 64)
