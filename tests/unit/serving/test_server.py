import shutil
import socket
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from made_run import make_run
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.schema import ReplicaState
from servers import free_ports

from rm_ray.config.scoring import ScoringModels
from rm_ray.config.serving import Server
from rm_ray.errors import InputError, TrainingError
from rm_ray.serving import server
from rm_ray.serving.server import (
    RunningServer,
    check_models,
    find_refusal,
    require_free_port,
)


def test_a_port_in_use_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}: .*; choose another --port"):
            require_free_port(Server(port=port))


def test_a_free_port_stays_free():
    port = free_ports(1)[0]
    require_free_port(Server(port=port))
    with socket.socket() as now:
        now.bind(("127.0.0.1", port))


def test_the_refusal_of_a_replica_is_found_in_what_serve_raises():
    raised = RuntimeError(
        "Deploying application rm_ray failed: The deployment failed to start 1 times in a row.\n"
        "  File 'served_model.py', line 50, in load\n"
        "rm_ray.errors.InputError: --model 'a' gives rewards that are not finite; its weights\n"
        "more lines"
    )
    found = find_refusal(raised)
    assert isinstance(found, InputError)
    assert str(found) == "--model 'a' gives rewards that are not finite; its weights"


def test_the_refusal_of_a_replica_is_found_in_the_status_if_serve_does_not_raise_it():
    status = "The deployment failed: rm_ray.errors.InputError: --prefix_cache_gib 100 is more\nat"
    found = find_refusal(RuntimeError("Failed to update the deployments ['RewardModel']."), status)
    assert isinstance(found, InputError)
    assert str(found) == "--prefix_cache_gib 100 is more"


def test_another_failure_to_start_is_no_input_of_the_user():
    found = find_refusal(RuntimeError("no GPU"), "Traceback:\n  line\nMemoryError: no room\n\n")
    assert isinstance(found, TrainingError)
    assert str(found).endswith("no GPU The replica says: MemoryError: no room")
    assert str(find_refusal(RuntimeError("no GPU"))).endswith("no GPU")


def test_what_serve_says_of_a_replica_reaches_the_user(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to update the deployments ['RewardModel'].")

    refusal = "rm_ray.errors.InputError: --prefix_cache_gib 100 is more"
    status = SimpleNamespace(
        applications={
            server.APP: SimpleNamespace(
                deployments={"RewardModel": SimpleNamespace(message=f"It failed:\n{refusal}\n")}
            )
        }
    )
    monkeypatch.setattr(serve, "run", fail)
    monkeypatch.setattr(serve, "status", lambda: status)
    with pytest.raises(InputError, match=r"^--prefix_cache_gib 100 is more$"):
        server._run(None)


@pytest.mark.parametrize(
    ("replicas", "goes_on"),
    [([1, 1], True), ([1, 3], True), ([1, 0], False), ([0, 0], False), (None, False)],
)
def test_an_interrupt_ends_the_start_unless_requests_may_be_answered(
    monkeypatch, replicas, goes_on
):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    states = [{ReplicaState.RUNNING: n, ReplicaState.STARTING: 1} for n in replicas or ()]
    deployments = {str(i): SimpleNamespace(replica_states=each) for i, each in enumerate(states)}
    found = {server.APP: SimpleNamespace(deployments=deployments)} if replicas else {}
    monkeypatch.setattr(serve, "run", interrupt)
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=found))
    with nullcontext() if goes_on else pytest.raises(KeyboardInterrupt):
        server._run(None)


def test_an_interrupt_ends_the_start_if_the_controller_does_not_answer(monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def fail() -> None:
        raise RayActorError

    monkeypatch.setattr(serve, "run", interrupt)
    monkeypatch.setattr(serve, "status", fail)
    with pytest.raises(KeyboardInterrupt):
        server._run(None)


def test_models_that_judge_together_are_checked_before_ray_starts(exported, tmp_path):
    made = make_run(tmp_path)
    made.save(10)
    models = ScoringModels(model=(str(exported), made.folder))
    assert check_models(models, Server()) == f"{exported.name} + made@step-00000010"

    other = shutil.copytree(exported, tmp_path / "other")
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|", "<"))
    with pytest.raises(InputError, match=r"other' differ in their tokenizers \(chat template\)"):
        check_models(ScoringModels(model=(str(exported), str(other))), Server())


def test_a_model_without_statistics_is_refused_before_ray_starts(exported):
    with pytest.raises(InputError, match=r"has no reward_statistics\.json"):
        check_models(ScoringModels(model=(str(exported),), rewards="standardized"), Server())


class Broadcast:
    """A handle of the replicas whose broadcast fails, as Serve's does while none is there."""

    def broadcast(self, method: str):
        raise TimeoutError


def test_a_server_without_a_replica_says_so(monkeypatch):
    monkeypatch.setattr(serve, "get_deployment_handle", lambda *names: Broadcast())
    with pytest.raises(TrainingError, match="no replica answers"):
        _ = RunningServer(server=Server()).model
