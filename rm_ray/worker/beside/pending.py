"""Pending checkpoints -> late evaluations, one at a time, each tried again if it fails.

``checkpoint in the run's folder -> tried -> samples and reports -> record``. Each arrow ends with a
file, and the record is written last, so whatever is killed, the next look continues.
"""

from __future__ import annotations

import json
import logging
import math
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from rm_ray.batches.stream import PlannedGroups
from rm_ray.runs.checkpoint_names import list_checkpoints
from rm_ray.runs.history import Record
from rm_ray.runs.late_evaluations import LateEvaluation, LateEvaluations
from rm_ray.runs.layout import STATE
from rm_ray.runs.manifest import Checkpoint, find_fault, is_intact, read_checkpoint
from rm_ray.storage import Storage
from rm_ray.tracking.channel import ChannelWriter
from rm_ray.tracking.samples import read_samples
from rm_ray.train.progress import Progress
from rm_ray.worker.evaluation import describe_evaluation
from rm_ray.worker.job import TrainJob
from rm_ray.worker.recorder import join_metrics, write_set

if TYPE_CHECKING:
    from rm_ray.worker.beside.evaluator import Evaluator

logger = logging.getLogger(__name__)

BEHIND = 4
"""By how many more checkpoints wait when training is faster than the evaluator."""

MOST_TRIES = 3
"""How often one attempt tries a checkpoint; killed tries count, the storage's failures do not."""


