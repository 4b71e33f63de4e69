"""Conversations of requests -> the token ids that the chat template gives, whoever asks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rm_ray.data.rows.context import NO_CONTEXT, Context, read_tools
from rm_ray.data.rows.messages import read_value
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.turns import Message, has_lone_surrogate
from rm_ray.data.tokens.conversation_tokenizer import ConversationTokenizer
from rm_ray.errors import InputError
from rm_ray.serving.question import Conversation, Messages, Question
from rm_ray.serving.refused_request import to_input_error
from rm_ray.serving.template_frame import TemplateFrame

_NO_LIMIT = 2**31
"""So that every kind of conversation is checked against ``max_length`` in one place."""

BYTES_PER_TOKEN = 4
"""Of English text, for an estimate."""

NFC_SHRINKS = 3
"""How many times shorter Unicode's form NFC makes a text at most, in UTF-8: the Kelvin sign."""


@dataclass(frozen=True, kw_only=True)
class ConversationTokens:
    """Converts conversations to token ids; never cuts any."""

    tokenizer: ConversationTokenizer
    frame: TemplateFrame
    max_length: int
    """Maximum tokens of a conversation."""
    num_ids: int
    """Ids are below this number."""
    bytes_per_token: int | None
    """The most bytes of text that become one token; None if that has no known limit."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, max_length: int) -> ConversationTokens:
        """Return the conversion for a served model's tokenizer and chat template."""
        return cls(
            tokenizer=ConversationTokenizer(tokenizer, max_length=_NO_LIMIT),
            frame=TemplateFrame.of(tokenizer),
            max_length=max_length,
            num_ids=max(tokenizer.get_vocab().values()) + 1,
            bytes_per_token=find_bytes_per_token(tokenizer),
        )

    def encode_all(self, question: Question) -> list[np.ndarray]:
        """Return the ids of each of a request's conversations; an error says of which.

        Raises:
            InputError: a conversation cannot be scored.
        """
        found: list[np.ndarray] = []
        for i, conversation in enumerate(question.conversations):
            try:
                found.append(self.encode(conversation, question.tools))
            except InputError as error:
                if len(question.conversations) == 1:
                    raise
                is_reference = question.has_reference and i == len(question.conversations) - 1
                name = "the reference" if is_reference else f"conversation {i}"
                raise InputError(f"{name} of the request: {error}") from None
        return found

    def encode(
        self, conversation: Conversation, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> np.ndarray:
        """Return the int32 ids of a conversation.

        Messages are rendered by the chat template; a text that it wrote gets what clients remove
        or do not have (see ``TemplateFrame``); token ids stay as they are.

        Raises:
            InputError: it is empty, too long, or not one of these.
        """
        try:
            self._refuse_long(self._count_at_least(conversation), "at least ")
            ids = self._encode(conversation, tools)
            self._refuse_long(len(ids))
        except RefusedError as refusal:
            raise to_input_error(refusal) from None
        except RecursionError:  # tool calls and contents may be texts of JSON
            raise InputError("a conversation holds lists or objects nested too deep") from None
        return np.array(ids, dtype=np.int32)

    def _refuse_long(self, length: int, at_least: str = "") -> None:
        if length > self.max_length:
            raise RefusedError(
                Reason.TOO_LONG,
                f"{at_least}{length:,} tokens, and the limit is {self.max_length:,}",
            )

    def _count_at_least(self, conversation: Conversation) -> int:
        """Return a lower bound of the tokens, so that no time is spent on what is too long."""
        if len(conversation) and isinstance(conversation[0], int):
            return len(conversation)
        if self.bytes_per_token is None:
            return 0
        return count_bytes(conversation) // self.bytes_per_token

    def _encode(
        self, conversation: Conversation, tools: Sequence[Mapping[str, Any]] | None
    ) -> Sequence[int]:
        if isinstance(conversation, str):
            return self._encode_text(conversation)
        if len(conversation) == 0:
            raise RefusedError(Reason.EMPTY, "it has neither messages nor tokens")
        if isinstance(conversation[0], Mapping):
            return self._encode_messages(conversation, tools)  # type: ignore[arg-type]
        return self._check_ids(conversation)

    def _encode_text(self, text: str) -> list[int]:
        if not text.strip():
            raise RefusedError(Reason.EMPTY, "its text is blank")
        if has_lone_surrogate(text):
            raise RefusedError(Reason.NOT_UNICODE, "half a surrogate pair")
        if (pad := str(self.tokenizer.tokenizer.pad_token)) in text:
            raise InputError(f"a text holds the padding token {pad!r}; send it without padding")
        ids: list[int] = self.tokenizer.encode([self.frame.complete(text)])[0].ids
        return ids

    def _encode_messages(
        self, given: Messages, tools: Sequence[Mapping[str, Any]] | None
    ) -> list[int]:
        listed = [dict(each) if isinstance(each, Mapping) else each for each in given]
        messages = read_value(listed, "messages")
        assert isinstance(messages, list)
        context = Context(tools=read_tools(list(tools))) if tools else NO_CONTEXT
        (found,) = self.tokenizer.read([self._end(messages)], [context])
        if isinstance(found, RefusedError):
            raise found
        return found.ids

    def _end(self, messages: list[Message]) -> list[Message]:
        """Return the messages without an end-of-turn token that a policy left in the response."""
        *before, last = messages
        if last["role"] != "assistant":
            raise RefusedError(Reason.LAST_TURN_NOT_ASSISTANT, f"it ends with {last['role']!r}")
        if "content" not in last:
            return messages
        return [*before, {**last, "content": self.frame.without_end(last["content"])}]

    def _check_ids(self, ids: Sequence[Any]) -> list[int]:
        pad = self.tokenizer.tokenizer.pad_token_id
        for i, number in enumerate(ids):
            if not isinstance(number, int) or not 0 <= number < self.num_ids:
                raise InputError(
                    f"token {i} is {number!r}; ids of the served model's tokenizer are whole "
                    f"numbers from 0 to {self.num_ids - 1}"
                )
            if number == pad:
                raise InputError(f"token {i} is the padding token {pad}; send ids without padding")
        return list(ids)


def count_bytes(conversation: Conversation) -> int:
    """Return the bytes of a text, or of the contents of messages without white space around."""
    if isinstance(conversation, str):
        return len(conversation.encode(errors="replace"))
    contents = (each.get("content") for each in conversation if isinstance(each, Mapping))
    return sum(count_bytes(each.strip()) for each in contents if isinstance(each, str))


def estimate_tokens(conversation: Conversation) -> int:
    """Return about how many tokens a conversation has, before it is tokenized."""
    if len(conversation) and isinstance(conversation[0], int):
        return len(conversation)
    return count_bytes(conversation) // BYTES_PER_TOKEN


def find_bytes_per_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the most bytes of text that become one token; None if that has no known limit.

    Byte-level tokenizers have one. Others may turn a whole word into the unknown token.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    steps = backend["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    normalizer = (backend["normalizer"] or {}).get("type")
    is_byte_level = any(step.get("type") == "ByteLevel" for step in steps)
    is_lossy = any(step.get("behavior") == "Removed" for step in steps)
    takes_blanks = any(each["lstrip"] or each["rstrip"] for each in backend["added_tokens"])
    if not is_byte_level or is_lossy or takes_blanks or normalizer not in (None, "NFC"):
        return None
    longest = max(len(token.encode()) for token in tokenizer.get_vocab())
    return longest * (NFC_SHRINKS if normalizer else 1)
