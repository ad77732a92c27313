"""The two ways of making an encoder int8, prepared once, so that one layer more or less in fp32 is a quick question."""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgealign.export.quantize import Samples, quiet

# Weights, and what stands between two layers with weights. All else is cheap, has wide ranges or has no int8 kernel,
# and stays fp32: recurrent layers, normalization, softmax, statistics over time.
STATIC_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip", "Add", "MaxPool")
COSTLY_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add")  # whose noise is their own
# A convolution whose ranges are taken as it runs is slower than in fp32. Gather: of the embeddings of tokens.
DYNAMIC_OPERATORS = ("Gemm", "MatMul", "Gather")


class Dynamic:
    """int8 weights per channel; ranges of activations are taken as the graph runs. Linear layers and tables only."""

    method = "int8-dynamic"

    def __init__(self, data: bytes) -> None:
        self.prepared = prepared(data)
        nodes = [node for node in self.prepared.graph.node if node.op_type in DYNAMIC_OPERATORS]
        weights = {tensor.name: tensor for tensor in self.prepared.graph.initializer}

        def has_weights(node: onnx.NodeProto) -> bool:
            if node.op_type != "Gather":
                return node.input[1] in weights
            table = weights.get(node.input[0])
            return table is not None and table.data_type == onnx.TensorProto.FLOAT and len(table.dims) == 2

        self.layers = [node.name for node in nodes if has_weights(node)]
        self.apart = {node.name for node in nodes} - set(self.layers)

    groups: ClassVar[list[frozenset[str]]] = []  # no activation is rounded before the layer that takes it

    def without(self, excluded: frozenset[str]) -> bytes:
        """The quantized model, the named nodes in fp32."""
        with tempfile.TemporaryDirectory() as folder, quiet():
            path = Path(folder, "int8.onnx")
            quantize_dynamic(
                copy.deepcopy(self.prepared), path, op_types_to_quantize=list(DYNAMIC_OPERATORS), per_channel=True,
                weight_type=QuantType.QInt8, nodes_to_exclude=sorted(excluded | self.apart),
            )  # fmt: skip
            return path.read_bytes()


class Static:
    """int8 weights per channel, uint8 activations, whose ranges are those of samples."""

    method = "int8-static"

    def __init__(self, data: bytes, name: str, samples: Sequence[np.ndarray]) -> None:
        """name: of the input;  samples: what it may be, each with a batch dimension"""
        self.prepared = prepared(data)
        nodes = self.prepared.graph.node
        self.constants = {tensor.name: tensor for tensor in self.prepared.graph.initializer}
        # An addition of a constant is no sum of two branches, but a bias, an epsilon or a part of a shape.
        apart = [
            node.name for node in nodes if node.op_type == "Add" and not self.constants.keys().isdisjoint(node.input)
        ]
        self.quantized = {node.name for node in nodes if node.op_type in STATIC_OPERATORS} - set(apart)
        self.layers = [node.name for node in nodes if node.name in self.quantized and node.op_type in COSTLY_OPERATORS]
        if self.layers:
            self.whole = self._quantize(name, samples, apart)

    def _quantize(self, name: str, samples: Sequence[np.ndarray], apart: list[str]) -> onnx.ModelProto:
        with tempfile.TemporaryDirectory() as folder, quiet():
            path = Path(folder, "prepared.onnx")
            onnx.save(self.prepared, path)
            quantize_static(
                path, Path(folder, "int8.onnx"), Samples(name, samples), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                op_types_to_quantize=list(STATIC_OPERATORS), nodes_to_exclude=apart,
            )  # fmt: skip
            return onnx.load(Path(folder, "int8.onnx"))

    @property
    def groups(self) -> list[frozenset[str]]:
        """Each layer with those that its output goes to: what keeps one activation from being rounded."""
        readers = _readers(self.prepared.graph)
        groups = []
        for node in self.prepared.graph.node:
            if node.name not in self.layers:
                continue
            group, ahead = {node.name}, [node.output[0]]
            while ahead:
                for reader in readers[ahead.pop()]:
                    if reader.name in self.quantized and reader.name not in group:
                        group.add(reader.name)
                        ahead += [] if reader.name in self.layers else reader.output
            groups.append(frozenset(group))
        return groups

    def without(self, excluded: frozenset[str]) -> bytes:
        """The quantized model, the named nodes in fp32.

        What `quantize_static` gives when they are excluded from the start, by taking quantization out of the graph
        that has it everywhere: a weight is scaled once, not once for each question.
        """
        model = copy.deepcopy(self.whole)
        graph = model.graph
        was = {node.name: node for node in self.prepared.graph.node}
        is_ = {node.name: node for node in graph.node}
        readers = _readers(self.prepared.graph)
        restored: dict[str, list[onnx.NodeProto]] = {}  # activations that the quantizer had made part of a layer
        for name in excluded & is_.keys():
            output, target = was[name].output[0], is_[name].output[0]
            restored[name] = []
            while output != target:
                restored[name].append(readers[output][0])
                output = readers[output][0].output[0]
            is_[name].output[0] = was[name].output[0]
        parts = {node.name for nodes in restored.values() for node in nodes}
        inside = (self.quantized - is_.keys()) - parts  # of layers that stay quantized
        quantized = (self.quantized - excluded - parts) | inside
        rounded = {name for node in was.values() if node.name in quantized for name in (*node.input, *node.output)}
        for name, node in is_.items():
            for at, source in enumerate(was[name].input if name in was else ()):
                if name in excluded and source in self.constants:
                    node.input[at] = f"{source}/fp32"  # its own name may be that of the rounded values by now
                    graph.initializer.add().CopyFrom(self.constants[source])
                    graph.initializer[-1].name = node.input[at]
                elif source not in self.constants and source not in rounded:
                    node.input[at] = source
        present = {tensor.name for tensor in graph.initializer}
        bounds = {name for nodes in restored.values() for node in nodes for name in node.input} & self.constants.keys()
        graph.initializer.extend(self.constants[name] for name in sorted(bounds - present))
        return _rebuilt(model, [part for node in graph.node for part in (node, *restored.get(node.name, ()))])


