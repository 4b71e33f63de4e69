from types import SimpleNamespace

import pytest
import ray

from rm_ray.cluster.placement import beside_the_driver


def test_an_actor_beside_the_driver_requests_a_byte_and_may_move(monkeypatch: pytest.MonkeyPatch):
    here = SimpleNamespace(get_node_id=lambda: "ab" * 28)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)

    options = beside_the_driver()

    assert (options["num_cpus"], options["memory"]) == (0, 1)
    assert options["scheduling_strategy"].node_id == "ab" * 28
    assert options["scheduling_strategy"].soft
