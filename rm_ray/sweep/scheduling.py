"""Trials -> Ray Tune, which decides what runs next and, with ASHA, what stops early."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from rm_ray.config.sweep import AshaConfig, SweepConfig
from rm_ray.runs.layout import RUN
from rm_ray.runs.retention import badness
from rm_ray.storage import Storage
from rm_ray.sweep.follower import STEP, WORST, Follower
from rm_ray.sweep.outcomes import read_outcome
from rm_ray.sweep.record import mark, read_mark
from rm_ray.sweep.trial_processes import TrialProcesses
from rm_ray.sweep.trials import Trial

logger = logging.getLogger(__name__)

REAP_EVERY_S = 0.5

FOLLOWER_RESTARTS = 3
"""How often a lost follower is started again."""

NEVER = 10**9
"""A step that no trial reaches: ASHA stops none for having come far enough."""


def schedule(
    trials: Sequence[Trial],
    sweep: SweepConfig,
    folder: Storage,
    processes: TrialProcesses,
    *,
    parallel: int,
) -> None:
    """Run the trials, ``parallel`` at once, until each has ended.

    Followers take no CPU: the workers of a trial's own Ray Train claim what they need. They stay on
    this machine, beside the processes of the trials.
    """
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # prints tables even at verbosity 0
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # the runs' folders have it all
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # the sweep has its own
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # not every answer is an evaluation
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    metric = sweep.metric
    heard = over_first(trials, folder, metric) if sweep.asha else trials
    with tempfile.TemporaryDirectory(prefix="rm_ray-tune-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(Follower, {"CPU": 0, _this_machine(): 0.001}),
            param_space={
                "sweep": trials[0].config.run.storage_path,
                "trial": tune.grid_search([trial.name for trial in heard]),
                "metric": metric,
            },
            tune_config=tune.TuneConfig(
                metric=metric,
                mode="min" if badness({metric: 1.0}, metric) > 0 else "max",
                scheduler=make_scheduler(sweep.asha),
                max_concurrent_trials=parallel,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,
                verbose=0,
                callbacks=[Watch(trials, metric, folder, processes)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=FOLLOWER_RESTARTS),
            ),
        )
        tuner.fit()


def over_first(trials: Sequence[Trial], folder: Storage, metric: str) -> list[Trial]:
    """Return the trials with those that are over first, so that ASHA judges the others by them."""
    return sorted(trials, key=lambda one: not read_outcome(folder, one, metric).is_over)


def make_scheduler(asha: AshaConfig | None) -> TrialScheduler:
    """Return what decides which trials go on: all of them without ``asha``."""
    if asha is None:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=STEP,
        grace_period=asha.grace_steps,
        reduction_factor=asha.reduction_factor,
        max_t=max(NEVER, asha.grace_steps),
        stop_last_trials=False,
    )


def _this_machine() -> str:
    """Return the resource that only this machine has."""
    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
    names = (str(name) for name in node["Resources"])
    return next(name for name in names if re.fullmatch(r"node:[^_].*", name))


class Watch(tune.Callback):  # type: ignore[misc]
    """Starts and stops the trials' processes as Tune decides; called in the sweep's process."""

    def __init__(
        self, trials: Sequence[Trial], metric: str, folder: Storage, processes: TrialProcesses
    ) -> None:
        self._trials = {trial.name: trial for trial in trials}
        self._metric, self._folder, self._processes = metric, folder, processes
        self._reaped = 0.0

    def __getstate__(self) -> dict[str, Any]:
        # Tune writes a copy of its settings that nothing reads; the environment stays out of it.
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """Start the run, unless it is over already."""
        one = self._of(trial)
        if not read_outcome(self._folder, one, self._metric).is_over:
            logger.info("%s starts", one.name)
            self._processes.start(one)

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """Log an evaluation."""
        if STEP in result and self._processes.is_running(self._of(trial).name):
            name, value = self._of(trial).name, result[self._metric]
            shown = "not finite" if abs(value) == WORST else f"{value:.4f}"
            logger.info("%s at step %d: %s %s", name, result[STEP], self._metric, shown)

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        """Collect processes that have ended."""
        if time.monotonic() - self._reaped > REAP_EVERY_S:
            self._reaped = time.monotonic()
            self._processes.reap()

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """Stop the run if the scheduler decided so; one that has taken all its steps goes on."""
        one = self._of(trial)
        outcome = read_outcome(self._folder, one, self._metric)
        record = self._folder.read_json(f"{one.name}/{RUN}")
        is_trained = record is not None and outcome.step >= record["steps"]
        if outcome.state not in ("waiting", "unfinished") or is_trained:
            return
        if read_mark(self._folder, one.name) is not None:
            return  # interrupted by someone else's signal
        logger.info("%s is stopped early at step %d", one.name, outcome.step)
        mark(self._folder, one.name, "stopped early", f"by ASHA at step {outcome.step}")
        self._processes.stop(one.name)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """Stop a run that Tune has lost sight of."""
        name = self._of(trial).name
        mark(self._folder, name, "interrupted", "its follower was lost again and again")
        self._processes.stop(name)

    def _of(self, trial: Any) -> Trial:
        return self._trials[trial.config["trial"]]
