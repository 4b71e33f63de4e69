"""GPU memory available for tensors."""

import pytest

from rm_ray.estimate.gpu_memory import usable_memory


@pytest.mark.parametrize(("gigabytes", "usable"), [(80, 68.172), (24, 19.228), (141, 121.486)])
def test_cuda_fragmentation_and_the_estimate_s_error_reduce_usable_memory(gigabytes, usable):
    assert usable_memory(gigabytes * 10**9) == pytest.approx(usable * 1e9, rel=1e-9)
    assert usable == pytest.approx((gigabytes - 2) * 0.95 * 0.92)
