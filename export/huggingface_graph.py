"""An encoder of transformers as one ONNX graph: front end, model and head, each exported and then joined."""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import compose
from torch import Tensor, nn

from edgealign.export.graph import OPSET, ParityLost, session_of

PARITY_TOLERANCE = 1e-4  # of unit embeddings, fp32, torch against ONNX Runtime


@dataclass(frozen=True)
class Chain:
    """What becomes one graph, `name` -> embedding.

    name       of the input: waveform, image or tokens
    dynamic    its axes beside the batch that may have any length: axis -> name
    front      gives what `model` takes, in the order of `inputs`
    inputs     names of the arguments of `model`
    model      of transformers
    output     what of its answer `head` takes: last_hidden_state, pooler_output, text_embeds, audio_embeds
    head       gives the unit embedding
    optimum    library and model type that optimum knows it by, or None where it does not: torch.onnx then
    """

    name: str
    dynamic: dict[int, str]
    front: nn.Module
    inputs: tuple[str, ...]
    model: nn.Module
    output: str
    head: nn.Module
    optimum: tuple[str, str] | None

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.head(self._run_model(x))

    def _run_model(self, x: Tensor) -> Tensor:
        values = self.front(x)
        values = values if isinstance(values, tuple) else (values,)
        return self.model(**dict(zip(self.inputs, values, strict=True)))[self.output]

    def to_onnx(self, examples: list[Tensor]) -> tuple[bytes, int]:
        """ONNX bytes, checked against torch on every example, and dim. The first has the shape that is traced.

        ParityLost where an answer differs by more than PARITY_TOLERANCE.
        """
        first = examples[0]
        with torch.no_grad():
            values = self.front(first)
            values = values if isinstance(values, tuple) else (values,)
            states = self._run_model(first)
        with _quiet():
            front = _trace(self.front, (first,), (self.name,), self.inputs, {self.name: {0: "batch", **self.dynamic}})
            model = self._trace_model(values) if self.optimum is None else self._export_by_optimum()
            axes = {self.output: {0: "batch", **({1: "n_states"} if states.ndim == 3 else {})}}
            head = _trace(self.head, (states,), (self.output,), ("embedding",), axes)
        data = _join([front, model, head], self.inputs, self.output)
        return data, self._check(data, examples)

    def _trace_model(self, values: tuple[Tensor, ...]) -> onnx.ModelProto:
        """By torch.onnx alone: CLAP, which optimum does not know."""
        axes = {name: {0: "batch"} for name in self.inputs}
        answers = _Answers(self.model, self.inputs, self.output)
        return _trace(answers, values, self.inputs, (self.output,), axes)

    def _export_by_optimum(self) -> onnx.ModelProto:
        from optimum.exporters.onnx.convert import export
        from optimum.exporters.tasks import TasksManager

        make_config = TasksManager.get_exporter_config_constructor(
            "onnx", library_name=self.optimum[0], model_type=self.optimum[1], task="feature-extraction"
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            config = make_config(self.model.config)
            export(self.model, config, path, opset=OPSET, disable_dynamic_axes_fix=True)
            return onnx.load(path)

    def _check(self, data: bytes, examples: list[Tensor]) -> int:
        session = session_of(data)
        for example in examples:
            expected = self(example).numpy()
            got = session.run(None, {self.name: example.numpy()})[0]
            difference = float(np.abs(got - expected).max()) if got.shape == expected.shape else np.inf
            if not difference <= PARITY_TOLERANCE:
                raise ParityLost(
                    f"at the shape {tuple(example.shape)} the exported encoder differs from torch by {difference:.1e}, "
                    f"allowed is {PARITY_TOLERANCE:.0e}"
                )
        return expected.shape[1]


class _Answers(nn.Module):
    """A model whose answer is one tensor."""

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.model, self.inputs, self.output = model, inputs, output

    def forward(self, *values: Tensor) -> Tensor:
        return self.model(**dict(zip(self.inputs, values, strict=True)))[self.output]


def _trace(
    module: nn.Module, examples: tuple[Tensor, ...], inputs: tuple[str, ...], outputs: tuple[str, ...],
    axes: dict[str, dict[int, str]],
) -> onnx.ModelProto:  # fmt: skip
    file = io.BytesIO()
    torch.onnx.export(
        module.eval(), examples, file, dynamo=False, opset_version=OPSET, input_names=list(inputs),
        output_names=list(outputs), dynamic_axes=axes,
    )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def _join(models: list[onnx.ModelProto], inputs: tuple[str, ...], output: str) -> bytes:
    """One graph of front end, model and head; what the head does not need falls away."""
    front, model, head = models
    front = compose.add_prefix(front, "front/", rename_inputs=False)
    model = compose.add_prefix(model, "model/")
    head = compose.add_prefix(head, "head/", rename_outputs=False)
    model.ir_version = head.ir_version = front.ir_version
    # CLAP takes an input that it uses where it fuses only: a trace leaves it out.
    taken = {value.name for value in model.graph.input}
    model_inputs = [(f"front/{name}", f"model/{name}") for name in inputs if f"model/{name}" in taken]
    joined = compose.merge_models(front, model, model_inputs, outputs=[f"model/{output}"])
    joined = compose.merge_models(joined, head, [(f"model/{output}", f"head/{output}")])
    onnx.checker.check_model(joined, full_check=True)
    return joined.SerializeToString()


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing is asked for; what a trace can get wrong, the comparison with torch finds."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
