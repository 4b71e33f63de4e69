"""The base of tokenizers for conversations: a renderer and an encoder."""

from __future__ import annotations

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from rm_ray.data.tokens.chat_renderer import ChatRenderer
from rm_ray.data.tokens.reserved_tokens import ReservedTokens
from rm_ray.data.tokens.tokenizer import special_ids


class ChatTokenizer:
    """Renders conversations with the chat template and encodes text to ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.renderer = ChatRenderer(tokenizer)
        special = tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))
        self.reserved = ReservedTokens(map(str, special))

    def encode(self, texts: list[str], *, offsets: bool = False) -> list[Encoding]:
        """Encode texts like ``tokenizer(texts)``, but without adding special tokens."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        encode = backend.encode_batch if offsets else backend.encode_batch_fast
        encodings: list[Encoding] = encode(texts, add_special_tokens=False)
        return encodings
