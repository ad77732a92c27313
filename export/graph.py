"""A checkpoint's encoders as ONNX files that give what torch gives."""

from __future__ import annotations

import copy
import io
import warnings

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from edgealign.errors import EdgealignError
from edgealign.export.quantize import session_of
from edgealign.train.encoders import AlignedEncoders, SpeechEncoder, TextEncoder, centered

OPSET = 17
PARITY_TOLERANCE = 5e-5  # of unit embeddings, fp32, torch against ONNX Runtime
SPEECH_SHAPES = ((1, 18), (1, 61), (1, 98), (3, 150), (1, 300))  # batch, frames
TEXT_SHAPES = ((1, 3), (1, 9), (4, 14), (1, 40))  # batch, tokens


class ParityLost(EdgealignError):
    """An exported encoder does not give what its checkpoint gives."""


class ExportedSpeech(nn.Module):
    """log_mel [batch, n_mels, n_frames] -> unit embedding [batch, dim]; the alignment map is folded into it."""

    def __init__(self, encoders: AlignedEncoders, center: Tensor) -> None:
        super().__init__()
        self.encoder: SpeechEncoder = copy.deepcopy(encoders.speech)
        self.encoder.phones = None
        last, alignment = self.encoder.pooling.out, encoders.alignment
        with torch.no_grad():
            last.bias.copy_(alignment.weight @ last.bias + alignment.bias)
            last.weight.copy_(alignment.weight @ last.weight)
        self.center = nn.Buffer(center)

    def forward(self, log_mel: Tensor) -> Tensor:
        return centered(self.encoder(log_mel), self.center)


class ExportedText(nn.Module):
    """tokens [batch, n_tokens] -> unit embedding [batch, dim]."""

    def __init__(self, encoders: AlignedEncoders, center: Tensor) -> None:
        super().__init__()
        self.encoder: TextEncoder = copy.deepcopy(encoders.text)
        self.center = nn.Buffer(center)

    def forward(self, tokens: Tensor) -> Tensor:
        return centered(self.encoder(tokens), self.center)


def speech_to_onnx(module: ExportedSpeech, n_mels: int) -> bytes:
    """ONNX bytes of the speech encoder, checked against torch at SPEECH_SHAPES."""
    generator = torch.Generator().manual_seed(0)
    examples = [torch.randn(b, n_mels, t, generator=generator) * 3 - 6 for b, t in SPEECH_SHAPES]
    return to_onnx(module, examples, "log_mel", {0: "batch", 2: "n_frames"})


def text_to_onnx(module: ExportedText, n_tokens: int) -> bytes:
    """ONNX bytes of the text encoder, checked against torch at TEXT_SHAPES."""
    generator = torch.Generator().manual_seed(0)
    examples = [torch.randint(n_tokens, shape, generator=generator) for shape in TEXT_SHAPES]
    return to_onnx(module, examples, "tokens", {0: "batch", 1: "n_tokens"})


def to_onnx(module: nn.Module, examples: list[Tensor], name: str, dynamic: dict[int, str]) -> bytes:
    module.eval()
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Tracing is asked for: the quantizer takes it as it is. What a trace can get wrong, the shapes below find.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module, (examples[2],), file, dynamo=False, opset_version=OPSET,
            input_names=[name], output_names=["embedding"], dynamic_axes={name: dynamic, "embedding": {0: "batch"}},
        )  # fmt: skip
    model = with_constant_shapes(onnx.load_from_string(file.getvalue()))
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    session = session_of(data)
    for example in examples:
        with torch.inference_mode():
            expected = module(example).numpy()
        difference = float(np.abs(session.run(None, {name: example.numpy()})[0] - expected).max())
        if difference > PARITY_TOLERANCE:
            raise ParityLost(
                f"at the shape {tuple(example.shape)} the exported encoder differs from torch by {difference:.1e}, "
                f"allowed is {PARITY_TOLERANCE:.0e}"
            )
    return data


def with_constant_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Dimension 1 of a tensor of rank 3 that is split into two of known sizes is split without asking for its shape.

    The exporter asks, by ten small nodes for each `unflatten`; ONNX has 0 for a size that stays, and -1 for the rest.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        shape = makers.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is None or shape.op_type != "Concat" or len(shape.input) != 3:
            continue
        before, sizes, after = (makers[name] for name in shape.input)
        if (before.op_type, sizes.op_type, after.op_type) == ("Slice", "Constant", "Slice"):
            split = onnx.numpy_helper.to_array(sizes.attribute[0].t)
            if -1 in split:
                continue
            constant = onnx.numpy_helper.from_array(np.array([0, *split, -1], np.int64), f"{node.name}.shape")
            model.graph.initializer.append(constant)
            node.input[1] = constant.name
    wanted, kept = {output.name for output in model.graph.output}, []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.insert(0, copy.deepcopy(node))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def with_half_weights(data: bytes) -> bytes:
    """The same graph at half the size: weights are stored as float16 and widened when it is loaded."""
    model = onnx.load_from_string(data)
    kept, casts = [], []
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= 1024:
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            kept.append(onnx.numpy_helper.from_array(half, tensor.name + ".half"))
            casts.append(onnx.helper.make_node("Cast", [kept[-1].name], [tensor.name], to=onnx.TensorProto.FLOAT))
        else:
            kept.append(tensor)
    nodes = [*casts, *model.graph.node]
    for field, values in ((model.graph.initializer, kept), (model.graph.node, nodes)):
        copies = [copy.deepcopy(value) for value in values]
        del field[:]
        field.extend(copies)
    onnx.checker.check_model(model)
    return model.SerializeToString()
