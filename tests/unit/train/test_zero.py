"""DeepSpeed's settings."""

import pytest

from rm_ray.train.zero import find_secondary_size


@pytest.mark.parametrize(
    ("nodes", "size"),
    [
        ([0, 0, 1, 1], 2),
        ([0, 0, 0, 1, 1, 1, 2, 2, 2], 3),
        ([1, 1, 0, 0], 2),
        ([0], 1),
        ([0, 0, 0, 0], 1),  # the first partition is within the machine
        ([0, 1, 2, 3], 1),  # a partition over one worker is the whole model
        ([0, 0, 1], 1),
        ([0, 0, 1, 1, 1], 1),
        ([0, 1, 0, 1], 1),  # its groups would cross machines
        ([0, 0, 1, 1, 0, 0], 1),
        ([0, 0, 1, 0, 0, 1], 1),
    ],
)
def test_a_second_partition_spans_the_ranks_of_a_machine_where_all_have_as_many(nodes, size):
    assert find_secondary_size(nodes) == size
