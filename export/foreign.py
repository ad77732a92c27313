"""A third-party ONNX model -> a graph as bundles hold it: one float32 input of a known form, unit embeddings out.

What leads from the one to the other is a list of steps, which are written into the graph and, apart from it, computed
with numpy around the untouched model: so the two can be compared.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgealign.errors import InputUnreadable, InvalidInput, ModelUnreadable
from edgealign.first_load import load_apart
from edgealign.manifest import MAX_DIM, MAX_ONNX_BYTES
from edgealign.onnx_check import check_onnx

MIN_OPSET = 11
NUMPY_OF = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}
# Whose operands are weights. Infinity among them is a fault; elsewhere it is a bound, as of Clip, or a mask.
WEIGHTED = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "BatchNormalization", "LayerNormalization",
    "InstanceNormalization", "GroupNormalization", "SkipLayerNormalization",
)  # fmt: skip
VARIANCE_FLOOR = 1e-7  # of zero-mean-unit-variance, as in the extractors of wav2vec2 and its relatives
OWN = "edgealign/"
Session = onnxruntime.InferenceSession


@dataclass(frozen=True)
class Step:
    """One thing to do to an array: `operator` with its argument.

    unsqueeze, squeeze   an axis
    transpose            the order of the axes
    affine               (factor, offset), numbers or arrays that broadcast: x * factor + offset
    standardize          zero mean and unit variance over all axes but the first
    mean, max            over axes, which are dropped
    flatten              all axes but the first become one
    cast                 an element type of ONNX
    unit                 rows of unit length
    """

    operator: str
    argument: Any = None

    def compute(self, x: np.ndarray) -> np.ndarray:
        argument = self.argument
        match self.operator:
            case "unsqueeze":
                return np.expand_dims(x, argument)
            case "squeeze":
                return np.squeeze(x, argument)
            case "transpose":
                return np.ascontiguousarray(x.transpose(argument))
            case "affine":
                return (x * argument[0] + argument[1]).astype(np.float32)
            case "standardize":
                axes = tuple(range(1, x.ndim))
                centered = x - x.mean(axes, keepdims=True, dtype=np.float64)
                deviation = np.sqrt(np.square(centered).mean(axes, keepdims=True) + VARIANCE_FLOOR)
                return (centered / deviation).astype(np.float32)
            case "mean" | "max":
                return getattr(x, self.operator)(axis=tuple(argument))
            case "flatten":
                return x.reshape(len(x), -1)
            case "cast":
                return x.astype(NUMPY_OF[argument])
            case "unit":
                return x / np.linalg.norm(x, axis=1, keepdims=True)
        raise ValueError(self.operator)


class _Writer:
    """Nodes of one chain, with the operators as an opset has them."""

    def __init__(self, opset: int, start: str, part: str):
        self.opset, self.part = opset, part
        self.at = start
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def write(self, step: Step, rank: int) -> None:
        """Appends a step to what is an array of `rank` axes."""
        argument = step.argument
        match step.operator:
            case "unsqueeze" | "squeeze":
                self._on_axes(step.operator.capitalize(), [argument], since=13)
            case "transpose":
                self._node("Transpose", perm=list(argument))
            case "affine":
                for operator, value in zip(("Mul", "Add"), argument, strict=True):
                    self._node(operator, self._constant(np.asarray(value, dtype=np.float32)))
            case "standardize":
                axes = list(range(1, rank))
                self._centered(axes)
                centered = self.at
                self._node("Mul", centered)
                self._on_axes("ReduceMean", axes, since=18, keepdims=1)
                self._node("Add", self._constant(np.float32(VARIANCE_FLOOR)))
                self._node("Sqrt")
                deviation, self.at = self.at, centered
                self._node("Div", deviation)
            case "mean" | "max":
                self._on_axes(f"Reduce{step.operator.capitalize()}", list(argument), since=18, keepdims=0)
            case "flatten":
                self._node("Flatten", axis=1)
            case "cast":
                self._node("Cast", to=argument)
            case "unit":
                self._node("LpNormalization", axis=1, p=2)

    def end(self, name: str) -> None:
        """Names the output of the chain."""
        self.nodes.append(helper.make_node("Identity", [self.at], [name], name=f"{OWN}{self.part}/end"))

    def _centered(self, axes: list[int]) -> None:
        given = self.at
        self._on_axes("ReduceMean", axes, since=18, keepdims=1)
        mean, self.at = self.at, given
        self._node("Sub", mean)

    def _on_axes(self, operator: str, axes: list[int], since: int, **attributes: Any) -> None:
        """An operator whose axes were an attribute before the opset `since`, and are an input from then on."""
        if self.opset < since:
            self._node(operator, axes=axes, **attributes)
        else:
            self._node(operator, self._constant(np.array(axes, dtype=np.int64)), **attributes)

    def _node(self, operator: str, *others: str, **attributes: Any) -> None:
        name = f"{OWN}{self.part}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, [self.at, *others], [name], name=name, **attributes))
        self.at = name

    def _constant(self, value: np.ndarray) -> str:
        name = f"{OWN}{self.part}/constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name


@dataclass(frozen=True)
class ForeignModel:
    """A model with one input of floating point.

    name      for messages
    data      its bytes, weights that lay in other files included;  proto  the graph in them
    taken     name of its input;  element_type  FLOAT or FLOAT16
    shape     of its input: a size, or None where it is open
    opset     of ONNX's own operators
    """

    name: str
    data: bytes
    proto: onnx.ModelProto
    taken: str
    element_type: int
    shape: tuple[int | None, ...]
    opset: int

    @classmethod
    def load(cls, path: str | os.PathLike) -> ForeignModel:
        """ModelUnreadable where the file is no model that can be imported, with the reason."""
        name = os.fspath(path)
        data, proto = _read(name)
        opsets = {entry.domain: entry.version for entry in proto.opset_import}
        opset = opsets.get("", opsets.get("ai.onnx", 0))
        newest = onnx.defs.onnx_opset_version()
        if not MIN_OPSET <= opset <= newest:
            raise ModelUnreadable(
                f"'{name}' uses opset {opset} of ONNX: {MIN_OPSET} to {newest} are imported, "
                + ("export it again with a newer one" if opset < MIN_OPSET else "update onnx and onnxruntime")
            )
        _check_weights(name, proto)
        constants = {tensor.name for tensor in proto.graph.initializer}
        inputs = [entry for entry in proto.graph.input if entry.name not in constants]
        if len(inputs) != 1:
            names = ", ".join(f"'{entry.name}'" for entry in inputs) or "none"
            raise ModelUnreadable(
                f"'{name}' has {len(inputs)} inputs ({names}): export it with the samples as the only one"
            )
        tensor = inputs[0].type.tensor_type
        if tensor.elem_type not in NUMPY_OF:
            kind = TensorProto.DataType.Name(tensor.elem_type).lower()
            raise ModelUnreadable(f"the input '{inputs[0].name}' of '{name}' is {kind}: float32 or float16 is expected")
        if not tensor.HasField("shape"):
            raise ModelUnreadable(f"the input '{inputs[0].name}' of '{name}' has no shape: export it with one")
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim
        )
        try:
            load_apart(data)  # the first time, where it does no harm
        except ValueError as error:
            raise ModelUnreadable(f"'{name}' cannot be imported: {_reason(error)}") from None
        return cls(name, data, proto, inputs[0].name, tensor.elem_type, shape, opset)

    def with_output(self, output: str | None) -> tuple[Probe, list[str]]:
        """A session of the untouched model for one output, or for all of floating point where None; and their names."""
        known = [entry.name for entry in self.proto.graph.output]
        data = self.data
        if output is not None and output not in known:
            inner = {name for node in self.proto.graph.node for name in node.output if name}
            if output not in inner:
                shown = ", ".join(f"'{name}'" for name in known)
                raise InvalidInput(f"'{self.name}' has no output '{output}': it has {shown}")
            model = onnx.ModelProto()
            model.CopyFrom(self.proto)
            model.graph.output.append(onnx.ValueInfoProto(name=output))
            data = model.SerializeToString()
        session = session_of(data, self.name)
        floating = [entry.name for entry in session.get_outputs() if entry.type in ("tensor(float)", "tensor(float16)")]
        names = floating if output is None else [output]
        if not names:
            raise ModelUnreadable(
                f"'{self.name}' has no output of floating point: one that is an embedding is expected"
            )
        if output is not None and output not in floating:
            raise InvalidInput(f"the output '{output}' of '{self.name}' is not of floating point: name another")
        return Probe(self, session), names

    def wrapped(
        self,
        output: str,
        tensor: str,
        dims: Sequence[int | str],
        before: Sequence[Step],
        after: Sequence[Step],
        dim: int,
    ) -> bytes:
        """ONNX bytes: `tensor` float32 of `dims` -> `embedding` float32 [batch, dim], without what leads to neither.

        before, after   from the new input to the model's own, and from its output to unit rows
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.proto)
        graph = model.graph
        taken = self.taken
        names = {name for node in graph.node for name in (*node.input, *node.output)}
        names |= {entry.name for entry in (*graph.initializer, *graph.input)}
        if tensor in names or "embedding" in names or any(name.startswith(OWN) for name in names):
            model = onnx.compose.add_prefix(model, "model/", rename_functions=False)
            graph, taken, output = model.graph, f"model/{taken}", f"model/{output}"
        _keep_only(graph, output)
        front, back = _Writer(self.opset, tensor, "input"), _Writer(self.opset, output, "output")
        rank = len(dims)
        for step in before:
            front.write(step, rank)
            rank += {"unsqueeze": 1, "squeeze": -1}.get(step.operator, 0)
        front.end(taken)
        for step in after:
            back.write(step, 0)
        back.end("embedding")
        nodes = [*front.nodes, *graph.node, *back.nodes]
        del graph.node[:]
        graph.node.extend(nodes)
        graph.initializer.extend([*front.constants, *back.constants])
        kept = [entry for entry in graph.input if entry.name != taken]
        del graph.input[:], graph.output[:]
        graph.input.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, list(dims)))
        graph.input.extend(kept)
        graph.output.append(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [dims[0], dim]))
        return model.SerializeToString()


