"""Rows that ``data.exclude`` names, which are never trained on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rm_ray.data.sources.decompression import open_bytes
from rm_ray.errors import InputError

logger = logging.getLogger(__name__)

_FRAGMENT = np.int64(1 << 40)
"""Rows of a fragment that have distinct places; a place is fragment x this + row."""


@dataclass(frozen=True, kw_only=True)
class Exclusions:
    """The rows of a mixture that files name, with the reason for each."""

    places: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """``[E]``, sorted; see ``place_rows``."""
    why: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    """``[E]``: the number of each row's reason."""
    reasons: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    """Of the mixture's fragments."""
    hash: str = ""
    """Of the files' contents; empty if there are none."""

    @classmethod
    def read(cls, files: Sequence[str], origins: Sequence[str]) -> Exclusions:
        """Read files of JSON Lines with ``origin``, ``row`` and, if given, ``reason``.

        ``origins`` are those of the mixture's fragments. Lines about other sources are left out.

        Raises:
            InputError: a file cannot be read, a line names no row, or a file names rows of none of
                these sources.
        """
        if not files:
            return cls()
        digest = hashlib.sha256()
        numbers: dict[str, list[int]] = {}
        for number, origin in enumerate(origins):
            numbers.setdefault(origin, []).append(number)
        reasons: dict[str, int] = {}
        places: list[int] = []
        why: list[int] = []
        for name in files:
            known, unknown = len(places), Counter[str]()
            with open_bytes(name if "://" in name else os.path.expanduser(name)) as stream:
                for line, text in enumerate(stream, start=1):
                    digest.update(text)
                    if not text.strip():
                        continue
                    origin, row, reason = _parse(text, f"{name}, line {line}")
                    if origin not in numbers:
                        unknown[origin] += 1
                    for fragment in numbers.get(origin, ()):
                        places.append(fragment * int(_FRAGMENT) + row)
                        why.append(reasons.setdefault(reason, len(reasons)))
            digest.update(b"\0")
            if unknown and len(places) == known:
                raise InputError(
                    f"data.exclude {name} names rows of {', '.join(list(unknown)[:4])}, but none "
                    f"of the training data, which is {', '.join(list(numbers)[:4])}; the names "
                    "must be the same, so give the data by the path that the file has, or leave "
                    "the file out"
                )
            if unknown:
                logger.warning(
                    "data.exclude %s: %d rows are of other sources, and ignored: %s",
                    name,
                    unknown.total(),
                    ", ".join(list(unknown)[:4]),
                )
        found, first = np.unique(np.array(places, dtype=np.int64), return_index=True)
        return cls(
            places=found,
            why=np.array(why, dtype=np.int32)[first],
            reasons=tuple(reasons),
            origins=tuple(origins),
            hash=digest.hexdigest(),
        )

    def warn_of_missing(self, num_found: int) -> None:
        """Warn if the data has fewer of these rows than the files name."""
        missing = len(self.places) - num_found
        if missing:
            logger.warning(
                "data.exclude: %d of the %d rows that it names are not in the training data; they "
                "are outside the share of their source, or the files have changed since",
                missing,
                len(self.places),
            )

    def find(self, fragments: np.ndarray, rows: np.ndarray) -> list[str | None]:
        """Return why each of ``[N]`` rows is excluded; None if it is not."""
        if not len(self.places):
            return [None] * len(rows)
        places = place_rows(fragments, rows)
        at = np.minimum(np.searchsorted(self.places, places), len(self.places) - 1)
        is_found = self.places[at] == places
        return [
            self.reasons[self.why[i]] if found else None
            for i, found in zip(at.tolist(), is_found.tolist(), strict=True)
        ]

    def find_in(self, origin: str, rows: np.ndarray) -> list[str | None]:
        """Return why each of ``[N]`` rows of one origin is excluded; None if it is not."""
        if origin not in self.origins:
            return [None] * len(rows)
        return self.find(np.full(len(rows), self.origins.index(origin)), rows)


NO_EXCLUSIONS = Exclusions()


def place_rows(fragments: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return one number for each of ``[N]`` rows, in order of fragment and row: int64."""
    return fragments.astype(np.int64) * _FRAGMENT + rows.astype(np.int64)


def find_places(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return fragments and rows of places."""
    return places // _FRAGMENT, places % _FRAGMENT


def _parse(text: bytes, where: str) -> tuple[str, int, str]:
    """Return origin, row and reason of a line.

    Raises:
        InputError: it has no such origin or row.
    """
    try:
        line = json.loads(text)
    except ValueError as error:
        raise InputError(f"data.exclude {where} is not JSON: {error}") from None
    match line:
        case {"origin": str(origin), "row": int(row), **rest}:
            reason = rest.get("reason", "")
            if type(row) is int and 0 <= row < _FRAGMENT and isinstance(reason, str):
                return origin, row, reason
    raise InputError(
        f"data.exclude {where} is {text[:80].decode(errors='replace')!r}; a line names a row, "
        'as in {"origin": "pairs.jsonl", "row": 7, "reason": "duplicates"}'
    )
