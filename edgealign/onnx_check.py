"""Refuses a hostile ONNX model before ONNX Runtime sees it: one bounded walk of the protobuf, without the onnx package.

A model is refused for what its bytes say: data in other files, operators of unknown domains, tensors that are larger
than the bytes which hold them, shapes that no machine has memory for, cycles, and nesting without end. What a model
that passes does when it is loaded is bounded by `edgealign/first_load.py`.
"""

from __future__ import annotations

from math import prod

from edgealign.protobuf import Reader, Span

MAX_NODES = 200_000  # with every call of a local function counted as the nodes that it stands for
MAX_RANK = 32
MAX_ELEMENTS = 2**31  # of a tensor, as its shape declares them
MAX_SPARSE_ELEMENTS = 2**26  # of all sparse tensors, which ONNX Runtime makes dense
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
BOUND_OPERATORS = ("EPContext",)  # names a file that an accelerator's driver reads

# TensorProto.DataType -> bits of an element. Text, type 8, is apart.
_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
_TEXT = 8
_LEAST_BYTES = {4: 4, 5: 1, 7: 1, 10: 8, 11: 1}  # field of TensorProto -> bytes that a value in it takes at least

Operator = tuple[str, str]  # domain and name


def check_onnx(model: bytes) -> None:
    """ValueError, with what is wrong as a clause about "it", where the bytes are no ONNX model that may be loaded."""
    _Walk(model).model((0, len(model)))


class _Graph:
    """A graph or local function: names that are given to it, (inputs, outputs) of its nodes, functions it may call."""

    def __init__(self) -> None:
        self.given: set[str] = set()
        self.nodes: list[tuple[set[str], list[str]]] = []
        self.calls: list[Operator] = []

    def outer_names(self) -> set[str]:
        """Names that are taken from around the graph; ValueError where the nodes form a cycle."""
        maker = {name: at for at, (_, outputs) in enumerate(self.nodes) for name in outputs}
        waits = [{maker[name] for name in inputs if name in maker} for inputs, _ in self.nodes]
        _in_order(waits, "its nodes form a cycle")
        return {name for inputs, _ in self.nodes for name in inputs} - set(maker) - self.given


def _in_order(waits: list[set[int]], otherwise: str) -> list[int]:
    """Rows in an order in which each comes after all that it waits for; ValueError where there is none."""
    followers: list[list[int]] = [[] for _ in waits]
    for row, others in enumerate(waits):
        for other in others:
            followers[other].append(row)
    n_waiting = [len(others) for others in waits]
    order = [row for row, n in enumerate(n_waiting) if n == 0]
    for row in order:  # which grows meanwhile
        for follower in followers[row]:
            n_waiting[follower] -= 1
            if n_waiting[follower] == 0:
                order.append(follower)
    if len(order) < len(waits):
        raise ValueError(otherwise)
    return order


def _check_calls(main: _Graph, functions: dict[Operator, _Graph]) -> None:
    """That no function calls itself, and that the calls, once written out, stay under MAX_NODES."""
    keys = list(functions)
    row_of = {key: row for row, key in enumerate(keys)}
    waits = [{row_of[call] for call in functions[key].calls if call in row_of} for key in keys]
    n_nodes: dict[Operator, int] = {}

    def written_out(graph: _Graph) -> int:
        n = len(graph.nodes) + sum(n_nodes.get(call, 0) for call in graph.calls)
        if n > MAX_NODES:
            raise ValueError(f"its functions, written out, have more than {MAX_NODES} nodes")
        return n

    for row in _in_order(waits, "its functions call each other in a circle"):
        n_nodes[keys[row]] = written_out(functions[keys[row]])
    written_out(main)


