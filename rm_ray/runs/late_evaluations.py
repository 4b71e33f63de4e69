"""Evaluations beside training: their results, which arrive after their checkpoint.

``late_evaluations/step-*.json`` in the run's folder holds one step's: first how often it was tried,
in the end its record. A checkpoint is pending as long as its file has none, so whoever looks next
finds what is missing, after any interruption. The files are the truth: a checkpoint's history and
manifest lack these metrics.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from rm_ray.config.train_config import TrainConfig
from rm_ray.runs.history import History, Record
from rm_ray.runs.manifest import Checkpoint
from rm_ray.runs.retention import choose_held
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)

FOLDER = "late_evaluations"


@dataclass(frozen=True, kw_only=True)
class LateEvaluation:
    """The evaluation of one step's checkpoint: done, given up, or still to be done."""

    step: int
    attempt: int = 0
    """The attempt at the run that tried it last."""
    tries: int = 0
    """How often that attempt has begun it."""
    problem: str = ""
    """Why it failed the last time; empty if it has not, or was killed."""
    is_given_up: bool = False
    """Whether that attempt will not try it again."""
    record: Record | None = None
    """Its metrics, once it is done."""

    @property
    def is_settled(self) -> bool:
        """Whether nobody has to wait for it."""
        return self.record is not None or self.is_given_up

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> LateEvaluation:
        """Parse what ``LateEvaluations.write`` wrote."""
        record = fields.pop("record")
        return cls(**fields, record=None if record is None else Record(**record))


def is_due(config: TrainConfig, step: int, *, last_step: int) -> bool:
    """Return whether a step's checkpoint is evaluated beside training.

    The steps are those that training itself would evaluate, so an attempt's last checkpoint before
    a stop is left out unless it was due anyway.
    """
    evaluation, checkpoint = config.evaluation, config.checkpoint
    if evaluation.where == "within":
        return False
    ranks = (checkpoint.keep_best_by or "").startswith("eval/")
    if step == last_step:
        return evaluation.at_end or ranks
    if checkpoint.every_steps == 0 or step % checkpoint.every_steps:
        return False
    return ranks or step % (evaluation.every_steps or checkpoint.every_steps) == 0


@dataclass(frozen=True, kw_only=True)
class LateEvaluations:
    """The late evaluations of one run, read from its folder."""

    run_folder: Storage
    config: TrainConfig
    last_step: int
    """Total steps of the run."""
    _known: dict[int, LateEvaluation] = field(default_factory=dict)
    """Those that are done and will not change."""

    def read(self) -> dict[int, LateEvaluation]:
        """Return all that were begun, by step."""
        found = read_late_evaluations(self.run_folder, self._known)
        self._known.update({step: one for step, one in found.items() if one.record is not None})
        return found

    def write(self, one: LateEvaluation) -> None:
        """Write a step's file, replacing any earlier one."""
        self.run_folder.write_json(f"{FOLDER}/step-{one.step:08d}.json", asdict(one))

    @property
    def records(self) -> list[Record]:
        """The records of all that are done, by step."""
        return _records_of(self.read())

    def find_pending(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Return the checkpoints that wait for their evaluation, oldest first, one for each step.

        One that training itself evaluated, before the setting changed, does not wait.
        """
        if self.config.evaluation.where == "within":
            return []
        late = self.read()
        newest = {found.manifest.step: found for found in sorted(checkpoints, key=_name)}
        return [
            found
            for step, found in sorted(newest.items())
            if is_due(self.config, step, last_step=self.last_step)
            and not (step in late and late[step].is_settled)
            and not any(name.startswith("eval/") for name in found.manifest.metrics)
        ]

    def add_metrics(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Return checkpoints with the metrics of their late evaluations."""
        return add_late_metrics(checkpoints, self.records)

    def choose_comparable(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Return the checkpoints before the first pending one, with their metrics.

        Of those it is known whether each is better than all before it.
        """
        pending = self.find_pending(checkpoints)
        first = pending[0].manifest.step if pending else self.last_step + 1
        return self.add_metrics([each for each in checkpoints if each.manifest.step < first])

    def choose_held(self, intact: Sequence[Checkpoint]) -> set[str]:
        """Return the names of the pending checkpoints, which must stay until they are evaluated.

        If the storage is nearly full, these are none: training comes first.
        """
        pending = self.find_pending(intact)
        held = choose_held(pending, self.run_folder.free_bytes()) if pending else set()
        if len(held) < len(pending):
            logger.warning(
                "%d checkpoints may be deleted before they are evaluated: %s is nearly full",
                len(pending),
                self.run_folder.path,
            )
        return held

    def merge_into(self, history: History, *, until: int | None = None) -> History:
        """Return a history with the late records up to a step, each after its own step's."""
        records = [one for one in self.records if until is None or one.step <= until]
        return merge_records(history, records)


_NONE: Mapping[int, LateEvaluation] = MappingProxyType({})


def read_late_evaluations(
    run_folder: Storage, known: Mapping[int, LateEvaluation] = _NONE
) -> dict[int, LateEvaluation]:
    """Return a run's late evaluations by step; those in ``known`` are not read again."""
    found = dict[int, LateEvaluation]()
    for entry in run_folder.list(FOLDER):
        if not re.fullmatch(r"step-\d+\.json", entry.name):
            continue  # a draft
        step = int(entry.name.removesuffix(".json").rpartition("-")[2])
        if one := known.get(step) or _read(run_folder, entry.name):
            found[step] = one
    return dict(sorted(found.items()))


def read_records(run_folder: Storage) -> list[Record]:
    """Return the records of a run's late evaluations, by step; there are none without any."""
    return _records_of(read_late_evaluations(run_folder))


def _records_of(late: Mapping[int, LateEvaluation]) -> list[Record]:
    return [one.record for one in late.values() if one.record is not None]


def add_late_metrics(
    checkpoints: Sequence[Checkpoint], records: Iterable[Record]
) -> list[Checkpoint]:
    """Return checkpoints with the metrics of the late records of their steps."""
    late = {record.step: record.metrics for record in records}

    def complete(found: Checkpoint) -> Checkpoint:
        manifest = found.manifest
        if manifest.step not in late:
            return found
        metrics = {**manifest.metrics, **late[manifest.step]}
        return replace(found, manifest=replace(manifest, metrics=metrics))

    return [complete(found) for found in checkpoints]


def merge_records(history: History, late: Iterable[Record]) -> History:
    """Return a history with late records, each in the place that it would have had in time.

    A step that the history has an evaluation of keeps it.
    """
    evaluated = {record.step for record in history.records if record.kind == "eval"}
    merged = list(history.records)
    for record in late:
        if record.step in evaluated:
            continue
        earlier = [i for i, other in enumerate(merged) if other.step <= record.step]
        merged.insert(max(earlier, default=-1) + 1, record)
    return History(merged)


def describe_steps(steps: Sequence[int], most: int = 5) -> str:
    """Return steps in words: 'step 8', 'steps 8, 12 and 16'."""
    shown = [f"{step:,}" for step in steps[:most]]
    last = f"{len(steps) - most:,} more" if len(steps) > most else shown.pop()
    return f"step{'s' * (len(steps) > 1)} {' and '.join(filter(None, [', '.join(shown), last]))}"


def _read(run_folder: Storage, name: str) -> LateEvaluation | None:
    try:
        return LateEvaluation.from_json(run_folder.read_json(f"{FOLDER}/{name}"))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning("%s/%s is unreadable, evaluating again: %s", FOLDER, name, error)
        return None


def _name(found: Checkpoint) -> str:
    return found.name
