"""Names of sources and subsets -> parts of metrics' names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable


def metric_names(labels: Iterable[str]) -> dict[str, str]:
    """Return a distinct name for each label, of the characters that every tracker allows.

    A path or repository is named by its last part, unless that is another one's too. Of labels
    that are still alike, all but the first are numbered.
    """
    labels = sorted(set(labels))
    short = {label: _plain(label.rstrip("/").rpartition("/")[2]) for label in labels}
    counts = Counter(short.values())
    names: dict[str, str] = {}
    for label in labels:
        wanted = short[label] if counts[short[label]] == 1 else _plain(label)
        name, number = wanted, 1
        while name in names.values():
            number += 1
            name = f"{wanted}_{number}"
        names[label] = name
    return names


def _plain(label: str) -> str:
    return re.sub(r"[^a-z0-9.-]+", "_", label.lower()).strip("_.") or "unnamed"
