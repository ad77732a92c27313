"""A folder of a transformers model -> a bundle that needs neither transformers nor torch.

Nothing is downloaded, no code of the folder runs, and weights are read from safetensors alone.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgealign import __version__
from edgealign.bundle import Bundle, check_target
from edgealign.errors import InputUnreadable, InvalidInput, MissingExtra
from edgealign.export.foreign_bundle import check_background, made_up_samples, write_foreign_bundle
from edgealign.export.front_ends import word_front_end, word_windows
from edgealign.export.huggingface_front_ends import (
    ClapLogMel,
    Head,
    KaldiFilterbank,
    Picture,
    TextInputs,
    ZeroMeanUnitVariance,
)
from edgealign.export.huggingface_graph import Chain
from edgealign.inputs import ImageInput, Input, Windows, read_input
from edgealign.manifest import FILTERS, max_bytes
from edgealign.train.front_end import mel_filters

ENCODER, TEXT_ENCODER, TOKENIZER = "encoder.onnx", "text_encoder.onnx", "tokenizer.json"
GOLDEN_TEXTS = ("water", "A dog barks in the rain.")
TEXT_WEIGHT = 1.0
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # numbers of pillow
MIN_CLIP_S = 0.1
WINDOW_S = 5.0
ANSWER_LIMIT = 3  # names in a message


@dataclass(frozen=True)
class TextSide:
    """chain: `tokens` -> embedding;  tokenizer: bytes of tokenizer.json;  max_tokens: what the model takes."""

    chain: Chain
    tokenizer: bytes
    max_tokens: int


@dataclass(frozen=True)
class Encoders:
    """What a folder gives.

    sample   the encoder of samples, or None where the model has text alone
    input    the section `input` of a manifest
    text     the encoder of words, or None
    filters  float32 [n_mels, n_bins], of the front end that finds words, where it does
    """

    sample: Chain | None
    input: dict[str, Any]
    text: TextSide | None = None
    filters: np.ndarray | None = None


@dataclass(frozen=True)
class Options:
    """What the user chose; None leaves it to the model."""

    modality: str
    pool: str | None = None
    window_s: float | None = None
    hop_s: float | None = None
    background: Path | None = None


class Folder:
    """A local folder as `save_pretrained` writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            raise InputUnreadable(f"'{path}' is not a folder: a transformers model is a folder with a config.json")
        self.config_json = self._json("config.json")
        if self.config_json is None:
            raise InputUnreadable(
                f"'{path}' has no config.json: name a folder that `save_pretrained` wrote or that was copied whole"
            )
        self.model_type = str(self.config_json.get("model_type"))

    def _json(self, name: str) -> dict | None:
        file = self.path / name
        if not file.is_file():
            return None
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(value, dict):
                raise ValueError("not an object")
        except (OSError, ValueError) as error:
            raise InputUnreadable(f"'{file}' is not usable JSON ({error}): copy the folder again") from None
        return value

    def license(self) -> str:
        """What the front matter of the folder's README.md says."""
        readme = self.path / "README.md"
        lines = readme.read_text(encoding="utf-8", errors="replace").splitlines() if readme.is_file() else []
        if lines[:1] == ["---"]:
            for line in lines[1 : lines.index("---", 1) if "---" in lines[1:] else 1]:
                if line.startswith("license:") and line[8:].strip():
                    return line[8:].strip()[:200]
        return "not stated: ask whoever made the model"

    def check_weights(self) -> None:
        if any((self.path / name).is_file() for name in WEIGHTS):
            return
        pickles = [name for name in PICKLES if (self.path / name).is_file()]
        if pickles:
            raise InvalidInput(
                f"'{self.path}' has its weights as '{pickles[0]}' only, and a pickle can run code: convert it where "
                f"you trust it, model.save_pretrained(folder, safe_serialization=True), which writes {WEIGHTS[0]}"
            )
        raise InputUnreadable(f"'{self.path}' has no weights: {WEIGHTS[0]} is expected beside config.json")

    def model(self, class_name: str, **arguments: Any) -> nn.Module:
        """The model in evaluation mode, fp32; refused where weights that it needs are not in the folder."""
        import transformers

        self.check_weights()
        make = getattr(transformers, class_name)
        try:
            model, report = make.from_pretrained(
                self.path, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32,
                ignore_mismatched_sizes=True,
                attn_implementation="eager", trust_remote_code=False, **arguments,
            )  # fmt: skip
        except Exception as error:  # transformers and safetensors raise a dozen unrelated types
            raise InputUnreadable(f"'{self.path}' cannot be loaded as {class_name}: {_first_line(error)}") from None
        # Training masks inputs with it, encoding does not.
        missing = [name for name in report["missing_keys"] if not name.endswith("masked_spec_embed")]
        wrong = [item[0] if isinstance(item, tuple) else item for item in report["mismatched_keys"]]
        if missing or wrong:
            names = ", ".join(sorted([*missing, *wrong])[:ANSWER_LIMIT])
            raise InputUnreadable(
                f"the weights in '{self.path}' lack {len(missing) + len(wrong)} tensors of {class_name}, or have them "
                f"in another shape ({names}): they belong to another model, or the pooling that was asked for was "
                f"never trained"
            )
        return model.eval()

    def feature_extractor(self) -> Any:
        return self._preprocessor("AutoFeatureExtractor")

    def image_processor(self) -> Any:
        return self._preprocessor("AutoImageProcessor", use_fast=False)

    def _preprocessor(self, class_name: str, **arguments: Any) -> Any:
        import transformers

        if not any((self.path / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
            raise InputUnreadable(
                f"'{self.path}' has no preprocessor_config.json, which says what the model hears or sees: copy it from "
                f"where the model came from"
            )
        try:
            return getattr(transformers, class_name).from_pretrained(
                self.path, local_files_only=True, trust_remote_code=False, **arguments
            )
        except Exception as error:  # see model
            raise InputUnreadable(f"the preprocessor in '{self.path}' cannot be used: {_first_line(error)}") from None

    @cached_property
    def sentence_config(self) -> dict:
        """What sentence-transformers adds: max_seq_length and do_lower_case."""
        return self._json("sentence_bert_config.json") or {}

    def sentence_pooling(self) -> str | None:
        """Pooling that a sentence-transformers folder asks for; None where it is no such folder."""
        modules = self.path / "modules.json"
        if not modules.is_file():
            return None
        text = modules.read_text(encoding="utf-8")
        if "Dense" in text:
            raise InvalidInput(
                f"'{self.path}' ends in a dense layer, which is not supported: choose --pool to go without"
            )
        pooling = self._json("1_Pooling/config.json") or {}
        for key, name in (("pooling_mode_mean_tokens", "mean"), ("pooling_mode_cls_token", "cls")):
            if pooling.get(key):
                return name
        raise InvalidInput(f"'{self.path}' pools in a way that is not supported: choose --pool mean or --pool cls")

    def tokenizer(self, model_limit: int) -> tuple[bytes, int]:
        """tokenizer.json and how many tokens a text may have; slow tokenizers are converted."""
        import transformers

        known = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
        if not any((self.path / name).is_file() for name in known):
            raise InputUnreadable(
                f"'{self.path}' has no tokenizer: tokenizer.json is expected beside config.json, copy it from where "
                f"the model came from"
            )
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                self.path, local_files_only=True, trust_remote_code=False, use_fast=True
            )
        except Exception as error:  # see model
            raise InputUnreadable(f"the tokenizer in '{self.path}' cannot be used: {_first_line(error)}") from None
        if not tokenizer.is_fast:
            raise InvalidInput(f"the tokenizer in '{self.path}' has no form as tokenizer.json: it cannot be exported")
        backend = tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        if self.sentence_config.get("do_lower_case"):
            from tokenizers import normalizers

            steps = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
            backend.normalizer = normalizers.Sequence(steps)
        limits = (model_limit, tokenizer.model_max_length, self.sentence_config.get("max_seq_length") or model_limit)
        return backend.to_str().encode(), int(min(limits))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def export_huggingface(path: Path, target: Path, options: Options, report: Callable[[str], None]) -> Bundle:
    """Write the bundle of the model in a folder at `target`; parity with torch is checked on the way.

    InputUnreadable for a folder that is none or lacks something, InvalidInput for a model or an option that is not
    supported, ParityLost where the graph does not give what torch gives.
    """
    check_target(target)
    check_background(options.background)
    encoders = load(path, options)
    text, section = encoders.text, encoders.input
    generator = torch.Generator().manual_seed(0)
    files: dict[str, bytes] = {}
    sources: dict[str, dict] = {}
    if text is not None:
        vocabulary = text.chain.model.config.vocab_size
        shapes = ((2, min(9, text.max_tokens)), (1, 3), (3, min(40, text.max_tokens)))
        examples = [torch.randint(vocabulary, shape, generator=generator) for shape in shapes]
        files[TEXT_ENCODER], dim = text.chain.to_onnx(examples)
        files[TOKENIZER] = text.tokenizer
        tokenizer = {"kind": "huggingface", "file": TOKENIZER, "max_tokens": text.max_tokens}
        sources["text"] = {"file": TEXT_ENCODER, "weight": TEXT_WEIGHT, "tokenizer": tokenizer}
    if encoders.sample is not None:
        files[ENCODER], dim = encoders.sample.to_onnx(_examples(read_input(section), generator))
    if encoders.filters is not None:
        files[FILTERS] = encoders.filters.astype("<f4").tobytes()
    report(f"{' and '.join(sorted(name for name in files if name.endswith('.onnx')))}: parity with torch holds")
    for name, data in files.items():
        if len(data) > max_bytes(name):
            raise InvalidInput(
                f"'{name}' of '{path}' has {len(data) / 2**20:.0f} MiB and a bundle holds at most "
                f"{max_bytes(name) / 2**20:.0f} MiB in one file: export a smaller model"
            )
    folder = Folder(path)
    name = path.resolve().name
    manifest = {
        "name": name[:200], "modality": options.modality, "bundle_version": "1", "dim": dim, "input": section,
        "sources": sources,
        "encoder": {
            "default": "fp32", "variants": {"fp32": {"file": TEXT_ENCODER if encoders.sample is None else ENCODER}}
        },
        "license": folder.license(),
        "attribution": [f"{name}, a {folder.model_type} model in the format of transformers"],
    }  # fmt: skip
    return write_foreign_bundle(
        target, files, manifest, lambda background: _card(manifest, options, background), options.background, report,
        golden_samples=[] if encoders.sample is None else made_up_samples(read_input(section)),
        golden_texts=() if text is None else [(words, "grapheme", None) for words in GOLDEN_TEXTS],
    )  # fmt: skip


def _card(manifest: dict[str, Any], options: Options, background: str) -> str:
    """The model card."""
    words = "a label can start from words; " if manifest["sources"] else ""
    return (
        f"# {manifest['name']}\n\n"
        f"Made by edgealign {__version__} from the folder of {manifest['attribution'][0]}. License, as the folder "
        f"states it: {manifest['license']}. What the model was trained on, and for what it may be used, edgealign does "
        f"not know.\n\n"
        f"- input: `{json.dumps(manifest['input'], sort_keys=True)}`; {words}everything that the model's own "
        f"preprocessing does to a sample is part of the graph\n"
        f"- pooling: {options.pool or 'the default of its kind'}\n"
        f"- embedding: {manifest['dim']} values of unit length\n\n{background}\n"
    )


def _examples(taken: Input, generator: torch.Generator) -> list[Tensor]:
    """Inputs of several batch sizes and lengths, for parity."""
    if isinstance(taken, ImageInput):
        shapes = [(n, 3, taken.height_px, taken.width_px) for n in (2, 1, 3)]
        return [torch.rand(shape, generator=generator) for shape in shapes]
    if isinstance(taken.windows, Windows):
        bounds = (taken.windows.min_frames, taken.windows.max_frames)
        least_s, most_s = map(taken.front_end.seconds, bounds)
    else:
        least_s, most_s = taken.windows.min_s, taken.windows.window_s
    durations_s = (0.6 * most_s + 0.4 * least_s, most_s, least_s)
    shapes = [(n, round(s * taken.sample_rate_hz)) for n, s in zip((2, 1, 3), durations_s, strict=True)]
    return [torch.randn(shape, generator=generator) * 0.1 for shape in shapes]


def load(path: Path, options: Options) -> Encoders:
    """The encoders of a folder; errors say what was found and what is supported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import optimum.exporters.onnx
        import transformers
    except ImportError as error:
        raise MissingExtra(
            f"exporting a transformers model needs packages that are not installed ({error.name}): pip install "
            f"'edgealign[hf]'"
        ) from None
    del optimum
    transformers.logging.set_verbosity_error()
    logging.getLogger("optimum").setLevel(logging.ERROR)
    folder = Folder(path)
    family = FAMILIES.get(folder.model_type)
    if family is None:
        raise InvalidInput(
            f"'{path}' is a '{folder.model_type}' model, which is not supported: supported are "
            f"{', '.join(sorted(FAMILIES))}"
        )
    if options.modality not in family.modalities:
        raise InvalidInput(
            f"'{path}' is a '{folder.model_type}' model: use --modality {' or '.join(family.modalities)}, not "
            f"{options.modality}"
        )
    pool = options.pool or (folder.sentence_pooling() if family.input == "text" else None)
    if options.pool is not None and options.pool not in family.pools:
        known = f"use {' or '.join(family.pools)}" if family.pools else "it has a projection of its own, leave it out"
        raise InvalidInput(f"--pool {options.pool} does not fit a '{folder.model_type}' model: {known}")
    if family.input != "waveform" and (options.window_s, options.hop_s) != (None, None):
        raise InvalidInput(f"--window and --hop are for sounds: leave them out for a '{folder.model_type}' model")
    if family.input == "text" and options.background is not None:
        raise InvalidInput("--background is for sounds and pictures: leave it out for words alone")
    return family.build(folder, replace(options, pool=pool or next(iter(family.pools), None)))


def _plain_text(folder: Folder, options: Options) -> Encoders:
    """BERT and its relatives: text alone, through optimum."""
    arguments = {"add_pooling_layer": options.pool == "pooler"} if folder.model_type not in NEVER_POOL else {}
    model = folder.model(TEXT_MODELS[folder.model_type], **arguments)
    if options.pool == "pooler":
        head = Head(None, model.pooler)
    else:
        head = Head({"mean": (0, None), "cls": (0, 1)}[options.pool])
    names = ["input_ids", "attention_mask"]
    if folder.model_type in ("bert", "albert", "electra"):
        names.append("token_type_ids")
    chain = _text_chain(model, names, "last_hidden_state", head, ("transformers", folder.model_type))
    # Positions of the RoBERTa family begin behind the id of the padding.
    taken = (
        model.config.pad_token_id + 1 if folder.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    )
    return Encoders(
        None, {"kind": "text"}, TextSide(chain, *folder.tokenizer(model.config.max_position_embeddings - taken))
    )


def _text_chain(model: nn.Module, names: list[str], output: str, head: nn.Module, optimum: Any) -> Chain:
    return Chain("tokens", {1: "n_tokens"}, TextInputs(names), tuple(names), model, output, head, optimum)


def _vision(folder: Folder, options: Options) -> Encoders:
    """ViT, DeiT and DINOv2, through optimum; DINOv2 with registers by torch.onnx, optimum does not know it."""
    pooler = options.pool == "pooler"
    arguments = {"add_pooling_layer": pooler} if folder.model_type in ("vit", "deit") else {}
    model = folder.model(VISION_MODELS[folder.model_type], **arguments)
    # DeiT has a second token, DINOv2 may have registers: neither is a part of the picture.
    extra = {"deit": 1, "dinov2_with_registers": getattr(model.config, "num_register_tokens", 0)}
    n_tokens = 1 + extra.get(folder.model_type, 0)
    head = Head(None, model.pooler) if pooler else Head({"cls": (0, 1), "mean": (n_tokens, None)}[options.pool])
    front, section, size = _picture(folder, model.config)
    if folder.model_type.startswith("dinov2"):
        _fix_positions(model, size)
    optimum = None if folder.model_type == "dinov2_with_registers" else ("transformers", folder.model_type)
    chain = Chain("image", {}, front, ("pixel_values",), model, "last_hidden_state", head, optimum)
    return Encoders(chain, section)


def _fix_positions(model: nn.Module, size: tuple[int, int]) -> None:
    """DINOv2 scales its positions to the picture, with an operator that ONNX lacks; here pictures have one size."""
    with torch.no_grad():
        patch = model.config.patch_size
        n_patches = (size[0] // patch) * (size[1] // patch)
        width = model.config.hidden_size
        table = model.embeddings.interpolate_pos_encoding(torch.zeros(1, n_patches + 1, width), *size).clone()
    model.embeddings.interpolate_pos_encoding = lambda *_: table


def _picture(folder: Folder, config: Any) -> tuple[Picture, dict[str, Any], tuple[int, int]]:
    """The front end of pictures, the section `input` of the manifest, and height and width as the model sees them.

    A model that scales the shorter side to more than it then crops sees the middle of the larger picture: the bundle
    takes the larger one, and the crop is in the graph.
    """
    processor = folder.image_processor()
    size = dict(processor.size)
    if set(size) == {"height", "width"}:
        height, width, fit = size["height"], size["width"], "stretch"
    elif set(size) == {"shortest_edge"}:
        height, width, fit = size["shortest_edge"], size["shortest_edge"], "cover"
    else:
        raise InvalidInput(f"'{folder.path}' sizes pictures by {sorted(size)}, which is not supported")
    crop = None
    seen = (height, width)
    if getattr(processor, "do_center_crop", False):
        seen = (processor.crop_size["height"], processor.crop_size["width"])
        if seen[0] > height or seen[1] > width:
            raise InvalidInput(f"'{folder.path}' crops pictures of {width} x {height} to {seen[1]} x {seen[0]}")
        if seen != (height, width):
            crop = ((height - seen[0]) // 2, (width - seen[1]) // 2, *seen)
    if not getattr(processor, "do_resize", True):
        raise InvalidInput(f"'{folder.path}' does not scale pictures, which is not supported: set do_resize")
    resample = RESAMPLING.get(int(processor.resample))
    if resample is None:
        raise InvalidInput(f"'{folder.path}' scales pictures by pillow's filter {processor.resample}: expected 2 or 3")
    if getattr(config, "num_channels", 3) != 3:
        raise InvalidInput(f"'{folder.path}' takes pictures of {config.num_channels} channels: expected 3")
    expected = config.image_size if isinstance(config.image_size, (tuple, list)) else (config.image_size,) * 2
    if tuple(expected) != seen and not folder.model_type.startswith("dinov2"):
        raise InvalidInput(
            f"'{folder.path}' prepares pictures of {seen[1]} x {seen[0]} px but its model takes {expected[1]} x "
            f"{expected[0]}: preprocessor_config.json and config.json do not belong together"
        )
    scale = 255 * processor.rescale_factor if getattr(processor, "do_rescale", True) else 255.0
    normalizes = getattr(processor, "do_normalize", True)
    mean, std = (list(processor.image_mean), list(processor.image_std)) if normalizes else ([0.0] * 3, [1.0] * 3)
    section = {"kind": "image", "height_px": height, "width_px": width, "fit": fit, "resample": resample}
    return Picture(crop, scale, mean, std), section, seen


def _waveform(rate_hz: int, options: Options, window_s: float, min_s: float, limited: bool) -> dict[str, Any]:
    """The section `input` of a manifest. limited: the model hears no more than window_s at once."""
    chosen = window_s if options.window_s is None else options.window_s
    if limited and chosen > window_s:
        raise InvalidInput(f"--window {chosen:g}: this model hears at most {window_s:g} s at once")
    if not chosen >= min_s:
        raise InvalidInput(f"--window {chosen:g}: this model needs at least {min_s:g} s")
    hop_s = chosen / 2 if options.hop_s is None else options.hop_s
    if not 0.01 <= hop_s <= chosen:
        raise InvalidInput(f"--hop {hop_s:g}: windows of {chosen:g} s need 0.01 to {chosen:g} s from one to the next")
    windows = {"version": 2, "window_s": chosen, "hop_s": hop_s, "min_s": min_s}
    return {"kind": "waveform", "sample_rate_hz": rate_hz, "windows": windows}


def _wave_transformer(folder: Folder, options: Options) -> Encoders:
    """wav2vec 2.0, HuBERT and WavLM, through optimum: the mean of their frames."""
    extractor = folder.feature_extractor()
    model = folder.model(WAVE_MODELS[folder.model_type])
    front = ZeroMeanUnitVariance() if extractor.do_normalize else nn.Identity()
    least = 1  # samples under one frame, and under the kernel of the first layer
    for kernel, stride in zip(reversed(model.config.conv_kernel), reversed(model.config.conv_stride), strict=True):
        least = (least - 1) * stride + kernel
    min_s = max(MIN_CLIP_S, math.ceil(100 * least / extractor.sampling_rate) / 100)
    chain = Chain(
        "waveform", {1: "n_samples"}, front, ("input_values",), model, "last_hidden_state", Head((0, None)),
        ("transformers", folder.model_type),
    )  # fmt: skip
    rate_hz = extractor.sampling_rate
    if options.modality != "speech" or options.window_s is not None:
        return Encoders(chain, _waveform(rate_hz, options, WINDOW_S, min_s, limited=False))
    if options.hop_s is not None:
        raise InvalidInput("--hop is for windows, and without --window a bundle for speech hears the word in a clip")
    front_end = word_front_end(rate_hz)
    section = {
        "kind": "waveform", "sample_rate_hz": rate_hz, "windows": word_windows(front_end),
        "front_end": asdict(front_end),
    }  # fmt: skip
    return Encoders(chain, section, filters=mel_filters(f=front_end))


def _spectrogram_transformer(folder: Folder, options: Options) -> Encoders:
    """AST, through optimum. Its pooler is the mean of its two special tokens."""
    extractor = folder.feature_extractor()
    model = folder.model("ASTModel")
    if (extractor.max_length, extractor.num_mel_bins) != (model.config.max_length, model.config.num_mel_bins):
        raise InvalidInput(
            f"'{folder.path}' prepares {extractor.max_length} frames of {extractor.num_mel_bins} bands but its model "
            f"takes {model.config.max_length} of {model.config.num_mel_bins}: preprocessor_config.json and config.json "
            f"do not belong together"
        )
    if extractor.sampling_rate != 16_000:
        raise InvalidInput(f"'{folder.path}' hears {extractor.sampling_rate} Hz: an AST at 16000 Hz is expected")
    head = Head({"pooler": (0, 2), "cls": (0, 1), "mean": (2, None)}[options.pool])
    chain = Chain(
        "waveform", {1: "n_samples"}, KaldiFilterbank(extractor), ("input_values",), model, "last_hidden_state", head,
        ("transformers", folder.model_type),
    )  # fmt: skip
    section = _waveform(extractor.sampling_rate, options, extractor.max_length / 100, MIN_CLIP_S, limited=True)
    return Encoders(chain, section)


def _clip(folder: Folder, options: Options) -> Encoders:
    """CLIP, both sides through optimum; their projections are the heads."""
    model = folder.model("CLIPModel")
    vision, words = model.vision_model, model.text_model
    front, section, _ = _picture(folder, vision.config)
    sample = Chain(
        "image", {}, front, ("pixel_values",), vision, "pooler_output", Head(None, model.visual_projection),
        ("transformers", "clip_vision_model"),
    )  # fmt: skip
    text = _text_chain(
        words, ["input_ids"], "pooler_output", Head(None, model.text_projection), ("diffusers", "clip-text")
    )
    return Encoders(sample, section, TextSide(text, *folder.tokenizer(words.config.max_position_embeddings)))


def _clap(folder: Folder, options: Options) -> Encoders:
    """CLAP, both sides by torch.onnx: optimum does not know it."""
    extractor = folder.feature_extractor()
    model = folder.model("ClapModel")
    fuses = bool(model.config.audio_config.enable_fusion)
    if fuses != (extractor.truncation == "fusion"):
        raise InvalidInput(
            f"'{folder.path}' prepares clips by '{extractor.truncation}' but its model "
            f"{'fuses' if fuses else 'does not fuse'}: preprocessor_config.json and config.json do not belong together"
        )
    sample = Chain(
        "waveform", {1: "n_samples"}, ClapLogMel(extractor), ("input_features", "is_longer"), model.audio_model,
        "pooler_output", Head(None, model.audio_projection), None,
    )  # fmt: skip
    names = ["input_ids", "attention_mask"]
    text = _text_chain(model.text_model, names, "pooler_output", Head(None, model.text_projection), None)
    section = _waveform(extractor.sampling_rate, options, float(extractor.max_length_s), MIN_CLIP_S, limited=True)
    config = model.config.text_config
    limit = config.max_position_embeddings - config.pad_token_id - 1  # see _plain_text
    return Encoders(sample, section, TextSide(text, *folder.tokenizer(limit)))


@dataclass(frozen=True)
class Family:
    """modalities that a model may be given, pooling by name, the default first, and what its samples are."""

    modalities: tuple[str, ...]
    pools: tuple[str, ...]
    input: str
    build: Callable[[Folder, Options], Encoders]


TEXT_MODELS = {
    "bert": "BertModel", "distilbert": "DistilBertModel", "roberta": "RobertaModel", "mpnet": "MPNetModel",
    "xlm-roberta": "XLMRobertaModel", "camembert": "CamembertModel", "albert": "AlbertModel",
    "electra": "ElectraModel",
}  # fmt: skip
VISION_MODELS = {
    "vit": "ViTModel", "deit": "DeiTModel", "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
}  # fmt: skip
WAVE_MODELS = {"wav2vec2": "Wav2Vec2Model", "hubert": "HubertModel", "wavlm": "WavLMModel"}
NEVER_POOL = ("distilbert", "electra", "albert")
FAMILIES = {
    **{
        name: Family(
            ("text",), ("mean", "cls") if name in NEVER_POOL else ("mean", "cls", "pooler"), "text", _plain_text
        )
        for name in TEXT_MODELS
    },
    **{
        name: Family(("image",), ("cls", "mean") if "dino" in name else ("cls", "mean", "pooler"), "image", _vision)
        for name in VISION_MODELS
    },
    **{name: Family(("speech", "audio"), ("mean",), "waveform", _wave_transformer) for name in WAVE_MODELS},
    "audio-spectrogram-transformer": Family(
        ("audio",), ("pooler", "cls", "mean"), "waveform", _spectrogram_transformer
    ),
    "clip": Family(("image",), (), "image", _clip),
    "clap": Family(("audio",), (), "waveform", _clap),
}
