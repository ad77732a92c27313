"""int8 encoders, and what they cost."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgealign.errors import EdgealignError
from edgealign.variants import MIN_SNR_DB

# Loudness, attention and statistics stay in fp32: they are cheap, and their ranges are wide.
QUANTIZED = ("Conv", "Relu", "Add", "Gemm", "Gather")


class QuantizationLost(EdgealignError):
    """The quantized encoder is too far from the one it was made of."""


@dataclass(frozen=True)
class Drift:
    """How far the quantized encoder is from fp32 on inputs that calibration did not see."""

    snr_db: float  # signal-to-quantization-noise ratio of the embeddings
    max_cosine_drift: float  # largest cosine distance between the two embeddings of one input


class Samples(CalibrationDataReader):
    """Inputs of the name `name`, as the calibrator wants them."""

    def __init__(self, name: str, inputs: Sequence[np.ndarray]) -> None:
        self._rows = iter([{name: x} for x in inputs])

    def get_next(self) -> dict | None:
        return next(self._rows, None)


def quantize(data: bytes, name: str, samples: list[np.ndarray], held_out: list[np.ndarray]) -> tuple[bytes, Drift]:
    """Static int8: unsigned activations, signed weights per channel; refused under MIN_SNR_DB.

    data       ONNX bytes in fp32
    name       of the input
    samples    inputs whose ranges are taken, each with a batch dimension
    held_out   inputs on which the drift is measured
    """
    with tempfile.TemporaryDirectory() as folder, quiet():
        paths = [Path(folder, f"{stage}.onnx") for stage in ("fp32", "prepared", "int8")]
        paths[0].write_bytes(data)
        quant_pre_process(paths[0], paths[1], skip_symbolic_shape=True)
        graph = onnx.load(paths[1]).graph
        excluded = [n.name for n in graph.node if _is_statistics(n)] + _first_convolution(graph)
        quantize_static(
            paths[1], paths[2], Samples(name, samples), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            op_types_to_quantize=list(QUANTIZED), nodes_to_exclude=excluded,
        )  # fmt: skip
        quantized = paths[2].read_bytes()
    drift = measure_drift(data, quantized, name, held_out)
    if drift.snr_db < MIN_SNR_DB:
        raise QuantizationLost(
            f"the int8 encoder has a signal-to-quantization-noise ratio of {drift.snr_db:.1f} dB, expected at least "
            f"{MIN_SNR_DB:.0f} dB: train longer, or on more data"
        )
    return quantized, drift


@contextmanager
def quiet() -> Iterator[None]:
    """The quantizer logs warnings of its own pre-processing step to the root logger."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def measure_drift(data: bytes, quantized: bytes, name: str, inputs: Sequence[np.ndarray]) -> Drift:
    a, b = embeddings_of(data, name, inputs), embeddings_of(quantized, name, inputs)
    return Drift(snr_db=snr_db(a, b), max_cosine_drift=float((1 - (a * b).sum(axis=1)).max()))


def embeddings_of(data: bytes, name: str, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [n, dim]: what a model gives for inputs with a batch dimension each."""
    return embedder(data, name)(inputs)


def embedder(data: bytes, name: str) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """`embeddings_of` for many calls: the model is loaded once."""
    session = session_of(data)
    return lambda inputs: np.concatenate([session.run(None, {name: x})[0] for x in inputs])


def snr_db(reference: np.ndarray, embeddings: np.ndarray) -> float:
    """Signal-to-quantization-noise ratio: power of the reference by that of the difference; infinite for equals."""
    noise = float(np.square(reference - embeddings).sum())
    return float("inf") if noise == 0 else float(10 * np.log10(np.square(reference).sum() / noise))


def _is_statistics(node: onnx.NodeProto) -> bool:
    """Additions of attention, shapes and normalization: everything outside the convolutional body."""
    return node.op_type in ("Add", "Gather") and "/body" not in node.name and "embedding" not in node.name


def _first_convolution(graph: onnx.GraphProto) -> list[str]:
    """A convolution of one channel, with what follows it, stays in fp32: single bytes are gathered for longer than the
    products take, and its weights are few."""
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    first = next((n for n in graph.node if n.op_type == "Conv"), None)
    if first is None or sizes.get(first.input[1], (0, 0))[1] != 1:
        return []
    return [first.name, *(n.name for n in graph.node if n.op_type == "Relu" and n.input[0] in first.output)]


def session_of(data: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
