import pytest

from rm_ray.config.sections.mlflow import MlflowConfig
from rm_ray.errors import InputError


def test_a_server_may_have_a_user_and_no_password():
    uri = "postgresql://ana@db.example.com/mlflow"

    assert MlflowConfig(tracking_uri=uri).tracking_uri == uri
    with pytest.raises(InputError, match="MLFLOW_TRACKING_PASSWORD in the environment"):
        MlflowConfig(tracking_uri="postgresql://ana:secret@db.example.com/mlflow")
