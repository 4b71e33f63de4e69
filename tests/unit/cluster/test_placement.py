from types import SimpleNamespace

import pytest
import ray

from rm_ray.cluster.placement import beside_the_driver, beside_the_workers


def test_an_actor_beside_the_driver_requests_a_byte_and_may_move(monkeypatch: pytest.MonkeyPatch):
    here = SimpleNamespace(get_node_id=lambda: "ab" * 28)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)

    options = beside_the_driver()

    assert (options["num_cpus"], options["memory"]) == (0, 1)
    assert options["scheduling_strategy"].node_id == "ab" * 28
    assert options["scheduling_strategy"].soft


@pytest.mark.parametrize(("free", "gpus"), [(9.0, 1), (8.0, 0), (0.0, 0)])
def test_an_evaluator_gets_a_gpu_if_the_workers_leave_one(
    monkeypatch: pytest.MonkeyPatch, free: float, gpus: int
):
    monkeypatch.setattr(ray, "available_resources", lambda: {"GPU": free})
    assert beside_the_workers(8, num_cpus=2, use_gpu=True) == {"num_cpus": 2, "num_gpus": gpus}
    assert beside_the_workers(8, num_cpus=2, use_gpu=False) == {"num_cpus": 2, "num_gpus": 0}
