"""A sweep from its recipe to the winner's: trials, their schedule, and what they show."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from rm_ray.cluster.ray_cluster import count_fitting_runs, ray_cluster
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.sweep import SweepConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.driver.drive import dry_run
from rm_ray.errors import InputError
from rm_ray.importing import share_package
from rm_ray.local_home import local_home
from rm_ray.runs.layout import PLOTS, RUN
from rm_ray.storage import Storage
from rm_ray.sweep.outcomes import Outcome, read_outcomes
from rm_ray.sweep.plots import plot_sweep
from rm_ray.sweep.ranking import RankedSetting, rank, ranking_json, ranking_table
from rm_ray.sweep.recipes import recipe_text
from rm_ray.sweep.record import SWEEP, TRIALS, forget_failures, open_sweep
from rm_ray.sweep.stop_signals import StopSignals
from rm_ray.sweep.trial_processes import TrialProcesses
from rm_ray.sweep.trials import (
    Trial,
    about_metric,
    apply,
    make_trials,
    rankable,
    sweep_path,
)
from rm_ray.tracking.parent_run import ParentRun
from rm_ray.tracking.target import MlflowTarget, RunDescription

logger = logging.getLogger(__name__)

WINNER, TABLE, RANKING = "winner.yaml", "ranking.md", "ranking.json"

NO_LIMIT = 10**9

_CACHED = ("data", "model", "lora", "batch", "objective", "cluster")
"""Sections that decide, with the seed, what a run's preparations find and cache."""


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep found, or why it did not end."""

    ranked: list[RankedSetting]
    folder: Storage
    stopped: str | None = None
    """The signal's reason, if one stopped the sweep."""

    @property
    def failed(self) -> list[Outcome]:
        """Trials that failed, or that someone else stopped."""
        return [one for each in self.ranked for one in each.outcomes if not one.is_over]

    @property
    def winner(self) -> RankedSetting | None:
        """The best setting; None if it has no value, or trials that are not over."""
        best = self.ranked[0] if self.ranked else None
        is_decided = best is not None and all(one.is_over for one in best.outcomes)
        return best if best is not None and is_decided and best.mean is not None else None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The trials of a recipe and a sweep's file, and the folder in which they are stored."""

    config: TrainConfig
    sweep: SweepConfig
    origin: str
    """Name of the sweep's file."""
    trials: Sequence[Trial]
    folder: Storage
    record: dict[str, Any]

    @classmethod
    def open(cls, config: TrainConfig, sweep: SweepConfig, origin: str) -> Sweep:
        """Make or find a sweep; failed and interrupted trials will be tried again.

        Raises:
            InputError: a trial's settings are wrong, or the sweep began with others.
        """
        trials = make_trials(config, sweep, origin)
        folder = Storage.open(sweep_path(config))
        folder.check_writable("run.storage_path")
        record = open_sweep(folder, config, sweep, trials)
        forget_failures(folder, trials)
        return cls(
            config=config, sweep=sweep, origin=origin, trials=trials, folder=folder, record=record
        )

    def run(self) -> SweepResult:
        """Run the trials that are left, then rank all of them and write what was found.

        Raises:
            InputError: the data or the cluster does not fit a trial; nothing has been trained.
        """
        left = [one.trial.name for one in self._outcomes() if not one.is_over]
        logger.info(
            "sweep '%s': %d trials in %s, %d of them left",
            self.config.run.name,
            len(self.trials),
            self.folder.path,
            len(left),
        )
        parent = self._parent()
        stopped = None
        if left:
            stopped = self._train([trial for trial in self.trials if trial.name in left], parent)
        else:
            self._begin(parent)
        ranked = rank(self._outcomes(), self.sweep.metric)
        result = SweepResult(ranked=ranked, folder=self.folder, stopped=stopped)
        if stopped is None:
            self._write(result, parent)
        parent.stop()
        return result

    def _outcomes(self) -> list[Outcome]:
        return read_outcomes(self.folder, self.trials, self.sweep.metric)

    def _begin(self, parent: ParentRun) -> None:
        """Open the parent and write the record: from here on, the sweep's settings stay."""
        parent.open()
        self.folder.write_json(SWEEP, self.record)
        parent.start()

    def _train(self, left: Sequence[Trial], parent: ParentRun) -> str | None:
        """Run trials; return the reason of the signal that stopped them, if any."""
        configs = [trial.config for trial in self.trials]
        clusters = [config.cluster for config in configs]
        wanted = self.sweep.max_parallel
        share_package()
        shared, most = share_machine(clusters, wanted) if is_local() else (clusters[0], NO_LIMIT)
        with ray_cluster(shared):
            parallel = min(count_parallel(configs, wanted), most)
            prepare(left, self.sweep, self.origin)
            self._begin(parent)
            address = ray.get_runtime_context().gcs_address
            processes = TrialProcesses(self.folder, self._scratch(), {"RAY_ADDRESS": address})
            logger.info("at most %d at once; their logs are in %s", parallel, self._scratch())
            from rm_ray.sweep.scheduling import schedule  # takes a second

            # With ASHA every trial goes to the scheduler: it judges by those that are over, too.
            judged = self.trials if self.sweep.asha else left
            with StopSignals(processes) as signals:
                schedule(judged, self.sweep, self.folder, processes, parallel=parallel)
            return signals.reason

    def _scratch(self) -> Path:
        """Return the folder on this machine for recipes and logs of trials."""
        if self.folder.is_local:
            return Path(self.folder.join(TRIALS))
        return local_home() / "sweeps" / str(self.record["key"])

    def _parent(self) -> ParentRun:
        params = {
            "sweep.metric": self.sweep.metric,
            **{name: json.dumps(d) for name, d in self.record["sweep"]["settings"].items()},
        }
        description = RunDescription(
            name=self.config.run.name, key=self.record["key"], params=params, tags={}
        )
        # The trials' own target, which by default is a file in the sweep's folder.
        target = MlflowTarget.of(self.config.mlflow, self.folder)
        return ParentRun(target, description, self._list_keys)

    def _list_keys(self) -> list[str]:
        """Return the keys of the runs that have begun."""
        records = (self.folder.read_json(f"{trial.name}/{RUN}") for trial in self.trials)
        return [record["key"] for record in records if record is not None]

    def _write(self, result: SweepResult, parent: ParentRun) -> None:
        """Write ranking, plots and the winner's recipe; log them in MLflow."""
        metric, name = self.sweep.metric, self.config.run.name
        ranking = ranking_json(result.ranked, metric)
        self.folder.write_json(RANKING, ranking)
        self.folder.write_text(TABLE, f"{ranking_table(result.ranked, metric)}\n")
        documents, metrics = {RANKING: ranking}, {}
        if (winner := result.winner) is not None:
            config = self.winning_config(winner)
            self.folder.write_text(WINNER, recipe_text(config, _describe(winner, metric)))
            documents[WINNER] = config.to_json()
            metrics[f"best/{metric}"] = winner.mean or 0.0
        with tempfile.TemporaryDirectory(prefix="rm_ray-plots-") as scratch:
            figures = plot_sweep(result.ranked, metric, name, Path(scratch))
            self.folder.upload(Path(scratch), PLOTS)
            parent.finish(metrics, documents, figures)

    def winning_config(self, winner: RankedSetting) -> TrainConfig:
        """Return the recipe with the winner's settings, as a run beside the sweep."""
        config = apply(self.config, winner.settings, self.origin)
        return replace(config, run=replace(config.run, name=f"{config.run.name}-winner"))


