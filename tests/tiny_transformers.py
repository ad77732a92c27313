"""Folders of tiny transformers models with random weights, made on the spot: one per family."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as t
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
WORDS = ["the", "dog", "cat", "bird", "sings", "barks", "a", "red", "blue", "rain", "on", "leaves", "##s"]
WAVE = {"conv_dim": (16, 16, 16), "conv_stride": (5, 4, 4), "conv_kernel": (10, 8, 4), "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2, **SMALL}  # fmt: skip
PICTURES = {"image_size": 32, "patch_size": 8, **SMALL}
RATE_HZ = 16_000


def save_word_piece(folder: Path, begin: str = "[CLS]", end: str = "[SEP]", limit: int = 24) -> int:
    """A lowercasing WordPiece tokenizer of a few words; returns the size of its vocabulary."""
    special = ["[PAD]", "[UNK]", begin, end]
    vocabulary = {token: i for i, token in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, 2), (end, 3)]
    )
    fast = t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", bos_token=begin, eos_token=end,
        cls_token=begin, sep_token=end, model_max_length=limit,
    )  # fmt: skip
    fast.save_pretrained(folder)
    return len(vocabulary)


def save(folder: Path, model: t.PreTrainedModel, *others) -> Path:
    """others: tokenizers and feature extractors."""
    # Weights as they are drawn are so small that every input has nearly the same embedding.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    for item in (model, *others):
        item.save_pretrained(folder)
    return folder


def bert(folder: Path) -> Path:
    n = save_word_piece(folder)
    return save(folder, t.BertModel(t.BertConfig(vocab_size=n, max_position_embeddings=32, **SMALL)))


def roberta(folder: Path) -> Path:
    n = save_word_piece(folder, limit=1000)
    config = t.RobertaConfig(vocab_size=n, max_position_embeddings=32, pad_token_id=0, type_vocab_size=1, **SMALL)
    return save(folder, t.RobertaModel(config))


def distilbert(folder: Path) -> Path:
    n = save_word_piece(folder)
    config = t.DistilBertConfig(vocab_size=n, max_position_embeddings=32, dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    return save(folder, t.DistilBertModel(config))


def vit(folder: Path) -> Path:
    processor = t.ViTImageProcessor(size={"height": 32, "width": 32})
    return save(folder, t.ViTModel(t.ViTConfig(**PICTURES)), processor)


def deit(folder: Path) -> Path:
    processor = t.DeiTImageProcessor(size={"height": 36, "width": 36}, crop_size={"height": 32, "width": 32})
    return save(folder, t.DeiTModel(t.DeiTConfig(**PICTURES)), processor)


def _dino_processor() -> t.BitImageProcessor:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    size, crop_size = {"shortest_edge": 40}, {"height": 32, "width": 32}
    return t.BitImageProcessor(size=size, crop_size=crop_size, image_mean=mean, image_std=std)


def dinov2(folder: Path) -> Path:
    """Trained on pictures of another size than it is given, as the published ones are."""
    return save(folder, t.Dinov2Model(t.Dinov2Config(**PICTURES | {"image_size": 48})), _dino_processor())


def dinov2_with_registers(folder: Path) -> Path:
    config = t.Dinov2WithRegistersConfig(**PICTURES | {"image_size": 48})
    return save(folder, t.Dinov2WithRegistersModel(config), _dino_processor())


def _wave(folder: Path, model: type, config: type, do_normalize: bool = True) -> Path:
    extractor = t.Wav2Vec2FeatureExtractor(do_normalize=do_normalize, return_attention_mask=False)
    return save(folder, model(config(**WAVE)), extractor)


def wav2vec2(folder: Path) -> Path:
    return _wave(folder, t.Wav2Vec2Model, t.Wav2Vec2Config)


def hubert(folder: Path) -> Path:
    return _wave(folder, t.HubertModel, t.HubertConfig)


def wavlm(folder: Path) -> Path:
    return _wave(folder, t.WavLMModel, t.WavLMConfig, do_normalize=False)


def ast(folder: Path) -> Path:
    config = t.ASTConfig(num_mel_bins=32, max_length=100, **SMALL)
    return save(folder, t.ASTModel(config), t.ASTFeatureExtractor(num_mel_bins=32, max_length=100))


def clip(folder: Path) -> Path:
    n = save_word_piece(folder, "<s>", "</s>", limit=20)
    text = {**SMALL, "vocab_size": n, "max_position_embeddings": 20, "bos_token_id": 2, "eos_token_id": 3}
    config = t.CLIPConfig(text_config=text, vision_config=dict(PICTURES), projection_dim=24)
    processor = t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return save(folder, t.CLIPModel(config), processor)


def clap(folder: Path, fuses: bool = False) -> Path:
    n = save_word_piece(folder, limit=20)
    audio = {"spec_size": 64, "patch_size": 4, "patch_stride": [4, 4], "num_mel_bins": 16, "window_size": 4,
             "hidden_size": 16, "patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [1, 2],
             "num_hidden_layers": 2, "num_classes": 5, "enable_fusion": fuses}  # fmt: skip
    text = {**SMALL, "vocab_size": n, "max_position_embeddings": 24, "pad_token_id": 0, "type_vocab_size": 1}
    config = t.ClapConfig(text_config=text, audio_config=audio, projection_dim=24)
    extractor = t.ClapFeatureExtractor(
        feature_size=16, sampling_rate=RATE_HZ, hop_length=160, max_length_s=1, fft_window_size=256,
        frequency_max=8000, truncation="fusion" if fuses else "rand_trunc",
    )  # fmt: skip
    return save(folder, t.ClapModel(config), extractor)


def clap_fused(folder: Path) -> Path:
    return clap(folder, fuses=True)
