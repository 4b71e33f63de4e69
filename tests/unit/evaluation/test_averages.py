import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rm_ray.evaluation.averages import correlation, mean, standard_deviation

values = hnp.arrays(np.float64, 12, elements=st.integers(-40, 40).map(lambda n: n / 4))
counts = hnp.arrays(np.int64, 12, elements=st.integers(1, 3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_of_one_leave_the_plain_figures_bit_for_bit(dtype):
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, 1001)).astype(dtype)
    ones = np.ones(1001)
    assert mean(left, ones) == float(left.mean())
    assert standard_deviation(left, ones) == float(left.std())
    assert correlation(left, right, ones) == float(np.corrcoef(left, right)[0, 1])


@given(values, values, counts)
def test_a_whole_weight_counts_a_value_as_often(left, right, often):
    repeated, other = np.repeat(left, often), np.repeat(right, often)
    weights = often / 8
    assert mean(left, weights) == pytest.approx(repeated.mean(), abs=1e-12)
    assert standard_deviation(left, weights) == pytest.approx(repeated.std(), abs=1e-12)
    found = correlation(left, right, weights)
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        assert found is None
    else:
        assert found == pytest.approx(np.corrcoef(repeated, other)[0, 1], abs=1e-9)


def test_constant_values_have_no_correlation():
    assert correlation(np.ones(3), np.arange(3), np.ones(3)) is None
    assert correlation(np.arange(1), np.arange(1), np.ones(1)) is None
