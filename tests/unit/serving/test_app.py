import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from rm_ray.config.scoring import ScoringModels
from rm_ray.config.serving import Server
from rm_ray.errors import InputError
from rm_ray.serving.app import GATEWAY, MODEL, TOKEN, Gateway, application, build, require_token


def deployments(made) -> dict:
    """The deployments of an application, by name."""
    gateway = made._bound_deployment
    (replicas,) = (each for each in gateway.init_args if hasattr(each, "_bound_deployment"))
    return {each.name: each for each in (gateway, replicas._bound_deployment)}


def test_a_number_of_replicas_stays():
    made = application(
        ScoringModels(model=("a",)), Server(num_replicas=3), use_gpu=True, token="secret"
    )
    found = deployments(made)
    assert found.keys() == {GATEWAY, MODEL}
    assert found[MODEL].num_replicas == 3
    assert found[MODEL].ray_actor_options == {"num_cpus": 1, "num_gpus": 1}
    assert found[GATEWAY].ray_actor_options["num_cpus"] == 0
    assert "secret" not in repr(found[GATEWAY].init_args)


def test_a_range_of_replicas_scales_with_the_requests_that_wait():
    made = application(
        ScoringModels(model=("a",)), Server(num_replicas="1-8"), use_gpu=False, token=None
    )
    scaling = deployments(made)[MODEL]._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 8)
    assert scaling.target_ongoing_requests == 32


def test_a_config_file_has_the_options_of_the_command(monkeypatch):
    monkeypatch.setenv(TOKEN, "secret")
    args = {"model": "me/model", "num_replicas": "2-4", "cpus_per_replica": 3, "use_gpu": False}
    found = deployments(build(args))
    model, server = found[MODEL].init_args
    assert model == ScoringModels(model=("me/model",))
    assert server == replace(Server(), num_replicas="2-4", cpus_per_replica=3, use_gpu=False)


def test_a_config_file_may_name_several_models(monkeypatch):
    monkeypatch.setenv(TOKEN, "secret")
    model, _ = deployments(build({"model": ["a", "me/b"], "use_gpu": False}))[MODEL].init_args
    assert model == ScoringModels(model=("a", "me/b"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "model: .*required"),
        ({"model": "a", "replicas": 2}, "args has unknown options: replicas"),
        ({"model": "a", "port": "x"}, "port: .*, got 'x'"),
        ({"model": "a", "port": 0}, "port must be from 1 to 65535"),
        ({"model": ["a", "a"]}, "model must be a list without repetitions"),
        ({"model": ["a", "b"], "follow": True}, "--follow takes over newer versions of one model"),
    ],
)
def test_a_config_file_with_a_wrong_option_is_refused(args, message, monkeypatch):
    monkeypatch.setenv(TOKEN, "secret")
    with pytest.raises(InputError, match=message):
        build(args)


@pytest.mark.parametrize("environment", [{}, {TOKEN: " "}])
def test_only_this_machine_may_ask_without_a_token(environment, monkeypatch):
    assert require_token(Server(), environment) is None
    with pytest.raises(InputError, match=f"set {TOKEN} in the environment"):
        require_token(Server(host="0.0.0.0"), environment)
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(InputError, match=f"set {TOKEN} in the environment"):
        build({"model": "a"})


def test_the_token_is_the_one_of_the_environment():
    assert require_token(Server(host="0.0.0.0"), {TOKEN: "secret\n"}) == "secret"
    assert require_token(Server(), {TOKEN: "secret"}) == "secret"


class Broadcast:
    """A handle of the replicas whose broadcast fails, as Serve's does while none is there."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def broadcast(self, method: str):
        raise self.error


@pytest.mark.parametrize(
    "error", [DeploymentUnavailableError(DeploymentID(name=MODEL)), TimeoutError("too long")]
)
def test_without_a_replica_the_gateway_has_no_reports(error):
    gateway = SimpleNamespace(_replicas=Broadcast(error))
    assert asyncio.run(Gateway._find_reports(gateway)) == []


@pytest.mark.parametrize("token", ["pässwort", "a\x07b", "\udcff"])
def test_a_token_that_a_header_cannot_carry_is_refused(token):
    with pytest.raises(InputError, match="use printable ASCII") as caught:
        require_token(Server(), {TOKEN: token})
    assert token not in str(caught.value)
