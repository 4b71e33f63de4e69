"""Repeated data, found by hashes: held-out prompts, duplicates and contradictions."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from rm_ray.data.rows.context import NO_CONTEXT
from rm_ray.data.rows.groups import Group
from rm_ray.data.rows.turns import Message, without_notes
from rm_ray.data.text.folding import fold_text

KEY_BYTES = 16

KEY = np.dtype(f"S{KEY_BYTES}")
"""numpy type of a hash; all hashes have full width, so trailing zero bytes count too."""

_PAIR_KEY = np.dtype(f"S{2 * KEY_BYTES}")

NO_KEYS = np.empty(0, KEY)


def hash_group(group: Group) -> dict[str, Any]:
    """Return a group's 16-byte hashes: of its prompt, twice, and of each response.

    ``prompt_hash`` compares prompts by ``fold_text`` and without the amount of whitespace; a group
    without a prompt is identified by its responses. ``group_hash`` is that of the prompt, tools and
    documents as they are. ``response_hashes`` cover the prompt and a response as it is.
    """
    responses = [_serialise(response, _as_is) for response in group.responses]
    turns = [_serialise(message, _normalise) for message in group.prompt]
    prompt = _digest(b"\0".join(turns or sorted(map(_digest, responses))))
    asked = prompt
    if group.context != NO_CONTEXT:
        asked += _to_json([group.context.tools, group.context.documents])
    hashes = [_digest(asked + b"\0" + response) for response in responses]
    exact = [_serialise(message, _as_is) for message in group.prompt]
    group_hash = _digest(prompt + b"\0".join([asked, *exact]))
    return {"group_hash": group_hash, "prompt_hash": prompt, "response_hashes": hashes}


def _serialise(message: Message, view: Callable[[Any], Any]) -> bytes:
    """Serialise a message for hashing, skipping JSON for the usual message of role and text."""
    message = without_notes(message)
    content = message.get("content")
    if len(message) == 2 and isinstance(content, str):
        text = f"{message['role']}\0{view(content)}"
        if text.count("\0") == 1:
            return text.encode("utf-8", "surrogatepass")
    return b"\0" + _to_json(view(message))


def _as_is(value: Any) -> Any:
    return value


def _normalise(value: Any) -> Any:
    """Return a value with all its texts normalised for comparison."""
    if isinstance(value, str):
        return _normalise_text(value)
    if isinstance(value, dict):
        return {key: _normalise(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_normalise(item) for item in value]
    return value


@lru_cache(maxsize=1_024)  # rows with the same prompt are often adjacent
def _normalise_text(text: str) -> str:
    return " ".join(fold_text(text).split())


def _to_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()


def join_keys(arrays: Iterable[pa.FixedSizeBinaryArray]) -> np.ndarray:
    """Return batches of a hash column as one array of ``[N]`` keys."""
    keys = [
        np.frombuffer(a.buffers()[1], KEY, count=len(a), offset=a.offset * KEY_BYTES)
        for a in arrays
        if len(a)
    ]
    return np.concatenate(keys) if keys else NO_KEYS


def combine_keys(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Combine two ``[N]`` columns into ``[N]`` keys that are equal only if both parts are."""
    columns = np.stack((left, right), axis=1)
    return columns.view(_PAIR_KEY).reshape(-1)


def find_overlap(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which of ``[N]`` keys occur among the ``[M]`` others: ``[N]`` bool."""
    ordered = np.sort(others)
    if not len(ordered):
        return np.zeros(len(keys), dtype=bool)
    places = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    found: np.ndarray = ordered[places] == keys
    return found


def count_duplicates(pair_keys: np.ndarray) -> int:
    """Count the comparisons that repeat an earlier one."""
    ordered = np.sort(pair_keys)
    return int((ordered[1:] == ordered[:-1]).sum())


def count_contradictions(pair_keys: np.ndarray, swap_keys: np.ndarray) -> int:
    """Count the comparisons that another one reverses."""
    return int(find_overlap(swap_keys, pair_keys).sum())


def count_overlap(
    held_out: np.ndarray, sources: Iterable[str], trained_on: np.ndarray
) -> dict[str, int]:
    """Count, by source, the held-out groups whose prompt is also trained on."""
    is_seen = find_overlap(held_out, trained_on)
    counts = Counter(name for name, seen in zip(sources, is_seen, strict=True) if seen)
    return dict(sorted(counts.items()))
