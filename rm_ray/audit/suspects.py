"""Rows whose labels are probably wrong: those that models learn to agree with last, or never.

A model learns what most labels say before it learns single wrong ones by heart, so a wrong label
keeps a high loss for longer: a mean over the epochs finds it even where the last one no longer does
(area under the margin, arXiv:2001.10528; the mean loss of O2U-Net, ICCV 2019). Here later epochs
weigh more, since an early model knows little. Models that were trained in another order, or from
other weights, learn the same rules but not the same exceptions: on average they tell wrong labels
from right ones better than one of them (arXiv:2401.06080). ``tests/benchmarks/mislabelled.py``
measures what is found.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rm_ray.audit.findings import Finding
from rm_ray.data.cache.exclusions import find_places, place_rows
from rm_ray.runs.row_losses import RowLosses

KIND = "mislabelled"
"""The kind of these findings."""

CHANCE = math.log(2)
"""Loss of a pair with equal rewards; above it a model disagrees with the label."""


@dataclass(frozen=True, kw_only=True)
class Suspects:
    """Rows whose labels are probably wrong."""

    findings: Iterable[Finding]
    """The worst first; can be read once."""
    num_examined: int
    """Rows that every model has a loss of, which are those that could be found."""


@dataclass(frozen=True, kw_only=True)
class JointLosses:
    """The losses of N rows under M models, above the least that each row's labels allow."""

    origins: tuple[str, ...]
    fragment: np.ndarray
    row: np.ndarray
    losses: np.ndarray
    """``[M, N]``: means over the epochs that each model was trained for, as ``mean_losses``."""
    late: np.ndarray
    """``[M, N]``: the highest of the later half of those epochs, as ``late_losses``."""

    def only(self, which: np.ndarray) -> JointLosses:
        """Return some of the rows; ``which`` is ``[N]`` bool."""
        return JointLosses(
            origins=self.origins,
            fragment=self.fragment[which],
            row=self.row[which],
            losses=self.losses[:, which],
            late=self.late[:, which],
        )


def mean_losses(found: RowLosses) -> np.ndarray:
    """Return each row's mean loss above its floor, ``[N]``; NaN if it has none.

    An epoch weighs as much as its number, from 1.
    """
    weights = np.arange(1.0, len(found.losses) + 1)
    known = ~np.isnan(found.losses)
    total = weights @ np.where(known, found.losses, 0)
    weight = weights @ known
    mean = np.divide(total, weight, out=np.full(len(weight), np.nan), where=weight > 0)
    excess: np.ndarray = mean - found.floor
    return excess


def late_losses(found: RowLosses) -> np.ndarray:
    """Return the highest loss above its floor in the later half of each row's epochs, ``[N]``.

    Of an odd number, the middle one is of that half. NaN if a row has none.
    """
    known = ~np.isnan(found.losses)
    from_last = known[::-1].cumsum(axis=0)[::-1]  # 1 for the last epoch that the row was in
    is_late = known & (2 * from_last <= known.sum(axis=0) + 1)
    highest = np.where(is_late, found.losses, -np.inf).max(axis=0)
    excess: np.ndarray = np.where(known.any(axis=0), highest - found.floor, np.nan)
    return excess


def join_losses(models: Sequence[RowLosses]) -> JointLosses:
    """Return the losses of the rows that every model knows, ordered by origin and row."""
    origins = tuple(dict.fromkeys(origin for found in models for origin in found.origins))
    keys, values = [], []
    for found in models:
        numbers = np.array([origins.index(origin) for origin in found.origins], dtype=np.int64)
        both = np.stack([mean_losses(found), late_losses(found)])
        known = np.flatnonzero(~np.isnan(both[0]))
        places = place_rows(numbers[found.fragment[known]], found.row[known])
        places, first = np.unique(places, return_index=True)  # a row may be there twice
        keys.append(places)
        values.append(both[:, known][:, first])
    common = functools.reduce(np.intersect1d, keys)
    joint = np.stack(
        [
            both[:, np.searchsorted(places, common)]
            for places, both in zip(keys, values, strict=True)
        ]
    )
    fragment, row = find_places(common)
    return JointLosses(
        origins=origins, fragment=fragment, row=row, losses=joint[:, 0], late=joint[:, 1]
    )


def suspicion(losses: np.ndarray) -> np.ndarray:
    """Return how suspect each row is, higher for worse, from its losses ``[M, N]``: ``[N]``."""
    mean: np.ndarray = losses.mean(axis=0)
    return mean


def find_most_suspect(joint: JointLosses, share: float) -> Suspects:
    """Return the most suspect rows, the worst first: at most a share of all.

    Rows whose label the models agree with all through the later half of their epochs are not
    suspect, however many are asked for. Agreement on average is not enough, since by the end a
    model knows wrong labels by heart; and in its first epochs it disagrees with many right ones.
    """
    scores = suspicion(joint.losses)
    order = np.argsort(-scores, kind="stable")
    most = math.floor(share * len(scores) + 1e-6)  # 0.07 x 100 is above 7, 0.29 x 100 below 29
    order = order[joint.late.mean(axis=0)[order] > CHANCE][:most]
    return Suspects(findings=_findings(joint, scores, order), num_examined=len(scores))


def _findings(joint: JointLosses, scores: np.ndarray, order: np.ndarray) -> Iterator[Finding]:
    for place in order.tolist():
        yield Finding(
            source=joint.origins[joint.fragment[place]],
            row=int(joint.row[place]),
            kind=KIND,
            score=float(scores[place]),
            detail=_describe(joint.losses[:, place], joint.late[:, place]),
        )


def _describe(losses: np.ndarray, late: np.ndarray) -> str:
    """Return what a person needs to know of a row's losses under the models, both ``[M]``."""
    mean = (
        f"mean loss {losses.mean():.2f}, highest in later epochs {late.mean():.2f} "
        f"(chance: {CHANCE:.2f})"
    )
    if len(losses) == 1:
        return mean
    against = int((losses > CHANCE).sum())
    return f"{mean}; on average {against} of {len(losses)} models disagree with the label"
