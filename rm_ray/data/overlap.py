"""Pairs that are in the data twice: held-out prompts, duplicates and contradictions, by hashes."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from rm_ray.data.contract import Pair, without_notes

KEY_BYTES = 16

KEY = np.dtype(f"S{KEY_BYTES}")
"""Of hashes as numpy sorts them; all are of full width, so zero bytes at their end count too."""

NO_KEYS = np.empty(0, KEY)


def hash_pair(pair: Pair) -> dict[str, bytes]:
    """Return the 16-byte hashes of a pair: ``prompt_hash``, ``pair_hash`` and ``swap_hash``.

    The prompt is compared by NFKC, casefold and collapsed whitespace, responses as they are.
    ``swap_hash`` is the ``pair_hash`` of the same pair with the preference turned around. Pairs
    without a prompt are known by their two responses.
    """
    chosen, rejected = (_hash(without_notes(c[-1])) for c in (pair.chosen, pair.rejected))
    turns = [without_notes(message) for message in pair.prompt]
    prompt = _hash(_normalise(turns)) if turns else _hash(sorted((chosen.hex(), rejected.hex())))
    context = _hash([pair.context.tools, pair.context.documents])
    return {
        "prompt_hash": prompt,
        "pair_hash": _digest(prompt + context + chosen + rejected),
        "swap_hash": _digest(prompt + context + rejected + chosen),
    }


def _normalise(value: Any) -> Any:
    """Return a value with its texts as they are compared."""
    if isinstance(value, str):
        text = unicodedata.normalize("NFKC", value).casefold()
        return " ".join(unicodedata.normalize("NFKC", text).split())
    if isinstance(value, dict):
        return {key: _normalise(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_normalise(item) for item in value]
    return value


def _hash(value: Any) -> bytes:
    return _digest(json.dumps(value, sort_keys=True).encode())


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()


def join_keys(arrays: Iterable[pa.FixedSizeBinaryArray]) -> np.ndarray:
    """Return a column of hashes, read batch by batch, as ``[N]`` keys."""
    keys = [
        np.frombuffer(a.buffers()[1], KEY, count=len(a), offset=a.offset * KEY_BYTES)
        for a in arrays
        if len(a)
    ]
    return np.concatenate(keys) if keys else NO_KEYS


def find_overlap(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Tell which ``[N]`` keys are among the ``[M]`` others: ``[N]`` bool."""
    ordered = np.sort(others)
    if not len(ordered):
        return np.zeros(len(keys), dtype=bool)
    places = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    found: np.ndarray = ordered[places] == keys
    return found


def count_duplicates(pair_keys: np.ndarray) -> int:
    """Count the pairs that repeat one before them."""
    ordered = np.sort(pair_keys)
    return int((ordered[1:] == ordered[:-1]).sum())


def count_contradictions(pair_keys: np.ndarray, swap_keys: np.ndarray) -> int:
    """Count the pairs whose preference is turned around in another one."""
    return int(find_overlap(swap_keys, pair_keys).sum())


def count_overlap(
    held_out: np.ndarray, sources: Iterable[str], trained_on: np.ndarray
) -> dict[str, int]:
    """Count, by source, the held-out pairs whose prompt is trained on too."""
    is_seen = find_overlap(held_out, trained_on)
    counts = Counter(name for name, seen in zip(sources, is_seen, strict=True) if seen)
    return dict(sorted(counts.items()))
