import pytest

from rm_ray.estimate.gpu_speed import TERA, Compute


def test_a_measured_speed_overrides_the_assumed_share():
    compute = Compute.of(peak=989 * TERA, share=0.4, measured=412.3 * TERA)
    assert compute == Compute(
        peak=989 * TERA,
        reached=412.3 * TERA,
        source="412 TFLOP/s per GPU in its passes, measured on one",
    )


def test_without_a_measurement_a_share_of_the_peak_is_assumed():
    compute = Compute.of(peak=312.5 * TERA, share=0.4, measured=None)
    assert compute.reached == pytest.approx(125 * TERA)
    assert compute.source == "125 TFLOP/s per GPU in its passes, assumed: 0.4 of a peak of 312.5"
