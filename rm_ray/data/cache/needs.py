"""What an objective needs from a group, and groups that lack it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rm_ray.config.sections.objective import Need

_LACKS = {
    "labels": "no response is compared with another one or has a score",
    "comparisons": "no response is compared with another one",
    "wins": "no response is better than another one",
    "margins": "no comparison has a margin above 0",
    "scores": "no response has a score",
}


def find_lack(row: Mapping[str, Any], need: Need) -> str | None:
    """Return what a cache row lacks for an objective that needs ``need``; None if nothing.

    Probabilities and margins count as the cache stores them, in float32.
    """
    is_scored = not all(map(math.isnan, row["score"]))
    has = {
        "labels": is_scored or bool(row["better"]),
        "comparisons": bool(row["better"]),
        "wins": any(np.float32(each) > 0.5 for each in row["probability"]),
        "margins": any(np.float32(each) > 0 for each in row["margin"]),
        "scores": is_scored,
    }
    return None if has[need] else _LACKS[need]
