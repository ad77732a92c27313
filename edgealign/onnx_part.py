"""Part of an ONNX model: what lies between some of its tensors, without the onnx package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from edgealign.protobuf import Reader, Span, field

FLOAT, UINT8 = 1, 2  # TensorProto.DataType
_GRAPH = 7  # fields of ModelProto, then of GraphProto
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 1, 5, 11, 12, 13


def names_of(model: bytes) -> set[str]:
    """The tensors that nodes of the model give, and its initializers."""
    reader, graph = _graph(model)
    found: set[str] = set()
    for number, part in reader.messages(graph, 1):
        if number == _NODE:
            found |= _ends(reader, part)[1]
        elif number == _INITIALIZER:
            found.add(_name_of(reader, part))
    return found


def part_of(
    model: bytes,
    inputs: Mapping[str, tuple[int, int]],
    outputs: Iterable[str],
    order: Sequence[int] | None = None,
) -> bytes:
    """A model that gives the tensors `outputs`, of which the original made the last from the first.

    inputs   name -> element type and rank, of tensors to be given; every input of the original that is needed is
             among them
    outputs  names of tensors that nodes give, or of initializers
    order    of their dimensions, if not the original's: a runtime that keeps them in this order need not turn them
    """
    reader, graph = _graph(model)
    parts = list(reader.messages(graph, 1))
    nodes = [(part, *_ends(reader, part)) for number, part in parts if number == _NODE]
    wanted, kept = set(outputs), set()
    for part, given, made in reversed(nodes):  # ONNX has nodes in an order in which each follows what it takes
        if made & wanted - inputs.keys():
            kept.add(part)
            wanted |= given
    left = [
        (number, part)
        for number, part in parts
        if number not in (_INPUT, _OUTPUT, _VALUE_INFO)
        and (number != _NODE or part in kept)
        and (number != _INITIALIZER or _name_of(reader, part) in wanted)
    ]
    of_graph = b"".join(field(number, reader.bytes(part)) for number, part in left)
    if order is not None:
        turned = {name: f"{name}/turned" for name in outputs}
        of_graph += b"".join(field(_NODE, _transpose(name, to, order)) for name, to in turned.items())
        outputs = turned.values()
    of_graph += b"".join(field(_INPUT, _tensor(name, *shape)) for name, shape in inputs.items())
    of_graph += b"".join(field(_OUTPUT, field(1, name.encode())) for name in outputs)
    begin, end = graph
    head = len(field(_GRAPH, reader.bytes(graph))) - (end - begin)
    return model[: begin - head] + field(_GRAPH, of_graph) + model[end:]


def _graph(model: bytes) -> tuple[Reader, Span]:
    reader = Reader(model)
    return reader, next(part for number, part in reader.messages((0, len(model)), 0) if number == _GRAPH)


def _ends(reader: Reader, node: Span) -> tuple[set[str], set[str]]:
    """Names of what a node takes and gives. Its subgraphs, if it has any, are not looked into."""
    ends: dict[int, set[str]] = {1: set(), 2: set()}
    for number, part in reader.messages(node, 2):
        if number in ends:
            ends[number].add(reader.text(part))
    return ends[1], ends[2]


def _name_of(reader: Reader, tensor: Span) -> str:
    return next((reader.text(name) for number, name in reader.messages(tensor, 2) if number == 8), "")


def _transpose(name: str, to: str, order: Sequence[int]) -> bytes:
    """A NodeProto."""
    ints = b"".join(field(8, i) for i in order) + field(20, 7)  # ints, and their AttributeProto.AttributeType
    attribute = field(1, b"perm") + ints
    return field(1, name.encode()) + field(2, to.encode()) + field(4, b"Transpose") + field(5, attribute)


def _tensor(name: str, element_type: int, rank: int) -> bytes:
    """A ValueInfoProto of a tensor whose sizes are not known."""
    shape = field(1, b"") * rank
    return field(1, name.encode()) + field(2, field(1, field(1, element_type) + field(2, shape)))
