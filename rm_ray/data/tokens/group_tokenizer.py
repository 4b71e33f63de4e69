"""Comparison groups -> token ids, exactly those that the tokenizer's chat template gives."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from rm_ray.config.sections.data import DataConfig
from rm_ray.data.cache.group_tokens import common_prefix
from rm_ray.data.rows.context import NO_CONTEXT
from rm_ray.data.rows.groups import Group
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.tokens.chat_renderer import TEMPLATE_FAILURES
from rm_ray.data.tokens.chat_tokenizer import ChatTokenizer
from rm_ray.data.tokens.cut_points import find_cut_tokens
from rm_ray.data.tokens.tokenizer import template_ids


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedGroup:
    """Token ids of all conversations of a group.

    ``prefix_length`` is the length of their common prefix, which leaves each conversation at least
    one token; ``prompt_length`` counts the tokens before the responses.
    """

    ids: list[list[int]]
    prefix_length: int
    prompt_length: int
    unwritten: tuple[str, ...] = ()
    """Keys of messages and tools that the chat template does not write."""


class GroupTokenizer(ChatTokenizer):
    """Converts groups to token ids within the limits of a ``DataConfig``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
        super().__init__(tokenizer)
        self.config = config
        self._cut_tokens = find_cut_tokens(tokenizer, template_ids(tokenizer))

    def tokenize(self, groups: Sequence[Group]) -> list[TokenizedGroup | RefusedError]:
        """Return the ids of each group or its refusal, in order."""
        rendered = self._render(groups)
        tokenized = self._tokenize([texts for texts in rendered if isinstance(texts, _Texts)])
        return [texts if isinstance(texts, RefusedError) else next(tokenized) for texts in rendered]

    def _render(self, groups: Sequence[Group]) -> Sequence[_Texts | RefusedError]:
        """Render all groups together, or one by one if any of them is refused."""
        try:
            return self._write(groups)
        except RefusedError as refusal:
            if len(groups) == 1:
                return [refusal]
        return [self._render([group])[0] for group in groups]

    def _write(self, groups: Sequence[Group]) -> list[_Texts]:
        """Render the conversations, and the prompts with a generation prompt.

        A prompt that several groups share is rendered once.
        """
        for group in groups:
            self.reserved.refuse((*group.prompt, *group.responses), group.context)
        keys = [repr((group.prompt, group.context)) if group.prompt else "" for group in groups]
        asked = {key: group for key, group in zip(keys, groups, strict=True) if key}
        render = self.renderer.render
        try:
            flat = iter(
                render(
                    [conversation for group in groups for conversation in group.conversations],
                    [group.context for group in groups for _ in group.responses],
                )
            )
            written = render(
                [group.prompt for group in asked.values()],
                [group.context for group in asked.values()],
                add_generation_prompt=True,
            )
        except TEMPLATE_FAILURES as error:
            detail = str(error) or type(error).__name__
            raise RefusedError(Reason.TEMPLATE_REFUSED, detail) from None
        rendered = [[next(flat) for _ in group.responses] for group in groups]
        if not all(map(all, rendered)):
            raise RefusedError(Reason.TEMPLATE_REFUSED, "it gives no text")
        texts = dict(zip(asked, written, strict=True))
        prompts = [texts.get(key, "") for key in keys]
        unwritten = list(map(self._find_unwritten, groups, rendered))
        return list(map(self._cut, prompts, rendered, unwritten))

    def _find_unwritten(self, group: Group, texts: Sequence[str]) -> tuple[str, ...]:
        find, last = self.renderer.find_unwritten, len(group.prompt)
        found: dict[str, None] = {}
        for i, (conversation, text) in enumerate(zip(group.conversations, texts, strict=True)):
            if i:
                found |= dict.fromkeys(find(conversation, text, NO_CONTEXT, first=last))
            else:
                found |= dict.fromkeys(find(conversation, text, group.context))
        return tuple(found)

    def _cut(self, prompt: str, texts: Sequence[str], unwritten: tuple[str, ...]) -> _Texts:
        """Cut the texts after the last cut token that all conversations share with the prompt."""
        end = 0
        for token in self._cut_tokens:
            start = prompt.rfind(token)
            after = start + len(token)
            if start < 0 or after <= end:
                continue
            head = prompt[:after]
            if all(text.startswith(head) for text in texts):
                end = after
        return _Texts(
            shared=prompt[:end],
            prompt=prompt[end:],
            rests=[text[end:] for text in texts],
            unwritten=unwritten,
        )

    def _tokenize(self, rendered: Sequence[_Texts]) -> Iterator[TokenizedGroup | RefusedError]:
        """Encode the texts, and each shared text only once."""
        distinct = list(dict.fromkeys(texts.shared for texts in rendered))
        shared_ids = {text: e.ids for text, e in zip(distinct, self.encode(distinct), strict=True)}
        all_first = self.encode([texts.rests[0] for texts in rendered], offsets=True)
        others = iter(self.encode([rest for texts in rendered for rest in texts.rests[1:]]))
        for texts, first in zip(rendered, all_first, strict=True):
            shared = shared_ids[texts.shared]
            rests = [first.ids, *(next(others).ids for _ in texts.rests[1:])]
            prompt_length = len(shared) + self._prompt_length(texts, first)
            try:
                tokens = self._limit(shared, rests, prompt_length)
                yield replace(tokens, unwritten=texts.unwritten) if texts.unwritten else tokens
            except RefusedError as refusal:
                yield refusal

    def _prompt_length(self, texts: _Texts, first: Encoding) -> int:
        """Count the tokens after the shared text that begin inside the prompt."""
        if texts.rests[0].startswith(texts.prompt):
            length = _count_before(first, len(texts.prompt))
        else:
            length = len(self.encode([texts.prompt])[0])
        return min(length, len(first) - 1)

    def _limit(
        self, shared: list[int], rests: Sequence[list[int]], prompt_length: int
    ) -> TokenizedGroup:
        conversations = [shared + rest for rest in rests]
        if len({tuple(rest) for rest in rests}) < len(rests):
            raise RefusedError(Reason.IDENTICAL_AFTER_TEMPLATING)
        same = min((common_prefix(rests[0], rest) for rest in rests[1:]), default=len(rests[0]))
        prefix_length = len(shared) + same
        longest, limit = max(map(len, conversations)), self.config.max_length
        prompt_limit = self.config.max_prompt_length or limit
        excess = max(longest - limit, prompt_length - prompt_limit, 0)
        if excess:
            keep = 1 if conversations[0][0] == self.tokenizer.bos_token_id else 0
            spare = min(prompt_length, prefix_length) - keep
            if self.config.over_length == "drop" or spare < excess:
                if longest > limit:
                    raise RefusedError(Reason.TOO_LONG, f"{longest} tokens")
                raise RefusedError(Reason.PROMPT_TOO_LONG, f"{prompt_length} tokens")
            conversations = [ids[:keep] + ids[keep + excess :] for ids in conversations]
            prompt_length -= excess
            prefix_length -= excess
        return TokenizedGroup(
            ids=conversations,
            prefix_length=min(prefix_length, *(len(ids) - 1 for ids in conversations)),
            prompt_length=prompt_length,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Texts:
    """A group as text: the shared beginning, and the rest of the prompt and each conversation."""

    shared: str
    prompt: str
    rests: list[str]
    unwritten: tuple[str, ...]


def _count_before(encoding: Encoding, end: int) -> int:
    """Count the tokens that begin before the character ``end``."""
    token = encoding.char_to_token(end)
    span = None if token is None else encoding.token_to_chars(token)
    if token is None or span is None:
        return bisect_left(encoding.offsets, (end,))
    return token + (span[0] < end)