def prepare(trials: Sequence[Trial], sweep: SweepConfig, origin: str) -> None:
    """Resolve each distinct preparation once: it checks data and memory, and builds token caches.

    Trials that run at once would otherwise build the same cache beside one another.

    Raises:
        InputError: the input of a trial is wrong, its held-out pairs never give the metric, or it
            has too few steps to be stopped early.
    """
    seen = set()
    for trial in trials:
        settings = trial.config.to_json()
        lasts = trial.config.optimizer.epochs, trial.config.optimizer.max_episodes
        key = json.dumps([trial.seed, lasts, *(settings[section] for section in _CACHED)])
        if key in seen:
            continue
        seen.add(key)
        with about_metric(origin):
            steps = dry_run(rankable(trial.config, sweep.metric))["steps"]
        if sweep.asha is not None and sweep.asha.grace_steps >= steps:
            raise InputError(
                f"{origin}: asha.grace_steps is {sweep.asha.grace_steps}, but {trial.name} has "
                f"{steps} steps, so that it would never be stopped early; lower it, or leave asha "
                "out"
            )


def is_local() -> bool:
    """Return whether the sweep starts a Ray of its own on this machine."""
    return not ray.is_initialized() and not os.environ.get("RAY_ADDRESS")


def share_machine(
    clusters: Sequence[ClusterConfig], wanted: int | None
) -> tuple[ClusterConfig, int]:
    """Return the workers that a local Ray needs for all trials at once, and how many those are.

    Raises:
        InputError: this machine has too few CPU cores for the trials that are wanted.
    """
    largest = max(clusters, key=lambda one: _least_workers(one) * one.cpus_per_worker)
    workers, cores = _least_workers(largest), os.cpu_count() or 1
    fitting = max(cores // (workers * largest.cpus_per_worker), 1)
    _require_fitting(wanted, fitting, f"this machine's {cores} CPU cores fit {fitting}")
    parallel = wanted or fitting
    return replace(largest, num_workers=workers * parallel), parallel


def count_parallel(configs: Sequence[TrainConfig], wanted: int | None) -> int:
    """Return how many trials run at once on the cluster that Ray is connected to.

    Raises:
        InputError: not even one fits, or fewer than wanted.
    """
    fitting = min(
        count_fitting_runs(config.cluster, evaluator_cpus=config.evaluator_cpus)
        for config in configs
    )
    _require_fitting(wanted, fitting, f"the cluster fits {fitting}")
    return wanted or fitting


def _least_workers(cluster: ClusterConfig) -> int:
    return (cluster.worker_bounds or (1, 1))[0]


def _require_fitting(wanted: int | None, fitting: int, has: str) -> None:
    if wanted is not None and wanted > fitting:
        raise InputError(
            f"max_parallel is {wanted}, but {has}; lower it, or leave it out to run as many trials "
            "at once as fit"
        )


def _describe(winner: RankedSetting, metric: str) -> str:
    spread = "" if winner.spread is None else f", spread {winner.spread:.4f}"
    count = len(winner.values)
    trials = f"{count} trial{'s' * (count != 1)}"
    return f"The sweep's best setting: {metric} {winner.mean:.4f}{spread} over {trials}."
