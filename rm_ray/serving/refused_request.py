"""Refusals of conversations, as errors that tell a client what to do."""

from __future__ import annotations

from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.errors import InputError

_ADVICE = {
    Reason.TOO_LONG: "conversations are never cut; shorten it, or start the server with a larger "
    "--max_length",
    Reason.RESERVED_TOKENS: "in messages, special tokens would pass for the chat template's own; "
    "decode responses with skip_special_tokens=True, or send the whole conversation as text",
    Reason.TEMPLATED: "send messages, or the whole conversation as text to /classify",
    Reason.LAST_TURN_NOT_ASSISTANT: "a reward is that of a response: end with an assistant's turn",
    Reason.TEMPLATE_REFUSED: "the served model's chat template takes other conversations",
    Reason.LEFT_OUT: "the served model's chat template would score the conversation without it",
    Reason.PROMPTS_DIFFER: "send the turns before the responses as the prompt, and responses alone",
    Reason.EMPTY: "give it content",
    Reason.UNKNOWN_ROLE: "use system, user, assistant and tool",
    Reason.NOT_TEXT: "the served model reads text only",
}


def to_input_error(refusal: RefusedError) -> InputError:
    """Return the error for a client: the reason, the detail and what to do."""
    advice = _ADVICE.get(refusal.reason, "correct it")
    detail = f": {refusal.detail}" if refusal.detail else ""
    return InputError(f"the conversation is refused ({refusal.reason}{detail}); {advice}")
