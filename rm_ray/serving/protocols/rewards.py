"""The project's own ``/v1/rewards``: a prompt and its responses, compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.transcripts import is_templated
from rm_ray.data.rows.values import is_blank
from rm_ray.errors import InputError
from rm_ray.scoring.conversations import parse_conversations
from rm_ray.serving.protocols.fields import Fields, shown, take_one
from rm_ray.serving.question import Question, Rewards
from rm_ray.serving.refused_request import to_input_error

ROUTE = "POST /v1/rewards"

PROMPTS = ("prompt", "messages")

MOST_COMPARED = 64
"""Responses up to which the win probability of each over each is answered."""

_FIELDS = Fields(route=ROUTE, read=(*PROMPTS, "responses", "reference", "tools"))

_STAND_IN = "rm_ray reads a response that is a text as it stands"
"""Content in place of a response's text while the row is read."""


def read(body: Any) -> Question:
    """Read ``{"prompt" or "messages", "responses": [...], "reference", "tools"}``.

    A prompt that is a text is one turn of the user, whatever it looks like, and messages are read
    as in a row to score. A response is a text, a message or a list of messages. A text is the
    content of the last turn, whatever it looks like, and may be empty, because a policy writes
    such. A reference is a response whose reward is taken off the others'.

    Raises:
        InputError: names the field, its value and the rule.
    """
    fields = _FIELDS.check(body)
    name = take_one(fields, PROMPTS, ROUTE)
    if not _is_prompt(fields[name], or_text=name == "prompt"):
        rule = "a text or a list of messages" if name == "prompt" else "a list of messages"
        raise InputError(f"'{name}' of {ROUTE} must be {rule}, got {shown(fields[name])}")
    if is_blank(fields[name]):
        raise InputError(f"'{name}' of {ROUTE} is blank; send what the responses answer")
    responses = fields.get("responses")
    if not isinstance(responses, list) or not responses:
        raise InputError(
            f"'responses' of {ROUTE} must be a list of at least one response, got "
            f"{shown(responses)}"
        )
    names = [f"responses[{i}]" for i in range(len(responses))]
    if has_reference := "reference" in fields:
        responses, names = [*responses, fields["reference"]], [*names, "reference"]
    texts = [_find_text(*each) for each in zip(responses, names, strict=True)]
    turns = [
        (response if isinstance(response, list) else [response])
        if text is None
        else [{"role": "assistant", "content": _STAND_IN}]
        for response, text in zip(responses, texts, strict=True)
    ]
    prompt = fields[name]
    try:
        if isinstance(prompt, str):
            if is_templated(prompt):
                raise RefusedError(Reason.TEMPLATED, f"{name}: {prompt.strip()[:80]!r}")
            prompt = [{"role": "user", "content": prompt}]
        row = {name: prompt, "responses": turns, "tools": fields.get("tools")}
        parsed = parse_conversations(row)
    except RefusedError as refusal:
        raise to_input_error(refusal) from None
    assert not parsed.reading.lost
    conversations = [
        messages if text is None else [*messages[:-1], {"role": "assistant", "content": text}]
        for messages, text in zip(parsed.messages, texts, strict=True)
    ]
    return Question(
        conversations=tuple(conversations),
        tools=parsed.context.tools,
        has_reference=has_reference,
    )


def _is_prompt(value: Any, *, or_text: bool) -> bool:
    if isinstance(value, str):
        return or_text
    return isinstance(value, list) and all(isinstance(message, dict) for message in value)


def _find_text(response: Any, name: str) -> str | None:
    """Return the text of a response that is a text or a single plain turn; None for messages."""
    match response:
        case str():
            return response
        case [{"role": "assistant", "content": str() as content, **others}] if not others:
            return content
        case {"role": "assistant", "content": str() as content, **others} if not others:
            return content
        case dict():
            return None
        case [dict(), *rest] if all(isinstance(each, dict) for each in rest):
            return None
    raise InputError(
        f"'{name}' of {ROUTE} must be a text, a message or a list of messages, got "
        f"{shown(response)}"
    )


def answer(question: Question, rewards: Rewards) -> dict[str, Any]:
    """Return rewards, the index of the highest, lengths, and win probabilities.

    The probabilities are those of raw rewards, of which the Bradley-Terry model speaks.
    Of two responses the win probability is a number, that of the first; of other counts a matrix,
    in which row i has the probabilities that response i beats each. It is null beyond
    ``MOST_COMPARED`` responses.
    """
    values = rewards.rewards
    found = {
        "model": rewards.model,
        "rewards": list(values),
        "best": values.index(max(values)),
        "num_tokens": list(rewards.num_tokens),
        "win_probability": _win_probabilities(values if rewards.raw is None else rewards.raw),
    }
    if rewards.spread is not None:
        found["spread"] = list(rewards.spread)
    if rewards.reference is not None:
        found["reference_reward"] = rewards.reference
    return found


def _win_probabilities(rewards: Sequence[float]) -> float | list[list[float]] | None:
    if len(rewards) == 2:
        return win_probability(*rewards)
    if len(rewards) > MOST_COMPARED:
        return None
    return [[win_probability(one, other) for other in rewards] for one in rewards]


def win_probability(reward: float, other: float) -> float:
    """Return the probability that a response beats another (Bradley and Terry, 1952)."""
    weight = math.exp(-abs(reward - other))
    return (1.0 if reward >= other else weight) / (1.0 + weight)
