"""The prompt of a row and the conversations that continue it."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rm_ray.data.rows.messages import find_embedded, read_value
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.transcripts import (
    answer_transcript,
    is_whole_transcript,
    read_transcript,
    refuse_other_transcript,
    starts_with_speaker,
)
from rm_ray.data.rows.turns import (
    INSTRUCTIONS,
    Message,
    are_equivalent,
    collapse_spaces,
    join_turns,
    split_instructions,
)
from rm_ray.data.rows.values import load_list


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """Everything that comes before a row's responses."""

    turns: list[Message] = field(default_factory=list)
    """Turns from all prompt columns except ``system``."""
    system: str | None = None
    transcript: str | None = None
    """The original text if the turns came from a transcript."""
    questions: list[Any] | None = None
    """The user's text in each turn if the prompt is a list of texts (LMSYS arena files)."""
    is_blank: bool = False
    """Whether the row has a prompt column but nothing in it."""
    is_conversation: bool = False
    """Whether the turns end with an assistant's turn that must be one of the responses."""

    def find_answer(self, value: Any, name: str) -> Message | None:
        """Return the assistant's turn that would replace this prompt's last turn, or None.

        The turn must stand alone or end the same conversation.
        """
        read = read_value(value, name)
        if isinstance(read, str):
            is_transcript = is_whole_transcript(read)
            return None if is_transcript else {"role": "assistant", "content": read}
        _, turns = split_instructions(read)
        _, asked = split_instructions(self.turns)
        is_alone = len(turns) == 1
        is_parallel = len(turns) == len(asked) and all(map(are_equivalent, turns[:-1], asked[:-1]))
        is_answer = bool(turns) and turns[-1]["role"] == "assistant"
        return turns[-1] if is_answer and (is_alone or is_parallel) else None

    def before_answer(self) -> Prompt:
        """Return the prompt without the response at its end."""
        return replace(self, turns=self.turns[:-1], is_conversation=False)

    def answer(self, value: Any, name: str) -> list[Message]:
        """Return the conversation made from a response, several turns or a whole conversation.

        Raises:
            RefusedError: it is not a conversation, or begins with another prompt.
        """
        messages = self._continue(value, name)
        if not messages:
            raise RefusedError(Reason.EMPTY, f"{name} has no turns")
        if self.is_blank and messages[0]["role"] == "assistant":
            raise RefusedError(Reason.EMPTY, "the prompt")
        return self._with_system(messages, name)

    def _continue(self, value: Any, name: str) -> list[Message]:
        if self.questions:
            answers = read_texts(value)
            if answers is not None and len(answers) == len(self.questions):
                return _exchange(self.questions, answers)
        if self.questions and not self.turns:
            raise RefusedError(
                Reason.NOT_MESSAGES,
                f"the prompt is a list of {len(self.questions)} texts, and {name} is no list of as "
                "many; take one of them with data.columns, as in prompt=prompt.0",
            )
        read = read_value(value, name)
        if not isinstance(read, str):
            return join_turns(self.turns, read, name)
        if self.turns:
            if is_whole_transcript(read):
                return join_turns(self.turns, read_transcript(read), name)
            if self.transcript is not None:
                return answer_transcript(self.transcript, read)
            return [*self.turns, {"role": "assistant", "content": read}]
        if is_whole_transcript(read) or (starts_with_speaker(read) and not self.is_blank):
            return read_transcript(read)
        refuse_other_transcript(read, name)
        return [{"role": "assistant", "content": read}]

    def _with_system(self, messages: list[Message], name: str) -> list[Message]:
        if self.system is None:
            return messages
        if messages[0]["role"] in INSTRUCTIONS:
            if collapse_spaces(messages[0].get("content", "")) == collapse_spaces(self.system):
                return messages
            raise RefusedError(
                Reason.PROMPTS_DIFFER, f"the system column and the first turn of {name}"
            )
        return [{"role": "system", "content": self.system}, *messages]


def answer_all(prompt: Prompt, values: Sequence[Any], names: Sequence[str]) -> list[list[Message]]:
    """Return the conversations made from the responses to one prompt.

    ``names`` tell the responses apart in a refusal.

    Raises:
        RefusedError: ``Prompt.answer`` refuses one, or the prompt ends with another response.
    """
    if _may_hold_an_answer(prompt):
        answers = map(prompt.find_answer, values, names)
        if all(answer is not None for answer in answers):
            prompt = replace(prompt, is_conversation=True)
    own = prompt.before_answer() if prompt.is_conversation else prompt
    conversations = list(map(own.answer, values, names))
    refuse_list_literals(conversations)
    if isinstance(values[0], str) and all(isinstance(value, str) for value in values):
        embedded = list(map(find_embedded, values, names))
        if 0 < embedded.count(None) < len(values):
            other = "the other one" if len(values) == 2 else "another one"
            raise RefusedError(
                Reason.NOT_MESSAGES,
                f"one response is a list of messages as JSON and {other} is plain text",
            )
    if prompt.is_conversation and not any(
        are_equivalent(prompt.turns[-1], each[-1]) for each in conversations
    ):
        which = "neither response" if len(values) == 2 else "none of the responses"
        raise RefusedError(
            Reason.PROMPTS_DIFFER, f"the prompt ends with an assistant's turn that is {which}"
        )
    return conversations


def _may_hold_an_answer(prompt: Prompt) -> bool:
    """Return whether the last turn is an assistant's answer to the user."""
    if prompt.is_conversation or prompt.transcript is not None or not prompt.turns:
        return False
    last = prompt.turns[-1]
    return last["role"] == "assistant" and not last.get("tool_calls")


def refuse_list_literals(conversations: Sequence[list[Message]]) -> None:
    """Refuse a prompt and responses that are lists written as text, as pandas does in CSV.

    Raises:
        RefusedError: all of them are.
    """
    for messages in conversations:
        if not _is_list_literal(messages[-1].get("content", "")):
            return
    asked = [m.get("content", "") for m in conversations[0][:-1] if m["role"] == "user"][-1:]
    if asked and _is_list_literal(asked[0]):
        raise RefusedError(
            Reason.NOT_MESSAGES,
            f"prompt and responses are texts of lists of texts: {asked[0].strip()[:80]}",
        )


_LIST_OF_TEXTS = re.compile(r"""\s*\[['"]""")


def _is_list_literal(text: str) -> bool:
    """Return whether a text is a list of texts in JSON or Python syntax."""
    if not _LIST_OF_TEXTS.match(text):
        return False
    stripped = text.strip()
    if stripped[-2:] not in ("']", '"]'):
        return False
    try:
        value = ast.literal_eval(stripped)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    return all(isinstance(item, str) for item in value)


def read_texts(value: Any) -> list[Any] | None:
    """Return a list of texts, given directly or as JSON; None for other values."""
    if isinstance(value, str) and re.match(r"""\s*\[\s*(?:"|null)""", value):
        value = load_list(value)
    if not isinstance(value, list) or not value:
        return None
    return value if all(text is None or isinstance(text, str) for text in value) else None


def _exchange(questions: list[Any], answers: list[Any]) -> list[Message]:
    return [
        {"role": role, "content": text or ""}
        for turn in zip(questions, answers, strict=True)
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
