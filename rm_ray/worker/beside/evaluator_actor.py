"""The evaluator as a Ray actor, on resources that the workers leave free."""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import ray

from rm_ray.batches.stream import PlannedGroups
from rm_ray.cluster.placement import beside_the_workers
from rm_ray.runs.checkpoint_names import list_checkpoints
from rm_ray.runs.layout import RUN
from rm_ray.storage import Storage
from rm_ray.tracking.channel import ChannelWriter
from rm_ray.worker.beside.pulse import Pulse
from rm_ray.worker.job import TrainJob

if TYPE_CHECKING:
    from rm_ray.worker.beside.pending import PendingEvaluations

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0

AFTER_FAILURE_S = 5.0
"""Pause in seconds after a failure."""


@dataclass(kw_only=True)
class Failures:
    """Failures of everything that an evaluator tries, one after another."""

    patience_s: float
    """Seconds for which they may last."""
    _problem: str = ""
    _since: float = 0.0
    _newest: float = 0.0
    _reported: set[str] = field(default_factory=set)

    def add(self, error: Exception) -> None:
        """Add one; each kind is reported once."""
        self._newest = time.monotonic()
        self._since = self._since if self._problem else self._newest
        self._problem = str(error) or repr(error)
        kind = f"{type(error).__name__}{str(error)[:60]}"
        if kind not in self._reported:
            self._reported.add(kind)
            logger.warning("%s. Training continues; evaluations are tried again", self._problem)
            logger.debug("%s", "".join(traceback.format_exception(error)))

    def end(self) -> None:
        """Forget them: something has worked."""
        self._problem = ""

    @property
    def lasting(self) -> str:
        """The newest one, if they have lasted longer than ``patience_s``; else empty.

        An evaluation that goes on for long after a failure is none.
        """
        is_long = self._newest - self._since > self.patience_s
        return self._problem if is_long else ""


class CheckpointEvaluator:
    """Evaluates a run's checkpoints in a thread, until it is killed."""

    def __init__(self, channel: str, job: TrainJob, streams: Mapping[str, PlannedGroups]) -> None:
        os.nice(19)  # yield shared CPUs to training
        self._channel, self._job, self._streams = channel, job, streams
        self._failures = Failures(patience_s=job.config.checkpoint.storage_patience_s)
        self._pulse = Pulse()
        threading.Thread(target=self._work, name="evaluator", daemon=True).start()

    def answer(self) -> str:
        """Return the failure that has kept this actor from evaluating for too long, if any."""
        return self._failures.lasting

    def _work(self) -> None:
        while True:
            try:
                self._pulse.move()
                with ChannelWriter(ray.get_actor(self._channel)) as channel:
                    self._evaluate_all(channel)
            except Exception as error:  # the channel is not there
                self._failures.add(error)
            time.sleep(AFTER_FAILURE_S)

    def _evaluate_all(self, channel: ChannelWriter) -> None:
        """Evaluate what is there and what comes, until this process is killed."""
        pending: PendingEvaluations | None = None
        while True:
            delay = LOOK_EVERY_S
            try:
                self._pulse.move()
                if pending is None and has_checkpoints(self._job.run_folder):
                    pending = self._begin(channel)
                if pending is not None and pending.run_next():
                    delay = 0.0
                channel.send()
                self._failures.end()
            except Exception as error:  # no failure may stop training or the evaluator
                delay = AFTER_FAILURE_S
                self._failures.add(error)
            time.sleep(delay)

    def _begin(self, channel: ChannelWriter) -> PendingEvaluations:
        # Not earlier: it takes seconds, while the workers start, on the same CPUs perhaps.
        from rm_ray.worker.beside.evaluator import Evaluator
        from rm_ray.worker.beside.pending import PendingEvaluations

        def start_anew() -> None:
            if self._job.use_gpu:  # after some errors, CUDA fails until its process ends
                channel.send()
                os._exit(1)

        pending = PendingEvaluations(
            job=self._job,
            streams=self._streams,
            channel=channel,
            build=partial(Evaluator.build, on_progress=self._pulse.move),
            on_progress=self._pulse.move,
            after_failure=start_anew,
        )
        pending.replay()
        return pending


def has_checkpoints(run_folder: Storage) -> bool:
    """Return whether there is anything to evaluate.

    Raises:
        OSError: the storage fails, or the run's folder is not on this machine.
    """
    if not run_folder.exists(RUN):
        raise FileNotFoundError(
            f"the evaluator's machine has no {run_folder.join(RUN)}: run.storage_path is not the "
            "same folder on all machines. Set it to a shared folder"
        )
    return bool(list_checkpoints(run_folder))


def start_evaluator(channel: str, job: TrainJob, streams: Mapping[str, PlannedGroups]) -> Any:
    """Start the evaluator; Ray restarts it if it is lost, and starts it once there is room.

    ``channel`` is the name of the run's channel, since Ray warns about handles passed to such
    actors.
    """
    cluster, cpus = job.config.cluster, job.config.evaluation.cpus
    place = beside_the_workers(cluster.num_workers, num_cpus=cpus, use_gpu=cluster.use_gpu)
    use_gpu = place["num_gpus"] > 0
    if use_gpu or not cluster.use_gpu:
        what = "a GPU" if use_gpu else f"{cpus} CPU{'s' * (cpus > 1)}"
        logger.info("evaluating beside training, on %s", what)
    else:
        logger.warning(
            "evaluating beside training on %d CPUs, since the workers leave no GPU free; lower "
            "cluster.num_workers by 1 for a GPU",
            cpus,
        )
    config = replace(job.config, cluster=replace(cluster, cpus_per_worker=cpus, use_gpu=use_gpu))
    alone = replace(job, config=config, use_gpu=use_gpu, channel=None)
    evaluator = ray.remote(max_restarts=-1)(CheckpointEvaluator).options(**place)
    return evaluator.remote(channel, alone, dict(streams))
