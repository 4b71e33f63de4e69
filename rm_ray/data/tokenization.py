"""Pairs to token ids: exactly those that the tokenizer's chat template gives."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rm_ray.config import BUILTIN, DataConfig
from rm_ray.data.contract import Message, Pair, Reason, RefusedError
from rm_ray.errors import InputError

PAD_TOKEN = "<|rm_pad|>"

TEMPLATE_FAILURES = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError
)  # fmt: skip
"""What a template raises over a row: its own refusals, and Python's for what it does with it."""

_PROBE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "An answer."}]


@dataclass(frozen=True, kw_only=True)
class TokenizedPair:
    """Token ids of both conversations.

    ``prefix_length`` is the longest common prefix of the two id lists, at most the shorter one
    less a token; ``prompt_length`` counts the tokens before the responses.
    """

    chosen_ids: list[int]
    rejected_ids: list[int]
    prefix_length: int
    prompt_length: int


def load_tokenizer(
    name_or_path: str, *, revision: str | None = None, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer with a chat template, right padding and a pad token of its own.

    Raises:
        InputError: it cannot be loaded, or has no chat template and none is given.
    """
    if name_or_path == BUILTIN:
        from rm_ray.data.synthetic import build_tokenizer

        tokenizer: PreTrainedTokenizerBase = build_tokenizer()
    else:
        tokenizer = _load(name_or_path, revision)
    if chat_template is not None:
        tokenizer.chat_template = _read_template(chat_template)
    if tokenizer.chat_template is None:
        raise InputError(
            f"model.tokenizer '{name_or_path}' has no chat template, so messages cannot be turned "
            "into text; set data.chat_template to a Jinja template or to the path of one"
        )
    tokenizer.padding_side = "right"
    _give_own_pad_token(tokenizer, _template_ids(tokenizer))
    return tokenizer


def _load(name_or_path: str, revision: str | None) -> PreTrainedTokenizerBase:
    is_folder = Path(name_or_path).expanduser().is_dir()
    source = str(Path(name_or_path).expanduser()) if is_folder else name_or_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
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


def _read_template(template: str) -> str:
    if "{" in template:
        return template
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"data.chat_template '{template[:200]}' is neither a Jinja template nor a text file "
            f"here: {error}"
        ) from None


def _template_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
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
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
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


class PairTokenizer:
    """Turns pairs into token ids under the limits of a ``DataConfig``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        reserved = sorted(tokenizer.convert_ids_to_tokens(sorted(_special_ids(tokenizer))))
        self._reserved = re.compile("|".join(re.escape(str(token)) for token in reserved))

    def tokenize(self, pairs: Sequence[Pair]) -> list[TokenizedPair | RefusedError]:
        """Return ids for each pair, or why it is refused, in order."""
        results: list[TokenizedPair | RefusedError] = []
        rendered: list[tuple[str, str, str]] = []
        for pair in pairs:
            try:
                rendered.append(self._render(pair))
                results.append(RefusedError(Reason.EMPTY))  # holds the place
            except RefusedError as refusal:
                results.append(refusal)
                rendered.append(("", "", ""))
        kept = [i for i, texts in enumerate(rendered) if texts[1]]
        if not kept:
            return results
        texts = [text for i in kept for text in rendered[i][1:]]
        encoding = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        for k, i in enumerate(kept):
            prompt_text, chosen_text, _ = rendered[i]
            chosen, rejected = encoding["input_ids"][2 * k], encoding["input_ids"][2 * k + 1]
            try:
                prompt_length = self._prompt_length(prompt_text, chosen_text, encoding[2 * k])
                results[i] = self._limit(chosen, rejected, prompt_length)
            except RefusedError as refusal:
                results[i] = refusal
        return results

    def _render(self, pair: Pair) -> tuple[str, str, str]:
        """Return the prompt (as it stands before a response) and both conversations as text."""
        for message in (*pair.chosen, pair.rejected[-1]):
            if found := self._reserved.search(message["content"]):
                raise RefusedError(Reason.RESERVED_TOKENS, found.group())
        try:
            chosen, rejected = self._apply(pair.chosen), self._apply(pair.rejected)
            prompt = self._apply(pair.prompt, add_generation_prompt=True) if pair.prompt else ""
        except TEMPLATE_FAILURES as error:
            detail = str(error) or type(error).__name__
            raise RefusedError(Reason.TEMPLATE_REFUSED, detail) from None
        if not chosen or not rejected:
            raise RefusedError(Reason.TEMPLATE_REFUSED, "it gives no text")
        return prompt, chosen, rejected

    def _apply(self, messages: list[Message], **options: Any) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options))

    def _prompt_length(self, prompt: str, conversation: str, encoding: Any) -> int:
        """Count the tokens that begin inside the prompt."""
        if not conversation.startswith(prompt):
            ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            return min(len(ids), len(encoding.ids) - 1)
        if not prompt:
            return 0
        starts = (start for start, _ in encoding.offsets)
        count = next((i for i, start in enumerate(starts) if start >= len(prompt)), 0)
        return min(count, len(encoding.ids) - 1)

    def _limit(self, chosen: list[int], rejected: list[int], prompt_length: int) -> TokenizedPair:
        if chosen == rejected:
            raise RefusedError(Reason.IDENTICAL_AFTER_TEMPLATING)
        longest, limit = max(len(chosen), len(rejected)), self.config.max_length
        prompt_limit = self.config.max_prompt_length or limit
        excess = max(longest - limit, prompt_length - prompt_limit, 0)
        if excess:
            shared = min(prompt_length, common_prefix(chosen, rejected))
            keep = 1 if chosen[0] == self.tokenizer.bos_token_id else 0
            if self.config.over_length == "drop" or shared - keep < excess:
                if longest > limit:
                    raise RefusedError(Reason.TOO_LONG, f"{longest} tokens")
                raise RefusedError(Reason.PROMPT_TOO_LONG, f"{prompt_length} tokens")
            chosen = chosen[:keep] + chosen[keep + excess :]
            rejected = rejected[:keep] + rejected[keep + excess :]
            prompt_length -= excess
        return TokenizedPair(
            chosen_ids=chosen,
            rejected_ids=rejected,
            prefix_length=min(common_prefix(chosen, rejected), len(chosen) - 1, len(rejected) - 1),
            prompt_length=prompt_length,
        )


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many leading ids two sequences share."""
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length
