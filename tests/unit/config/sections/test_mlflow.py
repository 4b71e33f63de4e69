import pytest

from rm_ray.config.sections.mlflow import MlflowConfig
from rm_ray.errors import InputError


def test_a_server_may_have_a_user_and_no_password():
    uri = "postgresql://ana@db.example.com/mlflow"

    assert MlflowConfig(tracking_uri=uri).tracking_uri == uri
    with pytest.raises(InputError, match="MLFLOW_TRACKING_PASSWORD in the environment"):
        MlflowConfig(tracking_uri="postgresql://ana:secret@db.example.com/mlflow")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("experiment", value) for value in ("", "  ", "x" * 501)),
        *(("registered_model", value) for value in ("", " ", "team/model", "model:1")),
    ],
)
def test_a_name_that_mlflow_refuses_only_later_is_refused(name, value):
    with pytest.raises(InputError, match=rf"mlflow\.{name} must be a name"):
        MlflowConfig(**{name: value})


def test_names_that_mlflow_accepts_stay_as_they_are():
    config = MlflowConfig(experiment="/Users/ana@example.com/rewards", registered_model="a b.c")
    assert (config.experiment, config.registered_model) == (
        "/Users/ana@example.com/rewards",
        "a b.c",
    )
