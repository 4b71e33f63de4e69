"""Metrics, samples and reports -> the run's history, MLflow and the run's folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rm_ray.evaluation.held_out import Evaluation
from rm_ray.evaluation.pairwise import Labels, pairwise_report
from rm_ray.runs.history import History, Record, RecordKind
from rm_ray.runs.layout import EVALUATIONS, SAMPLES
from rm_ray.storage import Storage, keep_trying
from rm_ray.tracking.channel import ChannelWriter
from rm_ray.tracking.heartbeat import Heartbeat
from rm_ray.tracking.samples import EVAL_SAMPLES, read_samples
from rm_ray.worker.clocks import Clocks
from rm_ray.worker.job import TrainJob


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """Keeps the history on every rank; rank 0, which has the channel, also sends and writes."""

    history: History
    clocks: Clocks
    run_folder: Storage
    patience_s: float
    """Seconds for which a write to the run's folder is retried."""
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

    def add_evaluation(self, evaluation: Evaluation, labels: Labels | None) -> None:
        """Record an evaluation: metrics, samples, and a report by the pairs' labels."""
        step = self.clocks.progress.step
        self.add("eval", evaluation.metrics)
        if self.channel is None:
            return
        if evaluation.samples:
            name = f"step-{step:06d}.json"
            self.write(f"{SAMPLES}/{name}", evaluation.samples)
            self.channel.table(f"{EVAL_SAMPLES}/{name}", evaluation.samples)
        if labels is not None:
            report = pairwise_report(evaluation.pairs, labels.of(evaluation.order), [])
            self.write(f"{EVALUATIONS}/step-{step:08d}.json", {"step": step, **report})

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
