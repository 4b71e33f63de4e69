from hypothesis import given
from hypothesis import strategies as st

from rm_ray.cluster.timeouts import (
    COMPANY_S,
    CONNECT_S,
    DATA_S,
    EXCHANGE_S,
    FIRST_STEP_S,
    RENDEZVOUS_S,
    SLOW_S,
    STALLED_AFTER_S,
    UPLOAD_S,
    collective_limit,
)


@given(st.floats(min_value=0, max_value=1e6))
def test_the_collective_timeout_exceeds_everything_that_may_delay_a_rank(patience: float):
    limit = collective_limit(patience)

    assert limit > patience + UPLOAD_S  # a checkpoint copied after retries
    assert limit > 2 * patience + UPLOAD_S  # an export and its reference rewards
    assert limit > max(SLOW_S, DATA_S, FIRST_STEP_S, STALLED_AFTER_S)  # the watch acts first


def test_ranks_that_cannot_connect_give_up_before_the_watch_kills_them():
    assert max(COMPANY_S, EXCHANGE_S) < CONNECT_S < SLOW_S
    assert RENDEZVOUS_S < SLOW_S
