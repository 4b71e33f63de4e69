import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.estimate.network import HOP_BETWEEN, HOP_WITHIN, Network

EIGHT_CARDS = Network(within_node=450e9, between_nodes=50e9, gpus_per_node=8, latency=0.0)


def test_a_ring_is_bound_by_links_within_a_machine_and_by_all_its_cards_between_machines():
    assert EIGHT_CARDS.seconds(450e9, ranks=8) == 1.0
    assert EIGHT_CARDS.seconds(400e9, ranks=16) == 1.0
    assert EIGHT_CARDS.seconds(400e9, ranks=1) == 0.0


def test_an_empty_collective_still_takes_its_latency():
    slow = Network(within_node=1e9, between_nodes=1e9, gpus_per_node=1, latency=0.25)

    assert slow.seconds(0, ranks=2, collectives=3) == 3 * 0.25 / 2  # half an all-reduce's latency


def test_an_unmeasured_latency_is_the_sum_of_the_ring_s_hops():
    network = Network(within_node=1e9, between_nodes=1e9, gpus_per_node=8)

    assert network.round(8) == pytest.approx(7 * HOP_WITHIN)
    assert network.round(64) == pytest.approx(56 * HOP_WITHIN + 7 * HOP_BETWEEN)
    assert network.round(9) == pytest.approx(7 * HOP_WITHIN + HOP_BETWEEN)
    assert network.seconds(0, ranks=1, collectives=3) == 0.0


def test_the_machine_with_the_fewest_ranks_limits_the_bandwidth_between_machines():
    assert EIGHT_CARDS.bus_bandwidth(9) == 50e9
    assert EIGHT_CARDS.bus_bandwidth(12) == 200e9
    assert EIGHT_CARDS.bus_bandwidth(16) == 400e9


def test_assumed_links_reach_a_share_of_the_line_rate_and_given_links_all_of_it():
    assumed = Network.assumed(gpus_per_node=4)

    assert (assumed.within_node, assumed.between_nodes) == pytest.approx((315e9, 35e9))
    assert assumed.gpus_per_node == 4
    assert EIGHT_CARDS.within_node == 450e9


@given(st.floats(1e6, 1e12), st.integers(2, 64), st.integers(1, 8))
def test_a_measured_bus_bandwidth_round_trips(speed: float, world_size: int, gpus_per_node: int):
    network = Network.measured(
        world_size=world_size, gpus_per_node=gpus_per_node, bus_bandwidth=speed
    )

    assert math.isclose(network.bus_bandwidth(world_size), speed, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"within_node": 0.0}, "within_node must be above 0 bytes/s, got 0.0"),
        ({"between_nodes": math.inf}, "between_nodes must be above 0 bytes/s, got inf"),
        ({"gpus_per_node": 0}, "gpus_per_node must be at least 1, got 0"),
        ({"latency": -1.0}, "latency must be at least 0 seconds, got -1.0"),
    ],
)
def test_an_impossible_network_is_refused(changes: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        Network(**({"within_node": 1e9, "between_nodes": 1e9} | changes))
