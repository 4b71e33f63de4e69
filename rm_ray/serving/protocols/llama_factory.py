"""LLaMA-Factory's API of reward models: rendered texts, and scores."""

from __future__ import annotations

import uuid
from typing import Any

from rm_ray.errors import InputError
from rm_ray.serving.protocols.fields import Fields, read_limit, read_texts, take_one
from rm_ray.serving.question import Question, Rewards

ROUTE = "POST /v1/score/evaluation"

_FIELDS = Fields(route=ROUTE, read=("messages", "max_length"))


def read(body: Any) -> Question:
    """Read ``{"model", "messages": [texts], "max_length"}``.

    Raises:
        InputError: names the field, its value and the rule.
    """
    fields = _FIELDS.check(body)
    name = take_one(fields, ("messages",), ROUTE)
    if isinstance(fields[name], list) and any(isinstance(each, dict) for each in fields[name]):
        raise InputError(
            f"'messages' of {ROUTE} are texts that a chat template wrote, as LLaMA-Factory has it; "
            "send messages with roles to POST /classify"
        )
    limit = read_limit(fields, "max_length")
    return Question(conversations=read_texts(fields[name], name), options={"max_length": limit})


def answer(question: Question, rewards: Rewards) -> dict[str, Any]:
    """Return the scores.

    Raises:
        InputError: a text is longer than ``max_length``, at which LLaMA-Factory would cut it.
    """
    limit, longest = question.options["max_length"], max(rewards.num_tokens)
    if limit is not None and longest > limit:
        i = rewards.num_tokens.index(longest)
        raise InputError(
            f"'messages[{i}]' has {longest} tokens, and 'max_length' is {limit}; conversations "
            "are never cut: send a shorter one, or leave max_length out"
        )
    return {
        "id": f"scoreeval-{uuid.uuid4().hex}",
        "object": "score.evaluation",
        "model": rewards.model,
        "scores": list(rewards.rewards),
    }