@dataclass(kw_only=True)
class PendingEvaluations:
    """Evaluates the checkpoints of one run that wait for it."""

    job: TrainJob
    streams: Mapping[str, PlannedGroups]
    channel: ChannelWriter
    build: Callable[[TrainJob, Mapping[str, PlannedGroups]], Evaluator]
    on_progress: Callable[[], None] = lambda: None
    """Called when a file of a checkpoint is checked."""
    after_failure: Callable[[], None] = lambda: None
    """Called after a try has failed, unless the storage did."""
    _checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    _has_evaluated: bool = False
    _fewest: float = math.inf
    """Least number of checkpoints that waited, since the first evaluation."""
    _is_behind: bool = False

    @cached_property
    def late(self) -> LateEvaluations:
        """What the run's folder says of late evaluations."""
        return late_evaluations(self.job)

    @cached_property
    def evaluator(self) -> Evaluator:
        """The model, built when the first checkpoint is there."""
        return self.build(self.job, self.streams)

    def replay(self) -> None:
        """Send what earlier processes evaluated, since MLflow may have missed some of it."""
        records = self.late.records
        self.channel.record(*records)
        if records:
            for table in read_samples(self.job.run_folder):
                self.channel.table(*table)

    def run_next(self) -> bool:
        """Try the next pending checkpoint; return whether one was evaluated or given up.

        The oldest comes first, and those that failed after the others, which need not wait for
        them.

        Raises:
            OSError: the storage fails; this does not count as a try.
        """
        late = self.late.read()
        pending = find_pending(self.job.run_folder, self.late, self._checkpoints)
        self._warn_if_behind(len(pending))
        pending += self._find_left_behind(late)
        if not pending:
            return False
        begun = {found.name: self._begun(late, found.manifest.step) for found in pending}

        def place(found: Checkpoint) -> tuple[int, int]:
            before = begun[found.name]
            return before.tries if before.problem else 0, found.manifest.step

        found = min(pending, key=place)
        return self._try(found, begun[found.name])

    def _warn_if_behind(self, waiting: int) -> None:
        """Say once that training is faster than the evaluator."""
        if self._is_behind or not self._has_evaluated:
            return  # they may have waited for this process
        self._fewest = min(self._fewest, waiting)
        if waiting < self._fewest + BEHIND:
            return
        self._is_behind = True
        faster = "" if self.job.use_gpu else "; to evaluate faster, raise evaluation.cpus"
        logger.warning(
            "evaluations are slower than training: %d checkpoints wait, and are kept meanwhile. To "
            "evaluate fewer, raise evaluation.every_steps%s",
            waiting,
            faster,
        )

    def _find_left_behind(self, late: Mapping[int, LateEvaluation]) -> list[Checkpoint]:
        """Return the checkpoints that an earlier attempt gave up."""
        steps = {
            step
            for step, one in late.items()
            if one.is_given_up and one.record is None and one.attempt != self.job.attempt
        }
        found = {each.manifest.step: each for _, each in sorted(self._checkpoints.items())}
        return [
            found[step]
            for step in sorted(steps & found.keys())
            if is_intact(self.job.run_folder, found[step])
        ]

    def _begun(self, late: Mapping[int, LateEvaluation], step: int) -> LateEvaluation:
        """Return what this attempt has done about a step so far."""
        before = late.get(step)
        if before is not None and before.attempt == self.job.attempt:
            return before
        return LateEvaluation(step=step, attempt=self.job.attempt)

    def _try(self, found: Checkpoint, before: LateEvaluation) -> bool:
        if before.tries >= MOST_TRIES:
            killed = f"the evaluator was killed, or hung, {before.tries} times"
            self._give_up(replace(before, problem=before.problem or killed))
            return True
        if before.tries and not before.problem:
            logger.warning(
                "the evaluator was killed, or hung, at step %d, which is tried again; the stacks "
                "of one that hung are in its log on its machine",
                before.step,
            )
        now = replace(before, tries=before.tries + 1)
        self.late.write(now)
        try:
            record = self._evaluate(found)
        except FileNotFoundError:
            if self.job.run_folder.exists(found.name):
                raise
            logger.warning("%s was deleted before it was evaluated", found.name)
            return True
        except OSError:
            with suppress(OSError):
                self.late.write(before)
            raise
        except Exception as error:  # nothing here may stop training
            problem = str(error) or repr(error)
            logger.debug("%s", traceback.format_exc())
            failed, is_last = replace(now, problem=problem), now.tries >= MOST_TRIES
            if is_last:
                self._give_up(failed)
            else:
                logger.warning(
                    "step %d could not be evaluated, trying again: %s", now.step, problem
                )
                self.late.write(failed)
            self.after_failure()
            return is_last
        self._has_evaluated = True
        self.late.write(replace(now, problem="", record=record))
        self.channel.record(record)
        return True

    def _give_up(self, failed: LateEvaluation) -> None:
        self.late.write(replace(failed, is_given_up=True))
        logger.warning(
            "step %d is not evaluated, after %d tries: %s. Training continues; another attempt at "
            "the run tries again",
            failed.step,
            failed.tries,
            failed.problem,
        )

    def _evaluate(self, found: Checkpoint) -> Record:
        """Evaluate a checkpoint, and write samples and reports; return its record."""
        job, step = self.job, found.manifest.step
        if fault := find_fault(
            job.run_folder, found.name, found.manifest, on_file=self.on_progress
        ):
            raise ValueError(f"{found.name} is not intact: {fault}")
        evaluated = self.evaluator.evaluate(found)
        progress = read_progress(job.run_folder, found)
        for held_out, evaluation in evaluated:
            write_set(
                held_out,
                evaluation,
                step,
                models_ties=job.config.objective.models_ties,
                write=job.run_folder.write_json,
                channel=self.channel,
            )
            logger.info("%s", describe_evaluation(held_out, evaluation, step, unit=job.unit))
        return Record(
            step=step,
            kind="eval",
            episode=progress.episode,
            hours=progress.seconds / 3600,
            metrics=join_metrics(evaluated),
        )


def late_evaluations(job: TrainJob) -> LateEvaluations:
    """Return a job's late evaluations."""
    return LateEvaluations(run_folder=job.run_folder, config=job.config, last_step=job.steps.total)


def find_pending(
    run_folder: Storage, late: LateEvaluations, known: dict[str, Checkpoint]
) -> list[Checkpoint]:
    """Return the intact checkpoints that wait for their evaluation, oldest first.

    ``known`` keeps the manifests that were read, by name.
    """
    names = list_checkpoints(run_folder)
    for name in known.keys() - set(names):
        del known[name]
    for name in names:
        if name not in known and (found := read_checkpoint(run_folder, name)) is not None:
            known[name] = found
    intact = [found for found in known.values() if is_intact(run_folder, found)]
    return late.find_pending(intact)


def read_progress(run_folder: Storage, found: Checkpoint) -> Progress:
    """Return a run's progress at a checkpoint."""
    return Progress(**json.loads(run_folder.read_text(f"{found.name}/{STATE}"))["progress"])
