"""Values of a row that may hold several responses -> one value a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rm_ray.data.preferences.numbers import unwrap_json
from rm_ray.data.rows.prompts import Prompt
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.transcripts import is_whole_transcript


def is_list_of_responses(value: Any) -> bool:
    """Return whether a side holds a list of texts or of message lists; not one of messages."""
    return isinstance(value, list) and bool(value) and not isinstance(value[0], dict)


def split_side(value: Any, prompt: Prompt, name: str) -> tuple[list[Any], list[str]]:
    """Return the responses of ``chosen`` or ``rejected``, with a name for each.

    A list of messages is one response, and so is a list of texts that answers a prompt of as many
    questions.

    Raises:
        RefusedError: the list is of several kinds, or may be turns as well as responses.
    """
    questions = prompt.questions or []
    if not is_list_of_responses(value):
        return [value], [name]
    if len(value) == len(questions) > 1 and not any(isinstance(item, list) for item in value):
        return [value], [name]
    return split_list(value, prompt, name)


def split_list(value: list[Any], prompt: Prompt, name: str) -> tuple[list[Any], list[str]]:
    """Return the responses of a list, with a name for each.

    Raises:
        RefusedError: a response is null, they are of several kinds, or they may be turns.
    """
    names = [f"{name}.{i}" for i in range(len(value))]
    for item, named in zip(value, names, strict=True):
        if item is None:
            raise RefusedError(Reason.EMPTY, f"{named} is null")
    kinds = {type(item) for item in value}
    if len(kinds) > 1:
        listed = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise RefusedError(Reason.NOT_MESSAGES, f"{name} is a list of several kinds: {listed}")
    if kinds == {dict} and not ({"role", "from"} & value[0].keys()):
        raise RefusedError(
            Reason.NOT_MESSAGES,
            f"{names[0]} is an object with {', '.join(value[0])[:80]}; write the responses alone, "
            "as texts or messages, and their ranks or scores in columns of their own",
        )
    if kinds == {str}:
        _refuse_turns(value, prompt, name)
        if len(prompt.questions or []) == 1:
            return [[text] for text in value], names
    return list(value), names


def _refuse_turns(texts: Sequence[str], prompt: Prompt, name: str) -> None:
    """Refuse several texts in a row without a prompt, which may be the turns of one conversation.

    Raises:
        RefusedError: they may be.
    """
    has_prompt = prompt.turns or prompt.questions or prompt.is_blank
    if len(texts) > 1 and not has_prompt and not all(map(is_whole_transcript, texts)):
        raise RefusedError(
            Reason.NOT_MESSAGES,
            f"{name} is a list of {len(texts)} texts in a row without a prompt, and may be the "
            "turns of one conversation; name the prompt's column with data.columns, or write a "
            "list of message lists",
        )


def read_responses(value: Any) -> list[Any]:
    """Return the list of a row's ``responses``, which may be written as JSON text.

    Raises:
        RefusedError: it is not a list, or is empty.
    """
    responses = unwrap_json(value)
    if not isinstance(responses, list):
        raise RefusedError(
            Reason.NOT_MESSAGES, f"responses is a {type(responses).__name__}, not a list"
        )
    if not responses:
        raise RefusedError(Reason.EMPTY, "responses is an empty list")
    return responses
