"""Rows whose labels are probably wrong: those that models learn to agree with last, or never.

A model learns what most labels say before it learns single wrong ones by heart, so a wrong label
keeps a high loss for longer: a mean over the epochs finds it even where the last one no longer does
(area under the margin, arXiv:2001.10528; the mean loss of O2U-Net, ICCV 2019). Here later epochs
weigh more, since an early model knows little. Models that were trained in another order, or from
other weights, learn the same rules but not the same exceptions: on average they tell wrong labels
from right ones better than one of them (arXiv:2401.06080). ``tests/benchmarks/mislabelled.py``
measures what is found. On its planted pairs, ranks within an epoch, epochs that weigh the same, and
a spread over models taken off or divided by did not find more; margins instead of losses found as
many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rm_ray.audit.findings import Finding
from rm_ray.runs.row_losses import RowLosses

KIND = "mislabelled"
"""The kind of these findings."""

CHANCE = math.log(2)
"""Loss of a pair with equal rewards; above it a model disagrees with the label."""


@dataclass(frozen=True, kw_only=True)
class JointLosses:
    """The losses of N rows under M models, above the least that each row's labels allow."""

    origins: tuple[str, ...]
    fragment: np.ndarray
    row: np.ndarray
    losses: np.ndarray
    """``[M, N]``: means over the epochs that each model was trained for, as ``mean_losses``."""

    def only(self, which: np.ndarray) -> JointLosses:
        """Return some of the rows; ``which`` is ``[N]`` bool."""
        return JointLosses(
            origins=self.origins,
            fragment=self.fragment[which],
            row=self.row[which],
            losses=self.losses[:, which],
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


def join_losses(models: Sequence[RowLosses]) -> JointLosses:
    """Return the losses of the rows that every model knows, ordered by origin and row."""
    origins = tuple(dict.fromkeys(origin for found in models for origin in found.origins))
    keys, values = [], []
    for found in models:
        numbers = np.array([origins.index(origin) for origin in found.origins], dtype=np.int64)
        mean = mean_losses(found)
        known = np.flatnonzero(~np.isnan(mean))
        place = np.stack([numbers[found.fragment[known]], found.row[known]], axis=1)
        place, first = np.unique(place, axis=0, return_index=True)  # a row may be there twice
        keys.append(place)
        values.append(mean[known][first])
    every, counts = np.unique(np.concatenate(keys), axis=0, return_counts=True)
    common = every[counts == len(models)]
    losses = [value[_find(place, common)] for place, value in zip(keys, values, strict=True)]
    return JointLosses(
        origins=origins,
        fragment=common[:, 0],
        row=common[:, 1],
        losses=np.stack(losses),
    )


def _find(places: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the positions of ``wanted`` in ``places``, both ``[., 2]`` sorted and unique."""
    _, codes = np.unique(np.concatenate([places, wanted]), axis=0, return_inverse=True)
    codes = codes.reshape(-1)
    positions: np.ndarray = np.searchsorted(codes[: len(places)], codes[len(places) :])
    return positions


def suspicion(losses: np.ndarray) -> np.ndarray:
    """Return how suspect each row is, higher for worse, from its losses ``[M, N]``: ``[N]``."""
    mean: np.ndarray = losses.mean(axis=0)
    return mean


def find_most_suspect(joint: JointLosses, share: float) -> list[Finding]:
    """Return the most suspect share of the rows, the worst first.

    Rows whose label the models agree with on average are not suspect, however many are asked for.
    """
    scores = suspicion(joint.losses)
    most = math.ceil(share * len(scores))
    order = np.argsort(-scores, kind="stable")[:most]
    return [
        Finding(
            source=joint.origins[joint.fragment[place]],
            row=int(joint.row[place]),
            kind=KIND,
            score=float(scores[place]),
            detail=_describe(joint.losses[:, place]),
        )
        for place in order.tolist()
        if joint.losses[:, place].mean() > CHANCE
    ]


def _describe(losses: np.ndarray) -> str:
    """Return what a person needs to know of a row's losses under the models, ``[M]``."""
    mean = f"mean loss {losses.mean():.2f} (chance: {CHANCE:.2f})"
    if len(losses) == 1:
        return mean
    against = int((losses > CHANCE).sum())
    return f"{mean}; {against} of {len(losses)} models disagree with the label"
