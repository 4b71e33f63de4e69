"""Metrics, samples and reports -> the run's history, MLflow and the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rm_ray.evaluation.held_out import Evaluation
from rm_ray.evaluation.held_out_set import HeldOutSet
from rm_ray.evaluation.reports.group_report import group_report
from rm_ray.runs.history import History, Record, RecordKind
from rm_ray.runs.layout import EVALUATIONS, SAMPLES
from rm_ray.storage import Storage, keep_trying
from rm_ray.tracking.channel import ChannelWriter
from rm_ray.tracking.heartbeat import Heartbeat
from rm_ray.tracking.samples import EVAL_SAMPLES, read_samples
from rm_ray.worker.clocks import Clocks
from rm_ray.worker.job import TrainJob


def write_set(
    held_out: HeldOutSet,
    evaluation: Evaluation,
    step: int,
    *,
    models_ties: bool,
    write: Callable[[str, Any], None],
    channel: ChannelWriter,
) -> None:
    """Write the samples and the report of one set at a step; send the samples to MLflow."""
    if evaluation.samples:
        name = f"{held_out.folder}step-{step:06d}.json"
        write(f"{SAMPLES}/{name}", evaluation.samples)
        channel.table(f"{EVAL_SAMPLES}/{name}", evaluation.samples)
    if held_out.sources is None:
        return
    order, groups = evaluation.order, evaluation.groups
    report = group_report(
        groups,
        held_out.sources.of(order),
        held_out.subsets(order),
        models_ties=models_ties,
    )
    if held_out.prompts is not None:
        report["benchmark"] = held_out.benchmark(order, groups)
    file = f"{EVALUATIONS}/{held_out.folder}step-{step:08d}.json"
    write(file, {"step": step, "metrics": evaluation.metrics, **report})


def join_metrics(found: Sequence[tuple[HeldOutSet, Evaluation]]) -> dict[str, float]:
    """Return the metrics of an evaluation on all sets."""
    return {name: value for _, one in found for name, value in one.metrics.items()}


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """Keeps the history on every rank; rank 0, which has the channel, also sends and writes."""

    history: History
    clocks: Clocks
    run_folder: Storage
    patience_s: float
    """Seconds for which a write to the run's folder is retried."""
    models_ties: bool
    """Whether a tie is an outcome of its own for the objective."""
    heartbeat: Heartbeat
    channel: ChannelWriter | None

    @classmethod
    def of(
        cls,
        job: TrainJob,
        history: History,
        clocks: Clocks,
        heartbeat: Heartbeat,
        channel: ChannelWriter | None,
    ) -> Recorder:
        """Return the recorder of a job that continues ``history``."""
        return cls(
            history=history,
            clocks=clocks,
            run_folder=job.run_folder,
            patience_s=job.config.checkpoint.storage_patience_s,
            models_ties=job.config.objective.models_ties,
            heartbeat=heartbeat,
            channel=channel,
        )

    def add(self, kind: RecordKind, metrics: dict[str, float]) -> None:
        """Add the current step's metrics to the history, and send them to MLflow."""
        self.clocks.update()
        progress = self.clocks.progress
        record = Record(
            step=progress.step,
            kind=kind,
            episode=progress.episode,
            hours=progress.seconds / 3600,
            metrics=metrics,
        )
        self.history.add(record)
        if self.channel is not None:
            self.channel.record(record)

    def add_evaluation(self, found: Sequence[tuple[HeldOutSet, Evaluation]]) -> None:
        """Record an evaluation on all sets: one record, and samples and a report of each set."""
        self.add("eval", join_metrics(found))
        if self.channel is not None:
            for held_out, evaluation in found:
                write_set(
                    held_out,
                    evaluation,
                    self.clocks.progress.step,
                    models_ties=self.models_ties,
                    write=self.write,
                    channel=self.channel,
                )

    def write(self, name: str, value: Any) -> None:
        """Write JSON into the run's folder, retrying while the storage fails."""
        keep_trying(
            lambda: self.run_folder.write_json(name, value),
            what=f"writing {name}",
            patience_s=self.patience_s,
            on_wait=self.heartbeat.beat,
        )

    def show(self, line: str) -> None:
        """Show the live progress line."""
        if self.channel is not None:
            self.channel.status(line)

    def replay(self) -> None:
        """Resend all records of earlier attempts, since MLflow may have missed some."""
        if self.channel is None:
            return
        self.channel.record(*self.history.records)
        for table in read_samples(self.run_folder):
            self.channel.table(*table)

    def mlflow_run_id(self) -> str | None:
        """Return the run's MLflow id; None until it is known, and on other ranks."""
        return self.channel.mlflow_run_id() if self.channel is not None else None
