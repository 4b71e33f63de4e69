import pytest

from rm_ray.cluster.connectivity import LinkSpeed
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.errors import InputError
from rm_ray.preflight.link_speed import measure_network, summarise_links
from rm_ray.storage import Storage

FAST = LinkSpeed(all_reduce=400e9, all_gather=300e9, latency_s=20e-6)
SLOW = LinkSpeed(all_reduce=40e9, all_gather=45e9, latency_s=60e-6)


def test_a_link_is_as_fast_as_its_slower_collective():
    network, line = summarise_links(["a", "a", "b", "b"], FAST, SLOW, SLOW)
    assert (network.within_node, network.between_nodes) == (300e9, 40e9)
    assert (network.gpus_per_node, network.latency) == (2, 60e-6)
    assert line == (
        "4 workers on 2 machines: 300 GB/s within a machine, 40 GB/s per worker between machines; "
        "60 microseconds for the smallest all-reduce"
    )


def test_a_missing_kind_of_link_takes_the_speed_of_the_other():
    alone, line = summarise_links(["a", "a"], FAST, None, FAST)
    assert (alone.within_node, alone.between_nodes) == (300e9, 300e9)
    assert line.startswith("2 workers on 1 machine: 300 GB/s within a machine; 20 ")
    apart, line = summarise_links(["a", "b", "c"], None, SLOW, SLOW)
    assert (apart.within_node, apart.between_nodes, apart.gpus_per_node) == (40e9, 40e9, 1)
    assert "within a machine" not in line


def test_a_single_worker_has_no_network(tmp_path):
    with pytest.raises(InputError, match="needs at least two workers"):
        measure_network(ClusterConfig(num_workers=1), Storage.open(str(tmp_path)))
