"""Single conversations -> token ids for scoring, the same ids as in a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rm_ray.data.rows.context import NO_CONTEXT, Context
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.turns import Message
from rm_ray.data.tokens.chat_renderer import TEMPLATE_FAILURES
from rm_ray.data.tokens.chat_tokenizer import ChatTokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizedConversation:
    """Token ids and text of a conversation, and its keys that are missing from the text."""

    ids: list[int]
    text: str
    unwritten: tuple[str, ...]


class ConversationTokenizer(ChatTokenizer):
    """Converts single conversations to at most ``max_length`` token ids each."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> None:
        super().__init__(tokenizer)
        self._max_length = max_length

    def tokenize(self, conversations: Sequence[list[Message]]) -> list[list[int] | RefusedError]:
        """Return the ids of each conversation or its refusal, in order."""
        results = self.read(conversations, [NO_CONTEXT] * len(conversations))
        return [each if isinstance(each, RefusedError) else each.ids for each in results]

    def read(
        self, conversations: Sequence[list[Message]], contexts: Sequence[Context]
    ) -> list[TokenizedConversation | RefusedError]:
        """Return the ids and text of each conversation or its refusal, in order."""
        written = list(map(self._write, conversations, contexts))
        encoded = iter(self.encode([each[0] for each in written if isinstance(each, tuple)]))
        return [
            each if isinstance(each, RefusedError) else self._limit(next(encoded).ids, *each)
            for each in written
        ]

    def _write(
        self, conversation: list[Message], context: Context
    ) -> tuple[str, tuple[str, ...]] | RefusedError:
        try:
            self.reserved.refuse(conversation, context)
            (text,) = self.renderer.render([conversation], [context])
            if not text:
                return RefusedError(Reason.TEMPLATE_REFUSED, "it gives no text")
            return text, self.renderer.find_unwritten(conversation, text, context)
        except RefusedError as refusal:
            return refusal
        except TEMPLATE_FAILURES as error:
            return RefusedError(Reason.TEMPLATE_REFUSED, str(error) or type(error).__name__)

    def _limit(
        self, ids: list[int], text: str, unwritten: tuple[str, ...]
    ) -> TokenizedConversation | RefusedError:
        if len(ids) > self._max_length:
            return RefusedError(Reason.TOO_LONG, f"{len(ids)} tokens")
        return TokenizedConversation(ids=ids, text=text, unwritten=unwritten)