class _Walk(Reader):
    """The messages of ONNX, a method each."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.n_nodes = self.n_sparse_elements = 0

    def model(self, span: Span) -> None:
        main: _Graph | None = None
        functions: dict[Operator, _Graph] = {}
        for number, part in self.messages(span, 0):
            if number == 7:
                if main is not None:
                    raise ValueError("it holds two graphs")
                main = self.graph(part, 1)
                main.outer_names()
            elif number == 20:
                raise ValueError("it holds a graph for training")
            elif number == 25:
                key, function = self.function(part, 1)
                function.outer_names()
                functions[key] = function
        if main is None:
            raise ValueError("it is no ONNX model: it has no graph")
        for domain, name in {call for graph in (main, *functions.values()) for call in graph.calls}:
            if name in BOUND_OPERATORS:
                raise ValueError(f"it uses the operator {name}, which reads files of an accelerator")
            if domain not in DOMAINS and (domain, name) not in functions:
                raise ValueError(f"it uses '{name[:60]}' of the unknown domain '{domain[:60]}': no custom operators")
        _check_calls(main, functions)

    def graph(self, span: Span, depth: int) -> _Graph:
        graph = _Graph()
        for number, part in self.messages(span, depth):
            if number == 1:
                self.node(part, depth + 1, graph)
            elif number == 5:
                graph.given.add(self.tensor(part, depth + 1))
            elif number == 15:
                graph.given.add(self.sparse(part, depth + 1))
            elif number in (11, 12, 13):
                name = self.value_info(part, depth + 1)
                if number == 11:
                    graph.given.add(name)
        return graph

    def function(self, span: Span, depth: int) -> tuple[Operator, _Graph]:
        graph, name, domain = _Graph(), "", ""
        for number, part in self.messages(span, depth):
            if number == 1:
                name = self.text(part)
            elif number == 10:
                domain = self.text(part)
            elif number == 4:
                graph.given.add(self.text(part))
            elif number == 7:
                self.node(part, depth + 1, graph)
            elif number == 11:
                self.attribute(part, depth + 1, graph)
            elif number == 12:
                self.value_info(part, depth + 1)
        return (domain, name), graph

    def node(self, span: Span, depth: int, graph: _Graph) -> None:
        self.n_nodes += 1
        if self.n_nodes > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES} nodes")
        inputs: set[str] = set()
        outputs: list[str] = []
        name = domain = ""
        for number, part in self.messages(span, depth):
            if number == 1:
                inputs.add(self.text(part))
            elif number == 2:
                outputs.append(self.text(part))
            elif number == 4:
                name = self.text(part)
            elif number == 5:
                inputs |= self.attribute(part, depth + 1, graph)
            elif number == 7:
                domain = self.text(part)
        # An input or output that is left out has an empty name.
        graph.nodes.append((inputs - {""}, [name for name in outputs if name]))
        graph.calls.append((domain, name))

    def attribute(self, span: Span, depth: int, graph: _Graph) -> set[str]:
        """The names that the attribute's graphs take from around them."""
        outer: set[str] = set()
        for number, part in self.messages(span, depth):
            if number in (5, 10):
                self.tensor(part, depth + 1)
            elif number in (6, 11):
                inner = self.graph(part, depth + 1)
                outer |= inner.outer_names()
                graph.calls += inner.calls
            elif number in (14, 15):
                self.type(part, depth + 1)
            elif number in (22, 23):
                self.sparse(part, depth + 1)
        return outer

    def sparse(self, span: Span, depth: int) -> str:
        name, dims = "", []
        for number, value, part in self.fields(span, depth):
            if number == 1 and value is None:
                name = self.tensor(part, depth + 1)
            elif number == 2 and value is None:
                self.tensor(part, depth + 1)
            elif number == 3:
                dims += self.dims(value, part)
        self.n_sparse_elements += _n_elements(dims, name)
        if self.n_sparse_elements > MAX_SPARSE_ELEMENTS:
            raise ValueError(f"its sparse tensors stand for more than {MAX_SPARSE_ELEMENTS} values")
        return name

    def tensor(self, span: Span, depth: int) -> str:
        name, element_type, dims, n_texts, raw_bytes = "", 0, [], 0, None
        values = dict.fromkeys(_LEAST_BYTES, 0)
        for number, value, part in self.fields(span, depth):
            size = part[1] - part[0]
            if number == 1:
                dims += self.dims(value, part)
            elif number == 2 and value is not None:
                element_type = value
            elif number in values:
                values[number] += size // _LEAST_BYTES[number]
            elif number == 6:
                n_texts += 1
            elif number == 8:
                name = self.text(part)
            elif number == 9:
                raw_bytes = size
            elif number == 13 or (number == 14 and value != 0):
                raise ValueError("it points to data in other files, which is never followed")
        n_values = n_texts if element_type == _TEXT else max(values.values())
        self.check_payload(name, element_type, dims, n_values, raw_bytes)
        return name

    @staticmethod
    def check_payload(name: str, element_type: int, dims: list[int], n_values: int, raw_bytes: int | None) -> None:
        n_elements = _n_elements(dims, name)
        if element_type != _TEXT and element_type not in _BITS:
            raise ValueError(f"its tensor '{name[:60]}' has the unknown element type {element_type}")
        bits = _BITS.get(element_type, 8)
        needed = (n_elements * bits + 7) // 8
        if raw_bytes is not None and element_type != _TEXT:
            if raw_bytes != needed:
                raise ValueError(f"its tensor '{name[:60]}' declares {needed} bytes and holds {raw_bytes}")
        elif n_elements > n_values * max(1, 8 // bits):  # elements of less than a byte share a value
            raise ValueError(f"its tensor '{name[:60]}' declares {n_elements} values and holds {n_values}")

    def dims(self, value: int | None, span: Span) -> list[int]:
        """One occurrence of a repeated int64, packed or not."""
        if value is not None:
            return [_signed(value)]
        found, (at, end) = [], span
        while at < end and len(found) <= MAX_RANK:
            value, at = self.varint(at, end)
            found.append(_signed(value))
        return found

    def value_info(self, span: Span, depth: int) -> str:
        name = ""
        for number, part in self.messages(span, depth):
            if number == 1:
                name = self.text(part)
            elif number == 2:
                self.type(part, depth + 1, name)
        return name

    def type(self, span: Span, depth: int, name: str = "") -> None:
        for number, part in self.messages(span, depth):
            if number in (1, 8):
                self.tensor_type(part, depth + 1, name)
            elif number in (4, 5, 9):  # sequence, map, optional: the type of what they hold
                for inner_number, inner in self.messages(part, depth + 1):
                    if inner_number in (1, 2):
                        self.type(inner, depth + 2, name)

    def tensor_type(self, span: Span, depth: int, name: str) -> None:
        for number, shape in self.messages(span, depth):
            if number == 2:
                sizes = []
                for _, dim in self.messages(shape, depth + 1):
                    known = [value for number, value, _ in self.fields(dim, depth + 2) if number == 1]
                    sizes.append(_signed(known[-1]) if known and known[-1] is not None else 1)
                # ONNX writes a size that is not known as a name; some exporters as -1.
                _n_elements([1 if size == -1 else size for size in sizes], name)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _n_elements(dims: list[int], name: str) -> int:
    if len(dims) > MAX_RANK or any(size < 0 for size in dims) or prod(dims) > MAX_ELEMENTS:
        shown = ", ".join(map(str, dims[:6])) + (", …" if len(dims) > 6 else "")
        raise ValueError(f"its tensor '{name[:60]}' has the absurd shape ({shown})")
    return prod(dims)