def _readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that take each tensor."""
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    return readers


def _rebuilt(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> bytes:
    """The model with those of the nodes that its outputs need, and the tensors that these need."""
    needed = {output.name for output in model.graph.output}
    used = []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
            used.append(copy.deepcopy(node))
    kept = [copy.deepcopy(tensor) for tensor in model.graph.initializer if tensor.name in needed]
    for field, values in ((model.graph.node, reversed(used)), (model.graph.initializer, kept)):
        del field[:]
        field.extend(values)
    return model.SerializeToString()


def prepared(data: bytes) -> onnx.ModelProto:
    """The model as the quantizers need it: constants folded, shapes inferred, every node named, no weight shared."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        paths = [Path(folder, f"{stage}.onnx") for stage in ("fp32", "prepared")]
        paths[0].write_bytes(data)
        # Symbolic shape inference asserts on transformers that the tracing exporter wrote, and nothing here needs it.
        quant_pre_process(paths[0], paths[1], skip_symbolic_shape=True)
        model = onnx.load(paths[1])
    name_domain_once(model)
    names = {node.name for node in model.graph.node}
    fresh = (name for i in itertools.count() if (name := f"node{i}") not in names)
    seen: set[str] = set()
    for node in model.graph.node:
        if not node.name or node.name in seen:
            node.name = next(fresh)
        seen.add(node.name)
    _unshare(model.graph)
    return model


def name_domain_once(model: onnx.ModelProto) -> None:
    """ONNX's own domain has two names, of which a model may use both; the quantizers want it to have one."""
    own = [opset for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    for opset in own[1:]:
        own[0].version = max(own[0].version, opset.version)
        model.opset_import.remove(opset)
    own[0].domain = ""
    for node in model.graph.node:
        node.domain = "" if node.domain == "ai.onnx" else node.domain


def _unshare(graph: onnx.GraphProto) -> None:
    """A weight of its own for each node: `quantize_dynamic` scales a shared one for the node that it meets first."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    uses: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
    for node in graph.node:
        for at, name in enumerate(node.input):
            if name in tensors and tensors[name].data_type == onnx.TensorProto.FLOAT:
                uses[name].append((node, at))
    taken = set(tensors) | {name for node in graph.node for name in (*node.input, *node.output)}
    for name, places in uses.items():
        for n, (node, at) in enumerate(places[1:], 1):
            own = next(own for i in itertools.count(n) if (own := f"{name}.{i}") not in taken)
            taken.add(own)
            tensor = graph.initializer.add()
            tensor.CopyFrom(tensors[name])
            tensor.name = own
            node.input[at] = own
