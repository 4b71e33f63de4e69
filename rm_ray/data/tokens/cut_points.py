"""Tokens after which a text may be cut so that its pieces encode to the same ids."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from transformers import PreTrainedTokenizerBase

_PIECEWISE = {
    "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "Replace", "Strip",
    "ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "Whitespace", "WhitespaceSplit",
    "TemplateProcessing",
}  # fmt: skip
"""Tokenizer components that process each piece of a text independently."""


def find_cut_tokens(tokenizer: PreTrainedTokenizerBase, written: Collection[int]) -> list[str]:
    """Return the template's tokens after which a text may be cut without changing its ids.

    A fast tokenizer first extracts the added tokens that are not normalised, from left to right,
    the longest at each place; it then normalises, splits and encodes each piece between them on
    its own. An added token that no other token can overlap is therefore always found, and the ids
    after it do not depend on the text before it. Returns an empty list if a component of the
    tokenizer is not known to work this way. ``written`` are the ids that the template writes.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    added = [token for token in backend["added_tokens"] if not token["normalized"]]
    parts = [backend[name] for name in ("normalizer", "pre_tokenizer", "post_processor")]
    looks_around = any(t["lstrip"] or t["rstrip"] or t["single_word"] for t in added)
    if looks_around or tokenizer.split_special_tokens or not all(map(_is_piecewise, parts)):
        return []
    contents = [token["content"] for token in added]
    candidates = [token["content"] for token in added if token["id"] in written]
    return [t for t in candidates if not any(_may_hide(other, t) for other in contents)]


def _is_piecewise(part: dict[str, Any] | None) -> bool:
    if part is None:
        return True
    if part["type"] == "Sequence":
        (parts,) = (value for value in part.values() if isinstance(value, list))
        return all(map(_is_piecewise, parts))
    if part["type"] == "TemplateProcessing" and sum("Sequence" in p for p in part["single"]) != 1:
        return False
    moves_first_offset = part.get("add_prefix_space") and part.get("trim_offsets")
    marks_first_piece = part.get("prepend_scheme") == "first"
    return part["type"] in _PIECEWISE and not (moves_first_offset or marks_first_piece)


def _may_hide(other: str, token: str) -> bool:
    """Return whether a match of ``other`` can prevent ``token`` from being found."""
    beginnings = tuple(token[:length] for length in range(1, len(token)))
    return other.endswith(beginnings) or (token in other and token != other)
