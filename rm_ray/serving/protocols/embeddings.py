"""OpenAI's embeddings, as SGLang answers for reward models: verl and others ask so."""

from __future__ import annotations

from typing import Any

from rm_ray.serving.protocols.fields import (
    Fields,
    Fixed,
    read_choice,
    read_inputs,
    take_one,
)
from rm_ray.serving.protocols.vllm import ENCODINGS, encode, envelope
from rm_ray.serving.question import Question, Rewards

ROUTE = "POST /v1/embeddings"

_FIELDS = Fields(
    route=ROUTE,
    read=("input", "encoding_format"),
    harmless=("model", "user", "rid", "priority"),
    fixed={"dimensions": Fixed(values=(1,), advice="a reward is one number")},
)


def read(body: Any) -> Question:
    """Read ``{"model", "input", "encoding_format"}``.

    Raises:
        InputError: names the field, its value and the rule.
    """
    fields = _FIELDS.check(body)
    name = take_one(fields, ("input",), ROUTE)
    encoding = read_choice(fields, "encoding_format", ENCODINGS)
    return Question(
        conversations=read_inputs(fields[name], name), options={"encoding_format": encoding}
    )


def answer(question: Question, rewards: Rewards) -> dict[str, Any]:
    """Return rewards as embeddings of one number."""
    encoding = question.options["encoding_format"]
    data = [
        {"index": i, "object": "embedding", "embedding": encode([reward], encoding)}
        for i, reward in enumerate(rewards.rewards)
    ]
    return envelope("embd", data, rewards)
