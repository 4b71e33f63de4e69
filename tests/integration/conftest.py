"""One local Ray cluster for all integration tests, and one finished run on two workers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rm_ray.config import ClusterConfig, TrainConfig
from rm_ray.train.session import ray_cluster
from rm_ray.train.trainer import train

NUM_STEPS = 20


@dataclass(frozen=True)
class FinishedRun:
    """A run's settings, its folder and its ``result.json``."""

    settings: dict[str, Any]
    folder: Path
    result: dict[str, Any]


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A local Ray as ``jobs/train.py`` starts it, shared by all tests."""
    with ray_cluster(ClusterConfig(num_workers=2)):
        yield


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage path that the runs of all tests share, and so their token caches."""
    return tmp_path_factory.mktemp("storage")


def small_run(storage: Path, name: str) -> dict[str, Any]:
    """Settings of 20 steps over 153 generated pairs with 41 held out, on two workers."""
    return {
        "run": {"name": name, "storage_path": str(storage), "seed": 1},
        "data": {"train": ["builtin:train=153"], "eval": ["builtin:test=41"], "max_length": 256},
        "batch": {"global_batch_size": 16, "tokens_per_micro_batch": 700},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 4, "epochs": 2},
        "cluster": {"num_workers": 2},
        "evaluation": {"every_steps": 10, "sample_rows": 5},
        "checkpoint": {"every_steps": 5, "keep": 2, "keep_best_by": "eval/rm/loss"},
        "mlflow": {"experiment": "tests"},
    }


@pytest.fixture(scope="session")
def finished(cluster: None, storage: Path) -> FinishedRun:
    """An uninterrupted run; the others are compared with it."""
    settings = small_run(storage, "quiet")
    result = train(TrainConfig.from_dict(settings))
    return FinishedRun(settings, storage / "quiet", result)
