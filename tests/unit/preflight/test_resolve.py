"""Resolving a config without a cluster: its machines are given."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planned_runs import plan_run

from rm_ray.config.recipe import parse_config
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.train_config import ResolvedConfig, TrainConfig
from rm_ray.preflight import resolve
from rm_ray.preflight.machines import Machine
from rm_ray.runs.layout import RUN
from rm_ray.storage import Storage

GIGABYTE = 10**9


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Provide one machine with 8 CPUs that fits 4 workers, and tokenised pairs."""
    resources = {"CPU": 8.0, "memory": 400.0 * GIGABYTE}
    machine = Machine(node_id="a", name="a", resources=resources)

    def fit(cluster: ClusterConfig, *, waits: bool, evaluator_cpus: int) -> ClusterConfig:
        assert waits and evaluator_cpus == 0
        return replace(cluster, num_workers=4, use_gpu=False)

    def plan(config: TrainConfig, storage: Storage, **_: Any) -> Any:
        planned = plan_run(tmp_path)
        return replace(planned, config=config, storage=storage)

    monkeypatch.setattr(resolve, "fit_to_cluster", fit)
    monkeypatch.setattr(resolve, "plan_run", plan)
    monkeypatch.setattr(resolve, "list_machines", lambda: [machine])


def resolved_config(folder: Path, **cluster: Any) -> ResolvedConfig:
    run = {"name": "mine", "storage_path": str(folder)}
    config = parse_config({"run": run, "model": {"dtype": "bfloat16"}, "cluster": cluster})
    storage = Storage.open(str(folder))
    return resolve.resolve_run(config, storage, config.cluster, waits=True).config


def test_a_run_gets_the_workers_that_fit_the_cluster(machines: None, tmp_path: Path):
    config = resolved_config(tmp_path, num_workers="2-8")

    assert (config.cluster.num_workers, config.cluster.use_gpu) == (4, False)
    assert (config.cluster.zero_stage, config.model.gradient_checkpointing) == (0, False)


def test_a_resumed_run_keeps_its_resolved_settings(machines: None, tmp_path: Path):
    before = {"zero_stage": 2, "zero_secondary_partition": False, "use_gpu": False}
    record = {"config": {"cluster": before, "model": {"gradient_checkpointing": True}}}
    Storage.open(str(tmp_path)).folder("mine").write_json(RUN, record)

    assert resolved_config(tmp_path, zero_stage="auto").cluster.zero_stage == 2
    assert resolved_config(tmp_path, zero_stage=1).cluster.zero_stage == 1
