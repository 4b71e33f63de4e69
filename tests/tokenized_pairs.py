"""Tokenizers for tests, and what they make of a pair."""

from pathlib import Path
from typing import Any

from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from rm_ray.config.sections.data import DataConfig
from rm_ray.data.rows.pairs import Pair, parse_pair
from rm_ray.data.rows.refusals import RefusedError
from rm_ray.data.rows.turns import Message
from rm_ray.data.sources.synthetic import CHAT_TEMPLATE, build_tokenizer
from rm_ray.data.tokens.pair_tokenizer import PairTokenizer, TokenizedPair
from rm_ray.data.tokens.tokenizer import load_tokenizer

Tokenizer = PreTrainedTokenizerFast

BUILTIN = load_tokenizer("builtin")

NO_END = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
"""A template that writes nothing after a turn."""


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def pair_of(prompt: str, chosen: str, rejected: str) -> Pair:
    return parse_pair({"prompt": prompt, "chosen": chosen, "rejected": rejected})


def result_of(pair: Pair, tokenizer: Tokenizer, **limits: Any) -> TokenizedPair | RefusedError:
    (result,) = PairTokenizer(tokenizer, DataConfig(**limits)).tokenize([pair])
    return result


def tokens_of(pair: Pair, tokenizer: Tokenizer = BUILTIN, **limits: Any) -> TokenizedPair:
    result = result_of(pair, tokenizer, **limits)
    assert isinstance(result, TokenizedPair), result
    return result


def refusal_of(pair: Pair, tokenizer: Tokenizer = BUILTIN, **limits: Any) -> RefusedError:
    result = result_of(pair, tokenizer, **limits)
    assert isinstance(result, RefusedError), result
    return result


def template_ids(tokenizer: Tokenizer, messages: list[Message]) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(messages, return_dict=False)
    return ids


def with_begin_token() -> Tokenizer:
    """A tokenizer that begins plain texts with a token that its template writes too."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.bos_token_id)]
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    tokenizer.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    return tokenizer


WITH_BEGIN = with_begin_token()


def saved(tokenizer: Tokenizer, folder: Path) -> str:
    tokenizer.save_pretrained(folder)
    return str(folder)
