"""vLLM's ``/classify`` and ``/pooling``: texts, token ids or messages; verl asks so too."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from rm_ray.errors import InputError
from rm_ray.serving.protocols.fields import (
    NEVER_CUT,
    NO_ACTIVATION,
    SERVERS_TEMPLATE,
    WHOLE_CONVERSATION,
    Fields,
    Fixed,
    read_choice,
    read_inputs,
    shown,
    take_one,
)
from rm_ray.serving.question import Question, Rewards

INPUTS = ("input", "messages")

ENCODINGS = ("float", "base64")

LABEL = "LABEL_0"
"""transformers' name for the only label of a reward model."""

_HARMLESS = (
    "model", "user", "request_id", "priority", "cache_salt", "truncation_side",
    "add_special_tokens",
)  # fmt: skip
"""``add_special_tokens`` changes nothing: text gets the BOS token that the chat template gives,
once, whether the client left it there or not."""

_SAME_IDS = {
    "truncate_prompt_tokens": NEVER_CUT,
    "activation": NO_ACTIVATION,
    "use_activation": NO_ACTIVATION,
    "softmax": NO_ACTIVATION,
    "normalize": NO_ACTIVATION,
    "add_generation_prompt": WHOLE_CONVERSATION,
    "continue_final_message": WHOLE_CONVERSATION,
    "chat_template": SERVERS_TEMPLATE,
    "chat_template_kwargs": Fixed(values=({},), advice=SERVERS_TEMPLATE.advice),
    "padding": Fixed(values=("do_not_pad",), advice="a conversation is scored without padding"),
    "mm_processor_kwargs": Fixed(values=({},), advice="the served model reads text only"),
    "media_io_kwargs": Fixed(values=({},), advice="the served model reads text only"),
}

_CLASSIFY = Fields(
    route="POST /classify", read=(*INPUTS, "tools"), harmless=_HARMLESS, fixed=_SAME_IDS
)

_POOLING = Fields(
    route="POST /pooling",
    read=(*INPUTS, "tools", "encoding_format"),
    harmless=_HARMLESS,
    fixed=_SAME_IDS
    | {
        "task": Fixed(values=("classify", "score"), advice="a reward model only gives rewards"),
        "dimensions": Fixed(values=(1,), advice="a reward is one number"),
        "embed_dtype": Fixed(values=("float32",), advice="rewards are float32"),
        "endianness": Fixed(values=("native", "little"), advice="rewards are little-endian"),
    },
)


def read_classify(body: Any) -> Question:
    """Read ``{"model", "input" or "messages", "use_activation": false}``.

    Raises:
        InputError: names the field, its value and the rule.
    """
    return _read(body, _CLASSIFY)


def read_pooling(body: Any) -> Question:
    """Read ``{"model", "input" or "messages"}``.

    Raises:
        InputError: names the field, its value and the rule.
    """
    return _read(body, _POOLING)


def _read(body: Any, known: Fields) -> Question:
    fields = known.check(body)
    name = take_one(fields, INPUTS, known.route)
    options = {"encoding_format": read_choice(fields, "encoding_format", ENCODINGS)}
    if name == "input":
        if "tools" in fields:
            raise InputError("'tools' go with 'messages'; the text in 'input' is rendered already")
        return Question(conversations=read_inputs(fields[name], name), options=options)
    return Question(
        conversations=(read_messages(fields[name], name),),
        tools=read_objects(fields["tools"], "tools") if "tools" in fields else None,
        options=options,
    )


def read_messages(value: Any, name: str) -> tuple[dict[str, Any], ...]:
    """Return the messages of one conversation; what they hold is checked as they are rendered.

    Raises:
        InputError: it is not a list of objects, or is empty.
    """
    messages = read_objects(value, name)
    if not messages:
        raise InputError(f"'{name}' is an empty list; send a conversation with its response")
    return messages


def read_objects(value: Any, name: str) -> tuple[dict[str, Any], ...]:
    """Return a list of objects.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, list):
        raise InputError(f"'{name}' must be a list of objects, got {shown(value)}")
    for i, each in enumerate(value):
        if not isinstance(each, dict):
            raise InputError(f"'{name}[{i}]' must be an object, got {shown(each)}")
    return tuple(value)


def answer_classify(question: Question, rewards: Rewards) -> dict[str, Any]:
    """Return rewards as the ``probs`` of the only class, as vLLM does without an activation."""
    data = [
        {"index": i, "label": LABEL, "probs": [reward], "num_classes": 1}
        for i, reward in enumerate(rewards.rewards)
    ]
    return envelope("classify", data, rewards)


def answer_pooling(question: Question, rewards: Rewards) -> dict[str, Any]:
    """Return rewards as pooled vectors of one number."""
    encoding = question.options["encoding_format"]
    data = [
        {"index": i, "object": "pooling", "data": encode([reward], encoding)}
        for i, reward in enumerate(rewards.rewards)
    ]
    return envelope("pool", data, rewards)


def encode(values: Sequence[float], encoding: str) -> list[float] | str:
    """Return numbers as they are, or as the base64 of little-endian float32."""
    if encoding == "base64":
        return base64.b64encode(np.array(values, dtype="<f4").tobytes()).decode()
    return list(values)


def envelope(prefix: str, data: Sequence[dict[str, Any]], rewards: Rewards) -> dict[str, Any]:
    """Return what OpenAI's and vLLM's answers have around their data."""
    tokens = sum(rewards.num_tokens)
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": rewards.model,
        "data": list(data),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }
