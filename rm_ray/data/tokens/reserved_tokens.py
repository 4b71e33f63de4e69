"""Special tokens of the tokenizer, which texts of a row must not contain."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rm_ray.data.rows.context import Context
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.turns import Message, texts_of


class ReservedTokens:
    """Tokens of a tokenizer that texts of a row must not contain."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._pattern = re.compile("|".join(re.escape(token) for token in sorted(tokens)))

    def refuse(self, messages: Iterable[Message], context: Context) -> None:
        """Refuse a conversation that contains a reserved token.

        Raises:
            RefusedError: names the token.
        """
        for message in messages:
            plain = len(message) == 2 and isinstance(message.get("content"), str)
            for text in (message["content"],) if plain else texts_of(message):
                self._check(text)
        if context.tools is not None or context.documents is not None:
            for text in texts_of([context.tools or [], context.documents or []]):
                self._check(text)

    def _check(self, text: str) -> None:
        if found := self._pattern.search(text):
            raise RefusedError(Reason.RESERVED_TOKENS, found.group())
