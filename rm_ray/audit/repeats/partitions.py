"""Records on disk, divided by a number, so that a part of them fits in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

RECORDS_AT_ONCE = 1 << 21
"""Records that are sorted together, of some 30 bytes each."""

MOST_PARTITIONS = 512
"""Files that are open at once."""


class Partitions:
    """Files of records, each file with all records of some keys."""

    def __init__(self, folder: Path, kind: np.dtype[Any], expected: int) -> None:
        folder.mkdir(parents=True)
        self.kind = kind
        self.count = min(max(-(-expected // RECORDS_AT_ONCE), 1), MOST_PARTITIONS)
        self.paths = [folder / f"{number:03d}.bin" for number in range(self.count)]
        self._open = ExitStack()
        self._files = [self._open.enter_context(path.open("wb")) for path in self.paths]

    def add(self, records: np.ndarray, partition: np.ndarray) -> None:
        """Append N records to their partitions, which are ``[N]`` integers below ``count``."""
        if self.count == 1:
            self._files[0].write(records.tobytes())
            return
        order = np.argsort(partition, kind="stable")
        ends = np.searchsorted(partition[order], np.arange(self.count + 1))
        for number in np.unique(partition).tolist():
            members = order[ends[number] : ends[number + 1]]
            self._files[number].write(records[members].tobytes())

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the records of one partition after another, and delete their files."""
        self._open.close()
        for path in self.paths:
            yield np.fromfile(path, dtype=self.kind)
            path.unlink()
