"""Tokenizers for tests, and what they make of a group."""

from pathlib import Path
from typing import Any

from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from rm_ray.config.sections.data import DataConfig
from rm_ray.data.preferences.group_reading import read_group
from rm_ray.data.rows.groups import Group
from rm_ray.data.rows.refusals import RefusedError
from rm_ray.data.rows.turns import Message
from rm_ray.data.sources.synthetic import CHAT_TEMPLATE, build_tokenizer
from rm_ray.data.tokens.group_tokenizer import GroupTokenizer, TokenizedGroup
from rm_ray.data.tokens.tokenizer import load_tokenizer

Tokenizer = PreTrainedTokenizerFast

BUILTIN = load_tokenizer("builtin")

NO_END = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
"""A template that writes nothing after a turn."""


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def pair_of(prompt: str, chosen: str, rejected: str) -> Group:
    return read_group({"prompt": prompt, "chosen": chosen, "rejected": rejected})[0]


def group_of(prompt: str, *responses: str) -> Group:
    """Return a group of which no response is known to be better."""
    turns = [{"role": "user", "content": prompt}]
    return Group(prompt=turns, responses=[*map(assistant, responses)], comparisons=())


def result_of(group: Group, tokenizer: Tokenizer, **limits: Any) -> TokenizedGroup | RefusedError:
    (result,) = GroupTokenizer(tokenizer, DataConfig(**limits)).tokenize([group])
    return result


def tokens_of(group: Group, tokenizer: Tokenizer = BUILTIN, **limits: Any) -> TokenizedGroup:
    result = result_of(group, tokenizer, **limits)
    assert isinstance(result, TokenizedGroup), result
    return result


def refusal_of(group: Group, tokenizer: Tokenizer = BUILTIN, **limits: Any) -> RefusedError:
    result = result_of(group, tokenizer, **limits)
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
