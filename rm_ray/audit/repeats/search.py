"""The search for repeated rows over any number of rows: on disk, a part in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from rm_ray.audit.repeats.matches import (
    KEYED,
    MATCH,
    SKETCHED,
    find_contradictions,
    find_duplicates,
    find_near_duplicates,
    keep_best,
)
from rm_ray.audit.repeats.partitions import Partitions
from rm_ray.audit.text.minhash import BANDS
from rm_ray.data.cache.exclusions import place_rows

KINDS = ("duplicates", "near_duplicates", "contradictions")


class RepeatSearch:
    """Keys and sketches of rows, and the rows that repeat, resemble or contradict others."""

    def __init__(self, folder: Path, num_rows: int) -> None:
        self._folder = folder
        self._num_rows = num_rows
        # A row has a key for each of its comparisons, of which a pair has one and a list many.
        expected = {"duplicates": num_rows, "contradictions": num_rows * BANDS}
        expected["near_duplicates"] = num_rows * BANDS
        self._keyed = {
            kind: Partitions(folder / kind, KEYED, count) for kind, count in expected.items()
        }
        self._sketches = (folder / "sketches.bin").open("wb")
        self._num_sketches = 0
        self._first_places: list[int] = []
        self._is_open = np.zeros(0, dtype=bool)

    @property
    def num_open(self) -> int:
        """Most rows that may resemble an earlier one which they were not compared with."""
        return int(self._is_open.sum())

    def add(self, table: pa.Table) -> None:
        """Add accepted rows, which have the schema of ``row_facts``."""
        if not len(table):
            return
        table = table.combine_chunks()
        places = place_rows(table["fragment"].to_numpy(), table["row"].to_numpy())
        self._first_places.append(int(places.min()))
        zeros = np.zeros(len(places), dtype=np.int64)
        self._add_keys("duplicates", table["labelled"].to_numpy(), places, zeros)
        keys, counts = _flatten(table, "compared")
        signs, _ = _flatten(table, "signs")
        self._add_keys("contradictions", keys, np.repeat(places, counts), signs)
        keys, counts = _flatten(table, "bands")
        numbers = self._num_sketches + np.arange(len(places))
        self._add_keys(
            "near_duplicates", keys, np.repeat(places, counts), np.repeat(numbers, counts)
        )
        sketched = np.zeros(len(places), dtype=SKETCHED)
        sketched["content"] = table["content"].to_numpy()
        for side in ("responses", "prompt"):
            values, _ = _flatten(table, f"{side}_sketch")
            sketched[side] = values.reshape(len(places), -1)
        self._sketches.write(sketched.tobytes())
        self._num_sketches += len(places)

    def _add_keys(self, kind: str, keys: np.ndarray, places: np.ndarray, extra: np.ndarray) -> None:
        records = np.empty(len(keys), dtype=KEYED)
        records["key"], records["place"], records["extra"] = keys, places, extra
        partitions = self._keyed[kind]
        partitions.add(records, (keys % np.uint64(partitions.count)).astype(np.int64))

    def find(self, kind: str, similarity: float) -> Iterator[np.ndarray]:
        """Yield the matches of one of ``KINDS``, one a row, in order of the rows."""
        searches: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "duplicates": find_duplicates,
            "contradictions": find_contradictions,
            "near_duplicates": lambda records: self._find_near_duplicates(records, similarity),
        }
        ordered = OrderedMatches(self._folder / f"{kind}-found", self._first_places, self._num_rows)
        for records in self._keyed[kind]:
            ordered.add(searches[kind](records))
        yield from ordered

    def _find_near_duplicates(self, records: np.ndarray, similarity: float) -> np.ndarray:
        """Return near duplicates, and note the rows that are left open."""
        found, left = find_near_duplicates(records, self._map_sketches(), similarity)
        if len(left):
            if not len(self._is_open):
                self._is_open = np.zeros(self._num_sketches, dtype=bool)
            self._is_open[left["extra"]] = True
        return found

    def _map_sketches(self) -> np.ndarray:
        self._sketches.close()
        if not self._num_sketches:
            return np.empty(0, dtype=SKETCHED)
        return np.memmap(self._sketches.name, dtype=SKETCHED, mode="r")


class OrderedMatches:
    """Matches on disk, put into the order of their rows."""

    def __init__(self, folder: Path, first_places: list[int], expected: int) -> None:
        self._partitions = Partitions(folder, MATCH, expected)
        shares = np.arange(1, self._partitions.count) / self._partitions.count
        known = np.sort(np.array(first_places, dtype=np.int64))
        self._bounds = known[(shares * len(known)).astype(np.int64)] if len(known) else known

    def add(self, matches: np.ndarray) -> None:
        """Add matches in any order."""
        self._partitions.add(matches, np.searchsorted(self._bounds, matches["place"], side="right"))

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the best match of each row, in order."""
        yield from map(keep_best, self._partitions)


def _flatten(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a list column, and how many each row has."""
    column = table[name].combine_chunks()
    return column.flatten().to_numpy(), column.value_lengths().to_numpy()