@dataclass(frozen=True)
class Probe:
    """The untouched model, ready to run."""

    model: ForeignModel
    session: Session

    def run(self, values: np.ndarray, before: Sequence[Step], names: Sequence[str]) -> dict[str, np.ndarray]:
        """Outputs for what a bundle would hand to its encoder; ModelUnreadable where the model does not run."""
        for step in before:
            values = step.compute(values)
        try:
            found = self.session.run(list(names), {self.model.taken: values})
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            raise ModelUnreadable(
                f"'{self.model.name}' does not run on an input of the shape {list(values.shape)}: {_reason(error)}"
            ) from None
        return dict(zip(names, found, strict=True))


def session_of(data: bytes, name: str) -> Session:
    """On one thread, as bundles are run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # see Probe.run
        raise ModelUnreadable(f"ONNX Runtime refuses '{name}': {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What ONNX Runtime says, without its codes and without the place in its source that says it."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
    return re.sub(r"\S+\.(?:cc|h):\d+ .*?\) (?=\w)", "", text)[:300]


def steps_to_embedding(shape: Sequence[int], longer: Sequence[int], pool: str | None, what: str) -> list[Step]:
    """From an output to unit rows. InvalidInput where the frames of an output need a choice.

    shape    of the output for one sample;  longer  the same for a longer sample, where there are such
    what     names the output in messages
    """
    steps: list[Step] = []
    shape, longer = list(shape), list(longer)
    if len(shape) == 1:
        steps.append(Step("unsqueeze", 0))
        shape, longer = [1, *shape], [1, *longer]
    if shape[0] != 1 and len(shape) == 2:  # frames of the one sample: the model has no batch
        steps.append(Step("unsqueeze", 0))
        shape, longer = [1, *shape], [1, *longer]
    if len(shape) < 2 or len(shape) > 5 or shape[0] != 1:
        raise InvalidInput(f"{what} has the shape {shape} for one sample: [1, dim] or [1, frames, dim] is expected")
    varying = [axis for axis in range(1, len(shape)) if shape[axis] != longer[axis]]
    wide = [axis for axis in range(1, len(shape)) if shape[axis] != 1 or axis in varying]
    if len(wide) > 1 or varying:
        if pool is None:
            raise InvalidInput(
                f"{what} has the shape {shape} for one sample, more than one embedding: add --pool mean, or max"
            )
        if pool != "none":
            axes = _axes_of_frames(shape, varying)
            steps.append(Step(pool, axes))
            shape = [size for axis, size in enumerate(shape) if axis not in axes]
        elif varying:
            raise InvalidInput(
                f"{what} grows with the length of the sample: --pool none cannot hold it, use mean or max"
            )
    if len(shape) > 2:
        steps.append(Step("flatten"))
    dim = int(np.prod(shape[1:]))
    if not 2 <= dim <= MAX_DIM:
        raise InvalidInput(f"{what} has {dim} values for one sample: an embedding of 2 to {MAX_DIM} is expected")
    return [*steps, Step("unit")]


def _axes_of_frames(shape: list[int], varying: list[int]) -> list[int]:
    """All axes but the batch and the one of the channels: the last of three, the larger of the outer ones of more."""
    inner = [axis for axis in range(1, len(shape)) if axis not in varying]
    if len(shape) == 3:
        channels = inner[-1] if inner else 2
    else:
        channels = max((axis for axis in (1, len(shape) - 1) if axis in inner), key=lambda axis: shape[axis], default=1)
    return [axis for axis in range(1, len(shape)) if axis != channels]


def _read(name: str) -> tuple[bytes, onnx.ModelProto]:
    if not os.path.isfile(name):
        reason = "does not exist: check the path"
        if os.path.lexists(name):
            reason = f"is {'a folder' if os.path.isdir(name) else 'no regular file'}: an ONNX file is expected"
        raise InputUnreadable(f"'{name}' {reason}")
    if os.path.getsize(name) > MAX_ONNX_BYTES:
        raise ModelUnreadable(f"'{name}' has more than {MAX_ONNX_BYTES // 2**20} MiB, which a bundle cannot hold")
    try:
        data = Path(name).read_bytes()
    except OSError as error:
        raise InputUnreadable(f"'{name}' cannot be read: {error.strerror}") from None
    try:
        return data, _parsed(data)
    except ValueError as error:
        if "data in other files" not in str(error):
            raise ModelUnreadable(f"'{name}' cannot be imported: {error}") from None
    try:
        # Large exports keep their weights beside the model; onnx refuses links and paths that leave its folder.
        proto = onnx.load(name)
        for tensor in proto.graph.initializer:
            tensor.data_location = TensorProto.DEFAULT
        data = proto.SerializeToString()
        if len(data) > MAX_ONNX_BYTES:
            raise ValueError(f"with its weights it has more than {MAX_ONNX_BYTES // 2**20} MiB")
        return data, _parsed(data)
    except Exception as error:  # onnx raises unrelated types
        raise ModelUnreadable(f"'{name}' keeps weights in other files, which cannot be read: {error}") from None


def _parsed(data: bytes) -> onnx.ModelProto:
    check_onnx(data)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception:  # protobuf's own type, which has no public name
        raise ValueError("it is no ONNX model") from None
    if not proto.graph.node:
        raise ValueError("it is no ONNX model: it has no nodes")
    return proto


def _check_weights(name: str, proto: onnx.ModelProto) -> None:
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    weights = {operand for node in proto.graph.node if node.op_type in WEIGHTED for operand in node.input}
    constants = (node for node in proto.graph.node if node.op_type == "Constant")
    tensors |= {node.output[0]: part.t for node in constants for part in node.attribute if part.name == "value"}
    for tensor_name, tensor in tensors.items():
        if tensor.data_type not in (*NUMPY_OF, TensorProto.DOUBLE):
            continue
        values = numpy_helper.to_array(tensor)
        if np.isnan(values).any() or (tensor_name in weights and not np.isfinite(values).all()):
            raise ModelUnreadable(
                f"the weights '{tensor_name}' of '{name}' hold NaN or infinity: train or export it again"
            )


def _keep_only(graph: onnx.GraphProto, output: str) -> None:
    """Drops nodes and weights that the output does not need."""
    made_by = {name: node for node in graph.node for name in node.output if name}
    needed: set[str] = set()
    waiting = [output]
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in made_by:
            waiting += _names_used(made_by[name])
    nodes = [node for node in graph.node if needed.intersection(node.output)]
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    sparse = [tensor for tensor in graph.sparse_initializer if tensor.values.name in needed]
    kept_names = needed | {entry.name for entry in graph.input}
    infos = [entry for entry in graph.value_info if entry.name in kept_names]
    for field, values in (
        ("node", nodes),
        ("initializer", weights),
        ("sparse_initializer", sparse),
        ("value_info", infos),
    ):
        graph.ClearField(field)
        getattr(graph, field).extend(values)


def _names_used(node: onnx.NodeProto) -> list[str]:
    """Inputs of a node, and all that its branches may take from around them."""
    used = [name for name in node.input if name]
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            used += [entry.name for entry in inner.output]
            for nested in inner.node:
                used += _names_used(nested)
    return used
