"""One local Ray cluster for all integration tests, one MLflow, and one finished run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from runs import SECRETS, FinishedRun, small_run
from servers import MlflowServer

from rm_ray.cluster.ray_cluster import ray_cluster
from rm_ray.config.recipe import parse_config
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.driver.drive import drive


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
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real MLflow server on loopback."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    with server.running():
        yield server.address


@pytest.fixture(scope="session")
def finished(cluster: None, storage: Path) -> FinishedRun:
    """An uninterrupted run under ZeRO-3, with which the interrupted one is compared."""
    settings = small_run(storage, "quiet", zero_stage=3)
    result = drive(parse_config(settings))
    return FinishedRun(settings, storage / "quiet", result)
