"""Retention of checkpoints: the newest, the best, and those that the Hub still needs."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rm_ray.config.sections.hub import HubConfig
from rm_ray.runs.checkpoint_names import step_of
from rm_ray.runs.layout import REFERENCE_REWARDS
from rm_ray.runs.manifest import Checkpoint
from rm_ray.runs.versions import Version, Versions
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)

SPARE = 2
"""Checkpoints are held for the Hub only while this many more would fit in the storage."""


def kept_names(
    intact: Sequence[Checkpoint],
    *,
    keep: int,
    best_by: str | None,
    held: Collection[str] = (),
) -> set[str]:
    """Return the names of the checkpoints to keep: ``choose_kept`` plus ``held`` for the Hub."""
    chosen = choose_kept(intact, keep=keep, best_by=best_by)
    return {checkpoint.name for checkpoint in chosen} | set(held)


def choose_kept(
    intact: Sequence[Checkpoint], *, keep: int, best_by: str | None
) -> list[Checkpoint]:
    """Return the intact checkpoints to keep, newest first.

    These are the newest ``keep``; with ``best_by``, the newest one and the best, ``keep`` in total.
    """
    newest_first = sorted(intact, key=_name, reverse=True)
    if best_by is None:
        return newest_first[:keep]
    newest, best = newest_first[:1], rank_by(newest_first, best_by)
    kept = [*newest, *(found for found in best if found not in newest)][:keep]
    return [found for found in newest_first if found in kept]


def rank_by(intact: Sequence[Checkpoint], metric: str) -> list[Checkpoint]:
    """Sort checkpoints by a metric, best first.

    Among equals the earliest comes first; among those without the metric, the newest.
    """

    def place(found: Checkpoint) -> tuple[float, int]:
        bad, step = badness(found.manifest.metrics, metric), found.manifest.step
        return (bad, step) if math.isfinite(bad) else (bad, -step)

    return sorted(intact, key=place)


def badness(metrics: Mapping[str, float], metric: str) -> float:
    """Return a number that is lower for a better model; infinite if the metric is not finite."""
    value = metrics.get(metric, math.nan)
    sign = 1 if metric.split("/")[2:] == ["loss"] else -1
    return sign * value if math.isfinite(value) else math.inf


def best_step(result: Mapping[str, Any], *, best_by: str | None) -> int:
    """Return the step of a finished run's best model, from its ``result.json``.

    Without ``best_by`` or a best checkpoint, this is the last step.
    """
    step = step_of(best_name(result)) if best_by is not None else 0
    return step or int(result["steps"])


def best_name(result: Mapping[str, Any]) -> str:
    """Return the folder name of a finished run's best checkpoint; empty if there is none."""
    return str(result["best_checkpoint"] or "").rpartition("/")[2]


def find_wanted(
    checkpoints: Sequence[Checkpoint],
    versions: Mapping[int, Version],
    hub: HubConfig,
    *,
    best_by: str | None,
    last_step: int,
) -> list[Checkpoint]:
    """Return the checkpoints that should become versions but have not yet, oldest first.

    The last step is excluded: it is published from the run's export, once its model card is
    complete. So are checkpoints without reference rewards, because clients cannot be checked
    against them.
    """
    with_rewards = [found for found in checkpoints if REFERENCE_REWARDS in found.manifest.files]
    newest_of_step = {found.manifest.step: found for found in sorted(with_rewards, key=_name)}
    candidates = {step: found for step, found in newest_of_step.items() if step < last_step}
    steps = wanted_steps(
        {step: found.manifest.metrics for step, found in candidates.items()},
        {step: version.metrics for step, version in versions.items()},
        every=hub.every,
        best_by=best_by,
    )
    return [candidates[step] for step in steps]


def wanted_steps(
    candidates: Mapping[int, Mapping[str, float]],
    versions: Mapping[int, Mapping[str, float]],
    *,
    every: str,
    best_by: str | None,
) -> list[int]:
    """Return the steps of ``candidates`` that the Hub should have but lacks, in order.

    Both mappings are from step to metrics. ``every`` is ``hub.every``: all candidates
    (``checkpoint``), those better than all earlier ones (``best``), or none before the end
    (``final``).
    """
    if every == "final":
        return []
    if every == "checkpoint" or best_by is None:
        return sorted(candidates.keys() - versions.keys())
    wanted, least = [], math.inf
    metrics = {**candidates, **versions}
    for step in sorted(metrics):
        score = badness(metrics[step], best_by)
        if score < least:
            least = score
            wanted += [step] if step not in versions else []
    return wanted


def has_spare_room(free_bytes: int | None, size: int) -> bool:
    """Return whether a storage has room for ``SPARE`` more checkpoints of ``size`` bytes."""
    return free_bytes is None or free_bytes >= SPARE * size


def choose_held(wanted: Sequence[Checkpoint], free_bytes: int | None) -> set[str]:
    """Return the names of the wanted checkpoints to keep until they are ready to publish.

    These are all of them, or none if the storage is nearly full: training comes first.
    """
    if wanted and not has_spare_room(free_bytes, max(found.size for found in wanted)):
        return set()
    return {found.name for found in wanted}


@dataclass(frozen=True, kw_only=True)
class HubHold:
    """Protects checkpoints from deletion until the mirror has prepared them for the Hub."""

    run_folder: Storage
    hub: HubConfig
    best_by: str | None
    """``checkpoint.keep_best_by``."""
    last_step: int
    """Total steps of the run."""
    _known: dict[int, Version] = field(default_factory=dict)

    def names(self, intact: Sequence[Checkpoint]) -> set[str]:
        """Return the names of the intact checkpoints that must stay for now."""
        if self.hub.repo_id is None:
            return set()
        versions = Versions(run_folder=self.run_folder, repo_id=self.hub.repo_id)
        self._known.update(versions.read(self._known))
        wanted = find_wanted(
            intact, self._known, self.hub, best_by=self.best_by, last_step=self.last_step
        )
        held = choose_held(wanted, self.run_folder.free_bytes())
        if len(held) < len(wanted):
            logger.warning(
                "%d checkpoints may be deleted before they are published: %s is nearly full",
                len(wanted),
                self.run_folder.path,
            )
        return held


def _name(found: Checkpoint) -> str:
    return found.name
