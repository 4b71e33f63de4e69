"""Loading a tokenizer with a chat template and its own pad token, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jinja2
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rm_ray.config.sections.data import BUILTIN
from rm_ray.data.tokens.chat_renderer import TEMPLATE_FAILURES
from rm_ray.data.tokens.chat_template import choose_template
from rm_ray.data.tokens.vocabulary import add_pad_token
from rm_ray.errors import InputError
from rm_ray.pretrained import PretrainedName

PAD_TOKEN = "<|rm_pad|>"

_PROBE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "An answer."}]


def load_tokenizer(
    name_or_path: str, *, revision: str | None = None, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer with a chat template, right padding and its own pad token.

    Raises:
        InputError: it cannot be loaded, is not fast, or has no chat template and none is given.
    """
    if name_or_path == BUILTIN:
        from rm_ray.data.sources.synthetic import build_tokenizer

        tokenizer: PreTrainedTokenizerBase = build_tokenizer()
    else:
        tokenizer = _load(name_or_path, revision)
    tokenizer.chat_template = choose_template(tokenizer, chat_template, name=name_or_path)
    tokenizer.padding_side = "right"
    _give_own_pad_token(tokenizer, template_ids(tokenizer))
    return tokenizer


def _load(name_or_path: str, revision: str | None) -> PreTrainedTokenizerBase:
    name = PretrainedName(name=name_or_path, option="model.tokenizer", revision=revision)
    with name.loading("a folder with tokenizer.json and tokenizer_config.json"):
        tokenizer = AutoTokenizer.from_pretrained(
            name.place, revision=revision, trust_remote_code=False
        )
    if not tokenizer.is_fast:
        raise InputError(
            f"{name.text} has no fast version (tokenizer.json), which is needed to locate the "
            "start of a response; convert it or choose another"
        )
    return tokenizer


def template_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of a short conversation, including those that the template adds.

    Raises:
        InputError: the template has a syntax error.
    """
    try:
        ids = tokenizer.apply_chat_template(_PROBE, return_dict=False)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(
            f"data.chat_template (or the tokenizer's own) has an error in line {error.lineno}: "
            f"{error.message}"
        ) from None
    except TEMPLATE_FAILURES:  # it may still accept the form of the rows
        return set()
    return set(ids)


def _give_own_pad_token(tokenizer: PreTrainedTokenizerBase, written: set[int]) -> None:
    """Replace a pad token with another use: clients that pool by token id would skip it."""
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id} | written
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in taken:
        add_pad_token(tokenizer, PAD_TOKEN)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash everything about the tokenizer that affects the ids of a text."""
    state = json.dumps(_state_of(tokenizer), sort_keys=True)
    return hashlib.sha256(state.encode()).hexdigest()


def tokenizer_differences(
    tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase
) -> list[str]:
    """Return in what two tokenizers differ that affects the ids of a text; nothing if in nothing.

    Parts of ``tokenizer.json`` have the names that they have there.
    """
    one, two = _state_of(tokenizer), _state_of(other)
    parts = {
        f"{name} of tokenizer.json": name for name in sorted({*one["backend"], *two["backend"]})
    }
    found = [
        text for text, name in parts.items() if one["backend"].get(name) != two["backend"].get(name)
    ]
    found += ["special tokens"] * (one["special_tokens"] != two["special_tokens"])
    return found + ["chat template"] * (one["template"] != two["template"])


def _state_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["padding"] = backend["truncation"] = None
    return {
        "backend": backend,
        "template": tokenizer.chat_template,
        "special_tokens": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
    }


def ends_assistant_turn(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the template writes an end-of-turn or EOS token after the last response."""
    try:
        text = str(tokenizer.apply_chat_template(_PROBE, tokenize=False))
    except TEMPLATE_FAILURES:
        return True  # any rows that it refuses will be reported
    after = text.rpartition(_PROBE[-1]["content"])[2]
    tail = tokenizer(after, add_special_tokens=False)["input_ids"]
    return bool(special_ids(tokenizer).intersection(tail))


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of all special tokens."""
    marked = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return marked | set(tokenizer.all_special_ids)
