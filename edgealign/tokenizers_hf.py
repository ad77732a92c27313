"""Text -> token ids by a `tokenizer.json`, as encoders from transformers use them. Needs the library tokenizers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgealign.errors import BundleUnreadable, InvalidInput, MissingExtra
from edgealign.text import MAX_TEXT_CODE_POINTS, Tokens


@dataclass(frozen=True)
class HuggingFaceTokenizer:
    """A tokenizer of the library tokenizers; what is longer than max_tokens is cut, the special tokens stay.

    Languages mean nothing to it, and it reads spelled text only.
    """

    tokenizer: Any
    max_tokens: int

    @classmethod
    def from_json(cls, data: bytes, max_tokens: int) -> HuggingFaceTokenizer:
        """From the bytes of tokenizer.json; padding and truncation that it asks for are replaced by max_tokens."""
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise MissingExtra(
                "this bundle's text needs the library tokenizers, which is not installed: pip install 'edgealign[text]'"
            ) from None
        try:
            tokenizer = Tokenizer.from_buffer(data)
            tokenizer.no_padding()
            tokenizer.enable_truncation(max_tokens)
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleUnreadable(f"tokenizer.json cannot be used: {error}") from None
        return cls(tokenizer, max_tokens)

    def encode(self, text: str, kind: str = "grapheme", language: str | None = None) -> Tokens:
        """Token ids `tokens` int64 [1, n_tokens], special tokens among them; `known_language` is always true.

        InvalidInput for IPA, for a text of white space alone and for one of more than 1000 code points.
        """
        if kind != "grapheme":
            raise InvalidInput(f"this bundle reads text as it is spelled, not {kind}: type the word itself")
        if len(text) > MAX_TEXT_CODE_POINTS:
            raise InvalidInput(f"text has {len(text)} characters: a word or short phrase was expected")
        if not text.strip():
            raise InvalidInput(f"text '{text}' is empty: type the word that the label stands for")
        encoding = self.tokenizer.encode(text)
        unknown_id = self._unknown_id()
        unknown = [
            text[start:end]
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if token == unknown_id and end > start
        ]
        return Tokens(
            {"tokens": np.array([encoding.ids], dtype=np.int64)},
            tuple(dict.fromkeys(unknown)),
            sum(map(len, unknown)) / len(text.strip()),
            True,
            len(text.rstrip()) - max(end for _, end in encoding.offsets) if encoding.overflowing else 0,
        )

    def _unknown_id(self) -> int | None:
        token = getattr(self.tokenizer.model, "unk_token", None)
        return None if token is None else self.tokenizer.token_to_id(token)
