"""A `sense.pt` of `edgealign train audio` or `image` -> the bundle of that name."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgealign import __version__
from edgealign.bundle import Bundle, check_target, write_bundle
from edgealign.errors import InvalidInput
from edgealign.export import decision, graph
from edgealign.export.quantize import embedder, measure_drift, quantize
from edgealign.train import made_sounds, pictures, sounds, starts
from edgealign.train.encoders import centered
from edgealign.train.front_end import SOUND_FRONT_END, mel_filters
from edgealign.train.sense_data import SenseData
from edgealign.train.sense_encoders import SenseEncoder
from edgealign.train.senses import Sense
from edgealign.train.source_networks import PictureMap, Words

WINDOWS = {"version": 2, "window_s": 5.0, "hop_s": 2.5, "min_s": 0.25}
PICTURE_INPUT = {
    "kind": "image", "height_px": pictures.SEEN_PX, "width_px": pictures.SEEN_PX, "fit": "cover",
    "resample": "bilinear",
}  # fmt: skip
# Samples that a word or a picture counts as. Chosen on validation classes.
SOURCE_WEIGHT = {"audio": 0.2, "image": 0.2}
FALSE_ACCEPTS = 0.1  # of other things, on validation classes: at the 5 % of words, one shot would answer too seldom
CALIBRATION_SAMPLES, HELD_OUT_SAMPLES = 160, 100
LEVEL_RANGE = (-9.0, 3.0)  # nepers that are added to a log-mel: recordings differ in level
ATTRIBUTION = {
    "audio": [
        "ESC-50 clips marked CC0 or CC BY (K. J. Piczak); their authors are named in ESC-50's own metadata",
        "Bengalese finch songs of crowsetta (T. Koumura, K. Okanoya 2016) and recordings of scikit-maad (BSD-3)",
        "great tit songs of pykanto (MIT)",
        "Arabic Speech Commands (CC BY 4.0)",
        "Caltech-101 (CC BY 4.0; F.-F. Li, M. Andreeto, M. Ranzato, P. Perona)",
        "OpenMoji emoji (CC BY-SA 4.0) and Unicode CLDR names (Unicode license)",
        "public-domain-recipes (Unlicense)",
    ],
    "image": [
        "Caltech-101 (CC BY 4.0; F.-F. Li, M. Andreeto, M. Ranzato, P. Perona)",
        "OpenMoji emoji (CC BY-SA 4.0) and Unicode CLDR names (Unicode license)",
        "public-domain-recipes (Unlicense)",
    ],
}  # fmt: skip


class Exported(nn.Module):
    """Samples as the encoder reads them -> unit embedding [batch, dim], the mean of training samples taken out."""

    def __init__(self, encoder: SenseEncoder, center: Tensor) -> None:
        super().__init__()
        self.encoder, self.center = copy.deepcopy(encoder), nn.Buffer(center)

    def forward(self, x: Tensor) -> Tensor:
        return centered(self.encoder(x), self.center)


class ExportedWords(nn.Module):
    """tokens [batch, n_tokens] -> unit embedding [batch, dim]."""

    def __init__(self, words: Words, center: Tensor) -> None:
        super().__init__()
        self.words, self.center = words, nn.Buffer(center)

    def forward(self, tokens: Tensor) -> Tensor:
        return centered(self.words(tokens), self.center)


class ExportedPictures(nn.Module):
    """image [batch, 3, height, width] -> unit embedding [batch, dim] in the space of sounds."""

    def __init__(self, encoder: SenseEncoder, mapped: PictureMap, center: Tensor) -> None:
        super().__init__()
        self.encoder, self.mapped, self.center = copy.deepcopy(encoder), mapped, nn.Buffer(center)

    def forward(self, image: Tensor) -> Tensor:
        x = self.encoder(image)
        return centered(self.mapped(x / torch.sqrt((x * x).sum(dim=1, keepdim=True))), self.center)


class Encoded:
    """A sense with its data, and the parts of a bundle that are made of both."""

    def __init__(self, sense: Sense, data: Path, cache: Path, report: Callable[[str], None]) -> None:
        self.sense, self.modality = sense, sense.modality
        self.data = SenseData(data, cache, sense.config["fold"], report)
        self.rng = np.random.default_rng(5)
        listed = self.data.sounds if self.modality == "audio" else self.data.pictures
        self.training = [i for i, one in enumerate(listed) if one.role == "train"]
        self.listed = listed
        some = [i for i in self.training if not self._is_made(i)]
        some = self.rng.permutation(some)[:800].tolist()
        self.center = starts.embed(sense.encoder, self.data.inputs(self.modality, some)).mean(dim=0).clone()

    def _is_made(self, row: int) -> bool:
        return isinstance(self.listed[row].file, tuple)

    def varied(self, n: int, seed: int) -> list[np.ndarray]:
        """n training samples under other conditions, every other one as it is; each with a batch dimension."""
        rng, plain = np.random.default_rng(seed), n // 2
        rows = rng.choice(self.training, n, replace=len(self.training) < n).tolist()
        generator = torch.Generator().manual_seed(seed)
        found = [x[None] for batch in self.data.inputs(self.modality, rows[:plain]) for x in batch.numpy()]
        for row in rows[plain:]:
            if self.modality == "audio":
                x = self.data.log_mels.whole(row)
                length = int(rng.integers(min(25, x.shape[1]), x.shape[1] + 1))
                first = int(rng.integers(x.shape[1] - length + 1))
                varied = sounds.vary(torch.from_numpy(x[None, :, first : first + length]), generator)
                found.append((varied + rng.uniform(*LEVEL_RANGE)).float().numpy())
            else:
                array = torch.from_numpy(self.data.arrays[row][None])
                found.append(pictures.vary(array, generator, pictures.SEEN_PX).numpy())
        return [found[i] for i in rng.permutation(n)]

    def background(self) -> list[np.ndarray]:
        """Samples of the background bank: few of each class, so that a user's class is not lost among its like."""
        by_label: dict[str, list[int]] = {}
        for row in self.rng.permutation(self.training).tolist():
            by_label.setdefault(self.listed[row].label, []).append(row)
        n_of = {"speech": 60, "bioacoustics forest": 8}
        rows = [row for label, own in sorted(by_label.items()) for row in own[: n_of.get(label, 2)]]
        if self.modality == "image":
            rows = self.rng.permutation(rows)[:900].tolist()
        plain = [x[None] for batch in self.data.inputs(self.modality, rows) for x in batch.numpy()]
        return plain + self.varied(200, seed=21) + self.noises(100, seed=1)

    def noises(self, n: int, seed: int) -> list[np.ndarray]:
        """Hiss, hum and silence with hiss; or blank, shaded and noisy pictures: each with a batch dimension."""
        rng, found = np.random.default_rng([seed, 77]), []
        for i in range(n):
            if self.modality == "audio":
                n_samples = int(rng.uniform(0.5, 5) * SOUND_FRONT_END.sample_rate_hz)
                hz = np.fft.rfftfreq(n_samples, 1 / SOUND_FRONT_END.sample_rate_hz) + 20
                noise = np.fft.irfft(np.fft.rfft(rng.normal(0, 1, n_samples)) * hz ** rng.uniform(-1.5, 0.5), n_samples)
                if i % 3 == 0:
                    noise /= noise.std()
                    noise += rng.uniform(0, 4) * np.sin(2 * np.pi * rng.uniform(45, 130) * np.arange(n_samples) / 16000)
                samples = (noise / np.abs(noise).max() * 10 ** rng.uniform(-3, -0.3)).astype(np.float32)
                found.append(sounds.log_mel(samples)[None])
            else:
                side = pictures.SEEN_PX
                corners = torch.from_numpy(rng.uniform(0, 1, (1, 3, *([1, 2, 4][i % 3],) * 2))).float()
                shade = F.interpolate(corners, (side, side), mode="bilinear", align_corners=False).numpy()
                noisy = shade + rng.normal(0, rng.choice([0, 0.05, 0.3]), (1, 3, side, side))
                found.append(np.clip(noisy, 0, 1).astype(np.float32))
        return found

    def pool(self, embed: decision.Embed, embed_tokens: decision.Embed | None) -> decision.Pool:
        """Embedded validation samples; half of the pictures and sounds as they are, half varied."""
        rows, names = self.data.asked(self.modality, "val")
        labels, of = np.unique(names, return_inverse=True)
        plain = [x[None] for batch in self.data.inputs(self.modality, rows) for x in batch.numpy()]
        half = self.rng.permutation(len(plain))[: len(plain) // 2]
        for i in half:
            x = torch.from_numpy(plain[i])
            generator = torch.Generator().manual_seed(int(i))
            if self.modality == "audio":
                plain[i] = sounds.vary(x, generator).numpy()
            else:
                array = torch.cat([(x * 255).to(torch.uint8), torch.full_like(x[:, :1], 255, dtype=torch.uint8)], dim=1)
                plain[i] = pictures.vary(array, generator, pictures.SEEN_PX).numpy()
        text = {}
        if embed_tokens is not None and self.sense.words is not None:
            tokenizer = starts.Tokenizer.from_dict(self.sense.vocabulary)
            for i, name in enumerate(labels):
                spelled = name.removeprefix("photograph ").replace("_", " ")
                text[i] = embed_tokens([starts.pad_tokens(tokenizer, [spelled]).numpy()])[0]
        return decision.Pool(embed(plain), of, np.zeros(len(of), np.int64), text)


def export_sense(
    checkpoint: Path, data: Path, cache: Path, target: Path, report: Callable[[str], None], split: Path | None = None,
    small: bool = False,
) -> Bundle:  # fmt: skip
    """Write the bundle at `target`: int8 and, unless `small`, fp32 encoders, sources, background bank, decision, card.

    split   where `checkpoint` was trained on all classes: a sense.pt of the same modality that was not. How unlike
            samples of one new class are can only be seen on classes that training did not see, so that the decision is
            fitted with the encoder of that one.
    """
    check_target(target)
    sense = Sense.load(checkpoint)
    deciding = sense if split is None else Sense.load(split, sense.modality)
    if deciding.config["fold"] < 0:
        raise InvalidInput(
            f"'{checkpoint}' was trained on all classes, and none is left to fit the decision on: name with --split a "
            f"checkpoint of the same training with --fold 0"
        )
    encoded = Encoded(sense, data, cache, report)
    parts = _parts(encoded, report)
    calibration = _decision(encoded if deciding is sense else Encoded(deciding, data, cache, report), report)
    embed = embedder(parts["encoder.onnx"], _tensor(sense))
    bank = embed(encoded.background()).astype(np.float16)
    modality = sense.modality
    drift, stored_drift = parts.pop("drift"), parts.pop("stored_drift")
    variants = {"int8": {"file": "encoder.onnx", **asdict(drift)}}
    if small:
        del parts["encoder.fp32.onnx"]
    else:
        variants["fp32"] = {"file": "encoder.fp32.onnx", **asdict(stored_drift)}
    weight = SOURCE_WEIGHT[modality]
    sources = {}
    if "text.onnx" in parts:
        sources["text"] = {
            "file": "text.onnx", "weight": weight, "tokenizer": {"kind": "edgealign", "file": "vocab.json"},
        }  # fmt: skip
    if "picture.onnx" in parts:
        sources["image"] = {"file": "picture.onnx", "weight": weight, "input": PICTURE_INPUT}
    taken = PICTURE_INPUT
    if modality == "audio":
        taken = {"kind": "log_mel", "front_end": asdict(SOUND_FRONT_END), "windows": WINDOWS}
        parts["filters.f32"] = mel_filters(f=SOUND_FRONT_END).astype("<f4").tobytes()
    card = Path(__file__).with_name(f"{modality}_card.md").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        for name, content in parts.items():
            (source / name).write_bytes(content)
        (source / "bank.f16").write_bytes(bank.astype("<f2").tobytes())
        (source / "README.md").write_text(card, encoding="utf-8")
        drawn = [_drawing(i) for i in range(3)]
        return write_bundle(
            target, source,
            golden_samples=drawn if modality == "image" else _made_sounds(),
            golden_texts=[("dog", "grapheme", "en"), ("mbwa", "grapheme", "sw"), ("犬", "grapheme", None)]
            if "text" in sources else [],
            golden_pictures=drawn if "image" in sources else [],
            name=modality, modality=modality, bundle_version=__version__, dim=sense.encoder.config.dim,
            input=taken, sources=sources,
            encoder={"default": "int8", "variants": variants},
            bank={"file": "bank.f16", "rows": len(bank)},
            calibration=calibration, license="Apache-2.0", attribution=ATTRIBUTION[modality],
        )  # fmt: skip


def _parts(encoded: Encoded, report: Callable[[str], None]) -> dict:
    """Files of the bundle by name, and the drift of both variants of the encoder."""
    sense = encoded.sense
    data = _onnx(encoded)
    samples = encoded.varied(CALIBRATION_SAMPLES + HELD_OUT_SAMPLES, seed=11)
    seen, held_out = samples[:CALIBRATION_SAMPLES], samples[CALIBRATION_SAMPLES:]
    int8, drift = quantize(data, _tensor(sense), seen, held_out)
    stored = graph.with_half_weights(data)
    parts = {
        "encoder.onnx": int8, "encoder.fp32.onnx": stored, "drift": drift,
        "stored_drift": measure_drift(data, stored, _tensor(sense), held_out),
    }  # fmt: skip
    report(f"encoder: parity with torch holds, int8 {drift.snr_db:.1f} dB")
    if sense.words is not None:
        words = ExportedWords(sense.words, encoded.center).eval()
        examples = [torch.randint(starts.N_SPECIAL, 40, shape) for shape in ((1, 3), (1, 9), (4, 14), (1, 40))]
        text = graph.to_onnx(words, examples, "tokens", {0: "batch", 1: "n_tokens"})
        tokenizer = starts.Tokenizer.from_dict(sense.vocabulary)
        named = sorted({text for picture in encoded.data.pictures for _, text in picture.names})
        named = [named[i] for i in encoded.rng.permutation(len(named))[: CALIBRATION_SAMPLES + HELD_OUT_SAMPLES]]
        rows = [starts.pad_tokens(tokenizer, [one]).numpy() for one in named]
        parts["text.onnx"], lost = quantize(text, "tokens", rows[:CALIBRATION_SAMPLES], rows[CALIBRATION_SAMPLES:])
        parts["vocab.json"] = json.dumps(sense.vocabulary, sort_keys=True, ensure_ascii=False).encode()
        report(f"words: parity with torch holds, int8 {lost.snr_db:.1f} dB")
    if sense.pictures is not None:
        module = ExportedPictures(sense.pictures, sense.picture_map, encoded.center).eval()
        shown = [
            pictures.plain(encoded.data.arrays[i : i + 1]) for i in encoded.rng.permutation(len(encoded.data.arrays))
        ]
        shown = shown[: CALIBRATION_SAMPLES + HELD_OUT_SAMPLES]
        picture = graph.to_onnx(module, [torch.cat(shown[i : i + 2]) for i in (0, 2, 4)], "image", {0: "batch"})
        shown = [x.numpy() for x in shown]
        parts["picture.onnx"], lost = quantize(
            picture, "image", shown[:CALIBRATION_SAMPLES], shown[CALIBRATION_SAMPLES:]
        )
        report(f"pictures: parity with torch holds, int8 {lost.snr_db:.1f} dB")
    return parts


def _onnx(encoded: Encoded) -> bytes:
    """The encoder in fp32."""
    module = Exported(encoded.sense.encoder, encoded.center).eval()
    if encoded.modality == "audio":
        rng = torch.Generator().manual_seed(0)
        n_mels = SOUND_FRONT_END.n_mels
        shapes = ((1, n_mels, 12), (1, n_mels, 61), (1, n_mels, 249), (3, n_mels, 150))
        examples = [torch.randn(shape, generator=rng) * 3 - 6 for shape in shapes]
        return graph.to_onnx(module, examples, "log_mel", {0: "batch", 2: "n_frames"})
    examples = [pictures.plain(encoded.data.arrays[:n]) for n in (1, 3, 2)]
    return graph.to_onnx(module, examples, "image", {0: "batch"})


def _decision(encoded: Encoded, report: Callable[[str], None]) -> dict[str, float]:
    """The `calibration` section, fitted on classes that the encoder did not see. In fp32: int8 is as close as its
    drift says."""
    embed = embedder(_onnx(encoded), _tensor(encoded.sense))
    tokens = None
    if encoded.sense.words is not None:
        words = ExportedWords(encoded.sense.words, encoded.center).eval()
        tokens = lambda rows: words(torch.from_numpy(rows[0])).detach().numpy()  # noqa: E731
    bank = embed(encoded.background()).astype(np.float16).astype(np.float32)
    noises = embed(encoded.noises(100, seed=2))
    pool, weight = encoded.pool(embed, tokens), SOURCE_WEIGHT[encoded.modality]
    calibration = decision.fit(
        [pool], noises, bank, weight, false_accepts=FALSE_ACCEPTS, false_accepts_of_texts=FALSE_ACCEPTS
    )
    for line in decision.report(calibration, [pool], noises, bank, weight):
        report(line)
    return calibration


def _tensor(sense: Sense) -> str:
    return "log_mel" if sense.modality == "audio" else "image"


def _made_sounds() -> list[np.ndarray]:
    """Golden sounds of 1 s: more would weigh more than the encoder."""
    return [made_sounds.made_sound(i, 0, seed=1)[: SOUND_FRONT_END.sample_rate_hz] for i in range(3)]


def _drawing(i: int) -> np.ndarray:
    """A made picture, uint8 [height, width, 3]: a disk or a bar on a shade."""
    height, width = ((70, 100), (96, 96), (120, 80))[i]
    y, x = np.mgrid[:height, :width]
    picture = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 60 * i)], axis=2)
    inside = (x - width / 2) ** 2 + (y - height / 2) ** 2 < 25**2 if i != 1 else abs(x - y) < 12
    picture[inside] = (230, 200, 40)
    return picture.astype(np.uint8)
