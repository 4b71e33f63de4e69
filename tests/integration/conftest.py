"""One local Ray cluster for all integration tests, and one finished run on two workers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from runs import SECRETS, FinishedRun, small_run

from rm_ray.cluster.session import ray_cluster
from rm_ray.config.recipe import parse_config
from rm_ray.config.train_config import ClusterConfig
from rm_ray.driver.run import train


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A local Ray as ``jobs/train.py`` starts it, shared by all tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name, secret in SECRETS.items():
            patch.setenv(name, secret)
        with ray_cluster(ClusterConfig(num_workers=2)):
            # Attempts at a run are processes of their own, and are to use it too.
            patch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
            yield


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage path that the runs of all tests share, and so their token caches."""
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="session")
def finished(cluster: None, storage: Path) -> FinishedRun:
    """An uninterrupted run; the others are compared with it."""
    settings = small_run(storage, "quiet")
    result = train(parse_config(settings))
    return FinishedRun(settings, storage / "quiet", result)
