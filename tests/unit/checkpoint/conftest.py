"""Fixtures for tests of checkpoints: an engine in one process, and a run's folder."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_training import reset_accelerator

from rm_ray.checkpoint.content import CheckpointContent, TrainingState
from rm_ray.checkpoint.ledger import Ledger
from rm_ray.config.sections.cluster import ResolvedCluster
from rm_ray.config.sections.model import ModelConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.model.build import build_reward_model
from rm_ray.runs.history import History, Record
from rm_ray.storage import Storage
from rm_ray.train.engine import Engine
from rm_ray.train.progress import Progress


@pytest.fixture
def make_engine(tokenizer) -> Callable[..., Engine]:
    """Builds an engine of the built-in model with weights from a seed."""

    def make(seed: int = 0) -> Engine:
        reset_accelerator()
        model = build_reward_model(ModelConfig(), tokenizer, seed=seed)
        return Engine(
            model, OptimizerConfig(), ResolvedCluster(), dtype=torch.float32, use_gpu=False
        )

    return make


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A run's folder, on a machine with its own disk."""
    machine = tmp_path / "machine"
    machine.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(machine))
    return Storage.open(str(tmp_path / "storage")).folder("run")


@pytest.fixture
def content() -> Callable[..., CheckpointContent]:
    """Builds the content of a checkpoint after steps of 4 pairs."""

    def make(step: int) -> CheckpointContent:
        ledger = Ledger.empty(40)
        ledger.add(np.arange(4 * step))
        record = Record(
            step=step, kind="train", episode=4 * step, hours=0.5, metrics={"train/rm/loss": 0.25}
        )
        return CheckpointContent(
            state=TrainingState(
                progress=Progress(step=step, episode=4 * step, spent={"steps": 1.5}),
                history=History([record]),
                ledger=ledger,
                skipped=frozenset({8, 3}),
            ),
            reference_rewards={"scored": [{"reward": 1.0}]},
            settings={"run": {"name": "saved"}},
            plan_fingerprint="plan",
            mlflow_run_id="mlflow-id",
        )

    return make
