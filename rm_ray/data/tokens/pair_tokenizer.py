"""Pairs -> token ids, exactly those that the tokenizer's chat template gives."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from rm_ray.config.sections.data import DataConfig
from rm_ray.data.cache.pair_tokens import common_prefix
from rm_ray.data.rows.context import NO_CONTEXT
from rm_ray.data.rows.pairs import Pair
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.tokens.chat_renderer import TEMPLATE_FAILURES
from rm_ray.data.tokens.chat_tokenizer import ChatTokenizer
from rm_ray.data.tokens.cut_points import find_cut_tokens
from rm_ray.data.tokens.tokenizer import template_ids


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedPair:
    """Token ids of both conversations.

    ``prefix_length`` is the length of their common prefix, which leaves each side at least one
    token; ``prompt_length`` counts the tokens before the responses.
    """

    chosen_ids: list[int]
    rejected_ids: list[int]
    prefix_length: int
    prompt_length: int
    unwritten: tuple[str, ...] = ()
    """Keys of messages and tools that the chat template does not write."""


class PairTokenizer(ChatTokenizer):
    """Converts pairs to token ids within the limits of a ``DataConfig``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
        super().__init__(tokenizer)
        self.config = config
        self._cut_tokens = find_cut_tokens(tokenizer, template_ids(tokenizer))

    def tokenize(self, pairs: Sequence[Pair]) -> list[TokenizedPair | RefusedError]:
        """Return the ids of each pair or its refusal, in order."""
        rendered = self._render(pairs)
        tokenized = self._tokenize([texts for texts in rendered if isinstance(texts, _Texts)])
        return [texts if isinstance(texts, RefusedError) else next(tokenized) for texts in rendered]

    def _render(self, pairs: Sequence[Pair]) -> Sequence[_Texts | RefusedError]:
        """Render all pairs together, or one by one if any of them is refused."""
        try:
            return self._write(pairs)
        except RefusedError as refusal:
            if len(pairs) == 1:
                return [refusal]
        return [self._render([pair])[0] for pair in pairs]

    def _write(self, pairs: Sequence[Pair]) -> list[_Texts]:
        """Render the conversations, and the prompts with a generation prompt.

        A prompt that several pairs share is rendered once.
        """
        for pair in pairs:
            self.reserved.refuse((*pair.chosen, pair.rejected[-1]), pair.context)
        contexts = [pair.context for pair in pairs]
        keys = [repr((pair.prompt, pair.context)) if pair.prompt else "" for pair in pairs]
        asked = {key: pair for key, pair in zip(keys, pairs, strict=True) if key}
        render = self.renderer.render
        try:
            chosen = render([pair.chosen for pair in pairs], contexts)
            rejected = render([pair.rejected for pair in pairs], contexts)
            written = render(
                [pair.prompt for pair in asked.values()],
                [pair.context for pair in asked.values()],
                add_generation_prompt=True,
            )
        except TEMPLATE_FAILURES as error:
            detail = str(error) or type(error).__name__
            raise RefusedError(Reason.TEMPLATE_REFUSED, detail) from None
        if not (all(chosen) and all(rejected)):
            raise RefusedError(Reason.TEMPLATE_REFUSED, "it gives no text")
        texts = dict(zip(asked, written, strict=True))
        prompts = [texts.get(key, "") for key in keys]
        unwritten = list(map(self._find_unwritten, pairs, chosen, rejected))
        return list(map(self._cut, prompts, chosen, rejected, unwritten))

    def _find_unwritten(self, pair: Pair, chosen: str, rejected: str) -> tuple[str, ...]:
        find, last = self.renderer.find_unwritten, len(pair.rejected) - 1
        found = find(pair.chosen, chosen, pair.context)
        return tuple(
            {
                **dict.fromkeys(found),
                **dict.fromkeys(find(pair.rejected, rejected, NO_CONTEXT, first=last)),
            }
        )

    def _cut(self, prompt: str, chosen: str, rejected: str, unwritten: tuple[str, ...]) -> _Texts:
        """Cut the texts after the last cut token that both conversations share with the prompt."""
        end = 0
        for token in self._cut_tokens:
            start = prompt.rfind(token)
            after = start + len(token)
            if start < 0 or after <= end:
                continue
            head = prompt[:after]
            if chosen.startswith(head) and rejected.startswith(head):
                end = after
        return _Texts(
            shared=prompt[:end],
            prompt=prompt[end:],
            chosen=chosen[end:],
            rejected=rejected[end:],
            unwritten=unwritten,
        )

    def _tokenize(self, rendered: Sequence[_Texts]) -> Iterator[TokenizedPair | RefusedError]:
        """Encode the texts, and each shared text only once."""
        distinct = list(dict.fromkeys(texts.shared for texts in rendered))
        shared_ids = {text: e.ids for text, e in zip(distinct, self.encode(distinct), strict=True)}
        all_chosen = self.encode([texts.chosen for texts in rendered], offsets=True)
        all_rejected = self.encode([texts.rejected for texts in rendered])
        for texts, chosen, rejected in zip(rendered, all_chosen, all_rejected, strict=True):
            shared = shared_ids[texts.shared]
            prompt_length = len(shared) + self._prompt_length(texts, chosen)
            try:
                tokens = self._limit(shared, chosen.ids, rejected.ids, prompt_length)
                yield replace(tokens, unwritten=texts.unwritten) if texts.unwritten else tokens
            except RefusedError as refusal:
                yield refusal

    def _prompt_length(self, texts: _Texts, chosen: Encoding) -> int:
        """Count the tokens after the shared text that begin inside the prompt."""
        if texts.chosen.startswith(texts.prompt):
            length = _count_before(chosen, len(texts.prompt))
        else:
            length = len(self.encode([texts.prompt])[0])
        return min(length, len(chosen) - 1)

    def _limit(
        self,
        shared: list[int],
        chosen_rest: list[int],
        rejected_rest: list[int],
        prompt_length: int,
    ) -> TokenizedPair:
        prefix_length = len(shared) + common_prefix(chosen_rest, rejected_rest)
        chosen, rejected = shared + chosen_rest, shared + rejected_rest
        if prefix_length == len(chosen) == len(rejected):
            raise RefusedError(Reason.IDENTICAL_AFTER_TEMPLATING)
        longest, limit = max(len(chosen), len(rejected)), self.config.max_length
        prompt_limit = self.config.max_prompt_length or limit
        excess = max(longest - limit, prompt_length - prompt_limit, 0)
        if excess:
            keep = 1 if chosen[0] == self.tokenizer.bos_token_id else 0
            spare = min(prompt_length, prefix_length) - keep
            if self.config.over_length == "drop" or spare < excess:
                if longest > limit:
                    raise RefusedError(Reason.TOO_LONG, f"{longest} tokens")
                raise RefusedError(Reason.PROMPT_TOO_LONG, f"{prompt_length} tokens")
            chosen = chosen[:keep] + chosen[keep + excess :]
            rejected = rejected[:keep] + rejected[keep + excess :]
            prompt_length -= excess
            prefix_length -= excess
        return TokenizedPair(
            chosen_ids=chosen,
            rejected_ids=rejected,
            prefix_length=min(prefix_length, len(chosen) - 1, len(rejected) - 1),
            prompt_length=prompt_length,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Texts:
    """A pair as text: the shared beginning, and the rest of the prompt and each conversation."""

    shared: str
    prompt: str
    chosen: str
    rejected: str
    unwritten: tuple[str, ...]


def _count_before(encoding: Encoding, end: int) -> int:
    """Count the tokens that begin before the character ``end``."""
    token = encoding.char_to_token(end)
    span = None if token is None else encoding.token_to_chars(token)
    if token is None or span is None:
        return bisect_left(encoding.offsets, (end,))
    return token + (span[0] < end)
