"""The preflight options, and the compute speed and network they describe."""

import pytest

from rm_ray.errors import InputError
from rm_ray.estimate.network import Network
from rm_ray.preflight.options import PreflightCommand


def test_the_speed_of_a_gpu_is_a_share_of_its_peak_unless_measured():
    assumed = PreflightCommand(gpu_peak_tflops=500, compute_share=0.5).compute(None)
    assert (assumed.peak, assumed.reached, assumed.is_measured) == (500e12, 250e12, False)
    assert assumed.source == "250 TFLOP/s per GPU in its passes, assumed: 0.5 of a peak of 500"
    measured = PreflightCommand(gpu_peak_tflops=500).compute(312.4e12)
    assert (measured.peak, measured.reached) == (500e12, 312.4e12)
    assert measured.source == "312 TFLOP/s per GPU in its passes, measured on one"


def test_a_network_is_given_by_two_speeds():
    assert PreflightCommand().network is None
    given = PreflightCommand(
        within_node_gb_per_s=450, between_nodes_gb_per_s=50, gpus_per_node=4
    ).network
    assert given == Network(within_node=450e9, between_nodes=50e9, gpus_per_node=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute_share": 1.5}, "--compute_share must be at most 1"),
        ({"gpus_per_node": 0}, "--gpus_per_node must be at least 1"),
        ({"within_node_gb_per_s": 450.0}, "together"),
        (
            {
                "measure_network": True,
                "within_node_gb_per_s": 1.0,
                "between_nodes_gb_per_s": 1.0,
            },
            "both set the network speed",
        ),
        ({"between_nodes_gb_per_s": float("nan")}, "must be a number above 0, got nan"),
    ],
)
def test_invalid_or_conflicting_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        PreflightCommand(**options)
