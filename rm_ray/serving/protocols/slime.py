"""slime's ``--rm-url``: one prompt and response, and the reward alone."""

from __future__ import annotations

from typing import Any

from rm_ray.errors import InputError
from rm_ray.serving.protocols.fields import Fields, shown
from rm_ray.serving.protocols.vllm import read_messages
from rm_ray.serving.question import Question, Rewards

ROUTE = "POST /reward"

_FIELDS = Fields(route=ROUTE, read=("prompt", "response"), harmless=("label", "model"))
"""Labels are for verifiers."""


def read(body: Any) -> Question:
    """Read ``{"prompt", "response", "label"}``; the prompt is rendered text, or messages.

    Raises:
        InputError: names the field, its value and the rule.
    """
    fields = _FIELDS.check(body)
    prompt, response = fields.get("prompt"), fields.get("response")
    if not isinstance(response, str):
        raise InputError(f"'response' of {ROUTE} must be a text, got {shown(response)}")
    if isinstance(prompt, str):
        return Question(conversations=(prompt + response,))
    if not isinstance(prompt, list):
        raise InputError(
            f"'prompt' of {ROUTE} must be the text of a prompt, as the chat template writes it, or "
            f"messages, got {shown(prompt)}"
        )
    turn = {"role": "assistant", "content": response}
    return Question(conversations=((*read_messages(prompt, "prompt"), turn),))


def answer(question: Question, rewards: Rewards) -> float:
    """Return the reward, which is the whole body of the answer."""
    return rewards.rewards[0]
