"""Resolved run -> Ray Train's trainer: the workers' job, data and resources."""

from __future__ import annotations

from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

from rm_ray.batches.stream import PlannedGroups
from rm_ray.cluster.process_group import ProcessGroupConfig
from rm_ray.cluster.timeouts import collective_limit
from rm_ray.config.sections.cluster import ResolvedCluster
from rm_ray.driver.attempt_handle import AttemptHandle
from rm_ray.preflight.resolved_run import ResolvedRun
from rm_ray.worker.data_config import PerRankStreams
from rm_ray.worker.entry import train_loop_per_worker
from rm_ray.worker.job import StoredJob, TrainJob


def build_job(
    resolved: ResolvedRun,
    attempt_handle: AttemptHandle,
    *,
    run_key: str,
    channel: Any,
    base_hash: str = "",
) -> TrainJob:
    """Return the job that each worker of an attempt receives."""
    return TrainJob(
        config=resolved.config,
        tokenizer=resolved.tokenizer,
        run_folder=resolved.run_folder,
        run_key=run_key,
        base_hash=base_hash,
        run_began=attempt_handle.run_began,
        attempt=attempt_handle.number,
        skipped=attempt_handle.skipped,
        unit=resolved.train.unit,
        reference_groups=resolved.reference_groups,
        steps=resolved.plan.steps,
        held_out=resolved.held_out_sets,
        use_gpu=resolved.config.cluster.use_gpu,
        plan_fingerprint=resolved.identity["plan"],
        layout=resolved.plan.settings.layout,
        startup=attempt_handle.startup,
        channel=channel,
    )


def build_trainer(resolved: ResolvedRun, job: TrainJob) -> TorchTrainer:
    """Return the trainer that starts the workers."""
    config, storage = resolved.config, resolved.storage
    limit_s = collective_limit(config.checkpoint.storage_patience_s)
    return TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"job": StoredJob.of(job)},
        torch_config=ProcessGroupConfig(timeout_s=round(limit_s)),
        scaling_config=scaling_config(config.cluster),
        run_config=ray.train.RunConfig(
            name=config.run.name,
            storage_path=storage.path,
            storage_filesystem=storage.filesystem,
            # The supervisor restarts attempts, and the workers find the intact checkpoints.
            failure_config=ray.train.FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=3
            ),
        ),
        datasets=streams(resolved),
        dataset_config=PerRankStreams(),
    )


def scaling_config(cluster: ResolvedCluster) -> ray.train.ScalingConfig:
    """Return the number of workers and the resources of each."""
    resources = {"CPU": cluster.cpus_per_worker, **({"GPU": 1} if cluster.use_gpu else {})}
    return ray.train.ScalingConfig(
        num_workers=cluster.num_workers,
        use_gpu=cluster.use_gpu,
        resources_per_worker=resources,
    )


def streams(resolved: ResolvedRun) -> dict[str, PlannedGroups]:
    """Return the pairs that the workers read, by set, in planned order."""
    training, once = resolved.plan.settings, resolved.eval_settings
    return {
        name: PlannedGroups(cache=cache.parts, settings=training if name == "train" else once)
        for name, cache in resolved.caches.items()
    }
