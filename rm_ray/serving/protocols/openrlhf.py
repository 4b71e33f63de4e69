"""OpenRLHF's ``--reward.remote_url``: rendered texts, and rewards with figures to log."""

from __future__ import annotations

from typing import Any

from rm_ray.serving.protocols.fields import Fields, read_texts, take_one
from rm_ray.serving.question import Question, Rewards

ROUTE = "POST /get_reward"

_FIELDS = Fields(route=ROUTE, read=("query",), harmless=("prompts", "labels", "model"))
"""A query holds its prompt; labels are for verifiers."""


def read(body: Any) -> Question:
    """Read ``{"query": [texts], "prompts": [...], "labels": [...]}``.

    Raises:
        InputError: names the field, its value and the rule.
    """
    fields = _FIELDS.check(body)
    name = take_one(fields, ("query",), ROUTE)
    return Question(conversations=read_texts(fields[name], name))


def answer(question: Question, rewards: Rewards) -> dict[str, Any]:
    """Return rewards, the same as scores, and one figure a text to log.

    Clients turn logs into tensors and average them, which takes floats.
    """
    logs = {"num_tokens": [float(length) for length in rewards.num_tokens]}
    if rewards.spread is not None:
        logs["reward_spread"] = list(rewards.spread)
    values = list(rewards.rewards)
    return {"rewards": values, "scores": values, "extra_logs": logs}
