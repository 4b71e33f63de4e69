"""SGLang's native ``/classify``: texts or token ids, and rewards as embeddings of one number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rm_ray.serving.protocols.fields import Fields, Fixed, read_inputs, read_texts, take_one
from rm_ray.serving.question import Question, Rewards

INPUTS = ("text", "input_ids")
"""The fields by which a body is known to be SGLang's."""

_TEXT_ALONE = Fixed(advice="the served model reads text only")

_FIELDS = Fields(
    route="POST /classify",
    read=INPUTS,
    harmless=("model", "rid", "priority", "log_metrics", "sampling_params"),
    fixed={"image_data": _TEXT_ALONE, "audio_data": _TEXT_ALONE, "video_data": _TEXT_ALONE},
)


def is_asked(body: Any) -> bool:
    """Return whether the body of ``/classify`` is from a client of SGLang, not of vLLM."""
    return isinstance(body, Mapping) and any(body.get(n) is not None for n in INPUTS)


def read(body: Any) -> Question:
    """Read ``{"model", "text": [texts]}`` or ``{"input_ids": [[ids]]}``.

    Raises:
        InputError: names the field, its value and the rule.
    """
    fields = _FIELDS.check(body)
    name = take_one(fields, INPUTS, _FIELDS.route)
    value = fields[name]
    if name == "text":
        is_alone = isinstance(value, str)
        return Question(conversations=read_texts(value, name), options={"is_alone": is_alone})
    is_alone = isinstance(value, list) and bool(value) and not isinstance(value[0], list)
    return Question(conversations=read_inputs(value, name), options={"is_alone": is_alone})


def answer(question: Question, rewards: Rewards) -> list[dict[str, Any]] | dict[str, Any]:
    """Return one embedding a text in a list, or alone if the text came alone."""
    each = [
        {"embedding": [reward], "meta_info": {"prompt_tokens": length}}
        for reward, length in zip(rewards.rewards, rewards.num_tokens, strict=True)
    ]
    return each[0] if question.options["is_alone"] else each
