"""Pairs to token ids: exactly those that the tokenizer's chat template gives."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
from tokenizers import Encoding
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rm_ray.config.train_config import BUILTIN, DataConfig
from rm_ray.data.cache.pair_tokens import common_prefix
from rm_ray.data.rows.contract import NO_CONTEXT, Pair, Reason, RefusedError
from rm_ray.data.tokens.chat_template import choose_template
from rm_ray.data.tokens.cutting import cut_tokens
from rm_ray.data.tokens.rendering import TEMPLATE_FAILURES, ChatRenderer, ReservedTokens
from rm_ray.data.tokens.vocabulary import add_pad_token
from rm_ray.errors import InputError

PAD_TOKEN = "<|rm_pad|>"

_PROBE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "An answer."}]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedPair:
    """Token ids of both conversations.

    ``prefix_length`` is the longest common prefix of the two id lists, at most the shorter one
    less a token; ``prompt_length`` counts the tokens before the responses.
    """

    chosen_ids: list[int]
    rejected_ids: list[int]
    prefix_length: int
    prompt_length: int
    unwritten: tuple[str, ...] = ()
    """Keys of messages and tools that the chat template does not write."""


def load_tokenizer(
    name_or_path: str, *, revision: str | None = None, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer with a chat template, right padding and a pad token of its own.

    Raises:
        InputError: it cannot be loaded, or has no chat template and none is given.
    """
    if name_or_path == BUILTIN:
        from rm_ray.data.sources.synthetic import build_tokenizer

        tokenizer: PreTrainedTokenizerBase = build_tokenizer()
    else:
        tokenizer = _load(name_or_path, revision)
    tokenizer.chat_template = choose_template(tokenizer, chat_template, name=name_or_path)
    tokenizer.padding_side = "right"
    _give_own_pad_token(tokenizer, template_ids(tokenizer))
    return tokenizer


def _load(name_or_path: str, revision: str | None) -> PreTrainedTokenizerBase:
    is_folder = Path(name_or_path).expanduser().is_dir()
    source = str(Path(name_or_path).expanduser()) if is_folder else name_or_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"model.tokenizer '{name_or_path}' cannot be loaded: it must be a folder with "
            "tokenizer.json and tokenizer_config.json, or a name on the Hugging Face Hub that this "
            f"machine can reach (HF_TOKEN for a gated one, HF_ENDPOINT for a mirror). {reason}"
        ) from None
    if not tokenizer.is_fast:
        raise InputError(
            f"model.tokenizer '{name_or_path}' has no fast version (tokenizer.json), which is "
            "needed to find where a response begins; convert it or choose another"
        )
    return tokenizer


def template_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of a short conversation, what the template writes around it included."""
    try:
        ids = tokenizer.apply_chat_template(_PROBE, return_dict=False)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(
            f"data.chat_template (or the tokenizer's own) has a mistake in line {error.lineno}: "
            f"{error.message}"
        ) from None
    except TEMPLATE_FAILURES:  # the rows may be of a form that it takes
        return set()
    return set(ids)


def _give_own_pad_token(tokenizer: PreTrainedTokenizerBase, written: set[int]) -> None:
    """Padding with a real token would hide that one from clients that pool by token id."""
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id} | written
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in taken:
        add_pad_token(tokenizer, PAD_TOKEN)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash everything about the tokenizer that decides which ids a text becomes."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["padding"] = backend["truncation"] = None
    state = {
        "backend": backend,
        "template": tokenizer.chat_template,
        "special_tokens": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
    }
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def ends_assistant_turn(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the template writes an end-of-turn or EOS token after the last response."""
    try:
        text = str(tokenizer.apply_chat_template(_PROBE, tokenize=False))
    except TEMPLATE_FAILURES:
        return True  # the rows that it refuses too will say so
    after = text.rpartition(_PROBE[-1]["content"])[2]
    tail = tokenizer(after, add_special_tokens=False)["input_ids"]
    return bool(_special_ids(tokenizer).intersection(tail))


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    marked = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return marked | set(tokenizer.all_special_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Texts:
    """A pair as text: what prompt and conversations begin with, and how each of them goes on."""

    shared: str
    prompt: str
    chosen: str
    rejected: str
    unwritten: tuple[str, ...]


class ChatTokenizer:
    """Conversations to text by the chat template, and text to ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.renderer = ChatRenderer(tokenizer)
        special = tokenizer.convert_ids_to_tokens(sorted(_special_ids(tokenizer)))
        self.reserved = ReservedTokens(map(str, special))

    def encode(self, texts: list[str], *, offsets: bool = False) -> list[Encoding]:
        """Encode as ``tokenizer(texts)`` does, without what it then wraps around each text."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        encode = backend.encode_batch if offsets else backend.encode_batch_fast
        encodings: list[Encoding] = encode(texts, add_special_tokens=False)
        return encodings


class PairTokenizer(ChatTokenizer):
    """Turns pairs into token ids under the limits of a ``DataConfig``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
        super().__init__(tokenizer)
        self.config = config
        self._cut_tokens = cut_tokens(tokenizer, template_ids(tokenizer))

    def tokenize(self, pairs: Sequence[Pair]) -> list[TokenizedPair | RefusedError]:
        """Return ids for each pair, or why it is refused, in order."""
        rendered = self._render(pairs)
        tokenized = self._tokenize([texts for texts in rendered if isinstance(texts, _Texts)])
        return [texts if isinstance(texts, RefusedError) else next(tokenized) for texts in rendered]

    def _render(self, pairs: Sequence[Pair]) -> Sequence[_Texts | RefusedError]:
        """Write all pairs as text at once, or each alone where one of them is refused."""
        try:
            return self._write(pairs)
        except RefusedError as refusal:
            if len(pairs) == 1:
                return [refusal]
        return [self._render([pair])[0] for pair in pairs]

    def _write(self, pairs: Sequence[Pair]) -> list[_Texts]:
        """Write conversations and prompts (as they stand before a response) as text.

        A prompt of several pairs is written once.
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
        """Cut the texts after the last token that both conversations share with the prompt."""
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
        """Encode the texts; what conversations or pairs share is encoded once."""
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
        """Count the tokens after the shared ones that begin inside the prompt."""
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


def _count_before(encoding: Encoding, end: int) -> int:
    """Count the tokens that begin before a character."""
    token = encoding.char_to_token(end)
    span = None if token is None else encoding.token_to_chars(token)
    if token is None or span is None:
        return bisect_left(encoding.offsets, (end,))
    return token + (span[0] < end)
