from pathlib import Path

import pytest
from mlflow_runs import make_target

from rm_ray.tracking.target import MlflowTarget


@pytest.fixture
def target(tmp_path: Path) -> MlflowTarget:
    """An MLflow database."""
    return make_target(tmp_path)
