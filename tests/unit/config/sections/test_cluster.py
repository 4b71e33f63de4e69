from typing import Any

import pytest
from given_settings import refusal_of, refusal_of_value

from rm_ray.config.recipe import parse_config
from rm_ray.config.sections.cluster import ClusterConfig, ResolvedCluster


def test_offload_is_accepted_at_the_stages_that_support_it():
    for stage, offload in ((1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "all")):
        settings = {"cluster": {"zero_stage": stage, "offload": offload}}
        assert parse_config(settings).cluster.offload == offload


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("num_workers", 0, "a number of at least 1"),
        ("num_workers", "8-2", "a number of at least 1"),
        ("num_workers", "some", "a number of at least 1"),
        ("cpus_per_worker", 0, "at least 1"),
        ("offload", "optimizer", "'none' unless cluster.zero_stage is at least 1 (it is 0)"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_rule(field: str, value: Any, rule: str):
    assert refusal_of_value("cluster", field, value).startswith(rule)


def test_offload_needs_a_stage_that_shards_the_offloaded_state():
    message = refusal_of({"cluster": {"zero_stage": 2, "offload": "all"}})

    assert "cluster.offload" in message
    assert "at least 3 (it is 2)" in message


@pytest.mark.parametrize("cluster", [{"zero_stage": 2}, {"zero_stage": 3, "offload": "all"}])
def test_a_secondary_partition_needs_stage_3_with_weights_on_the_devices(cluster: dict[str, Any]):
    message = refusal_of({"cluster": {**cluster, "zero_secondary_partition": True}})

    assert "cluster.zero_secondary_partition" in message
    assert f"they are {cluster['zero_stage']} and" in message


@pytest.mark.parametrize(
    ("given", "bounds"), [(None, None), (4, (4, 4)), ("4", (4, 4)), ("2-8", (2, 8))]
)
def test_workers_may_be_omitted_or_given_as_a_range(given: Any, bounds: tuple[int, int] | None):
    assert ClusterConfig(num_workers=given).worker_bounds == bounds


def test_a_resolved_cluster_is_still_a_cluster_section():
    settled = ResolvedCluster(num_workers=2, zero_stage=3, zero_secondary_partition=True)

    assert isinstance(settled, ClusterConfig)
    assert settled.worker_bounds == (2, 2)
