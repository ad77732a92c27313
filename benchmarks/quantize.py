"""int8 transformers: `edgealign bundle quantize` beside optimum's ORTQuantizer, on the same graphs and inputs.

    python -m benchmarks.quantize

The models have the architectures of what people import, four layers of 192, and random weights, made on the spot:
noise, size and time can be compared, accuracy cannot. Half of the inputs give the ranges; the others are measured.
Needs edgealign[hf].
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np

from benchmarks import rows
from edgealign import Bundle, machine
from edgealign.bench import one_second
from edgealign.inputs import ImageInput

ROWS = rows.FOLDER / "quantize.jsonl"
FAMILIES = {"vit": "image", "ast": "audio", "wav2vec2": "audio"}
N_INPUTS = 40


def make_model(family: str, folder: Path) -> None:
    """A transformers folder of the family, with random weights."""
    import torch
    import transformers as t

    size = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 768}
    torch.manual_seed(0)
    if family == "vit":
        model = t.ViTModel(t.ViTConfig(image_size=96, patch_size=16, **size))
        prepare = t.ViTImageProcessor(size={"height": 96, "width": 96})
    elif family == "ast":
        model = t.ASTModel(t.ASTConfig(num_mel_bins=64, max_length=128, **size))
        prepare = t.ASTFeatureExtractor(num_mel_bins=64, max_length=128)
    else:
        model = t.Wav2Vec2Model(t.Wav2Vec2Config(conv_dim=(128,) * 7, **size))
        prepare = t.Wav2Vec2FeatureExtractor()
    with torch.no_grad():
        for parameter in model.parameters():  # as drawn they are so small that every input has nearly one embedding
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    prepare.save_pretrained(folder)


def made_up_inputs(bundle: Bundle) -> list[np.ndarray]:
    """What the encoder takes: colored noise as pictures, gliding tones in noise as sound."""
    rng = np.random.default_rng(0)
    taken = bundle.input
    if isinstance(taken, ImageInput):
        coarse = rng.random((N_INPUTS, 1, 3, 8, 8), dtype=np.float32)
        steps = np.arange(max(taken.height_px, taken.width_px)) * 8
        rows_of, columns = steps[: taken.height_px] // taken.height_px, steps[: taken.width_px] // taken.width_px
        return list(np.ascontiguousarray(coarse[..., rows_of, :][..., columns]))
    glide = one_second(taken.sample_rate_hz)
    tones = (np.resize(np.roll(glide[:: 1 + i % 3], 400 * i), len(glide)) for i in range(N_INPUTS))
    return [(tone + 0.02 * rng.normal(size=len(tone)))[None].astype(np.float32) for tone in tones]


def by_optimum(data: bytes) -> tuple[str, bytes]:
    """Dynamic, per channel, as optimum makes it for AVX-512 with VNNI; and of which operators."""
    import onnx
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    from edgealign.export.int8 import name_domain_once

    model = onnx.load_from_string(data)
    name_domain_once(model)  # without which it gives up on every graph of `export --hf`
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder, "model.onnx"))
        quantizer = ORTQuantizer.from_pretrained(Path(folder))
        for name, only in (("ORTQuantizer dynamic", None), ("ORTQuantizer dynamic, MatMul", ["MatMul"])):
            config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
            config.operators_to_quantize = only or config.operators_to_quantize
            try:
                made = quantizer.quantize(save_dir=Path(folder, "int8"), quantization_config=config)
                return name, next(Path(made).glob("*.onnx")).read_bytes()
            except Exception as error:  # of wav2vec2, whose weight_norm it does not fold
                print(f"{name}: {error}")
    raise RuntimeError("ORTQuantizer cannot quantize the model at all")


def measure(family: str) -> list[dict]:
    from edgealign.export import gates
    from edgealign.export.huggingface import Options, export_huggingface
    from edgealign.export.quantize import QuantizationLost, measure_drift

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "model")
        make_model(family, source)
        window_s = None if FAMILIES[family] == "image" else 1.0
        options = Options(FAMILIES[family], None, window_s, None, None)
        bundle = export_huggingface(source, Path(folder, "bundle"), options, lambda line: None)
        data, name, inputs = bundle.read(bundle.encoder_file()), bundle.input.tensor, made_up_inputs(bundle)
    models, in_fp32 = {"fp32": data}, {}
    for method in gates.METHODS:
        try:
            made = gates.quantize_checked(data, name, inputs[: N_INPUTS // 2], method, report=print)
            models[method], in_fp32[method] = made.data, len(made.in_fp32)
        except QuantizationLost as error:
            print(error)
    optimum, models_optimum = by_optimum(data)
    models[optimum] = models_optimum
    held_out = inputs[N_INPUTS // 2 :]
    times = gates.latency_ms(list(models.values()), name, held_out)
    where = {"machine": machine.describe(), "commit": rows.commit(), "command": rows.command("quantize")}
    return [
        {
            "what": f"quantize {family}", "stage": method, "n_layers_fp32": in_fp32.get(method),
            "snr_db": None if method == "fp32" else round(measure_drift(data, model, name, held_out).snr_db, 2),
            "size_bytes": len(model), "median_ms": round(ms, 4), "n_runs": gates.N_TIMED, "threads": 1, **where,
        }
        for (method, model), ms in zip(models.items(), times, strict=True)
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantize", description=__doc__.partition("\n")[0])
    parser.add_argument("families", nargs="*", choices=[*FAMILIES, []], help="vit, ast, wav2vec2; all where left out")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    for family in arguments.families or FAMILIES:
        found = measure(family)
        rows.replace(ROWS, found, key=("what", "stage"))
        for row in found:
            print(
                f"{row['what']:20} {row['stage']:30} {row['snr_db']} dB {row['size_bytes']} bytes {row['median_ms']} ms"
            )


if __name__ == "__main__":
    main()
