import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.batches.columns import SCHEMA, from_arrow, to_arrow
from rm_ray.batches.loading import LoadedMicroBatch
from rm_ray.batches.plan import MicroBatch
from rm_ray.data.cache.group_columns import COLUMNS, GroupColumns
from rm_ray.data.cache.group_tokens import join_groups

ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6)


Conversations = list[list[int]]


def micro_batch(conversations: list[Conversations]) -> LoadedMicroBatch:
    """Load groups in which each response but the last is better than the next one."""
    count, groups = len(conversations), join_groups(conversations)
    lengths = groups.lengths
    num_comparisons = lengths.num_responses - 1
    compared = int(num_comparisons.sum())
    better = np.concatenate([np.arange(each) for each in num_comparisons])
    columns = GroupColumns.of(
        {
            "num_responses": lengths.num_responses,
            "num_comparisons": num_comparisons,
            "prefix_length": lengths.prefix,
            "prompt_length": np.arange(count),
            "length": lengths.conversations,
            "score": np.where(np.arange(len(lengths.conversations)) % 2, np.nan, 0.1),
            "better": better,
            "worse": better + 1,
            "weight": 1 / np.repeat(num_comparisons, num_comparisons),
            "margin": np.linspace(-1, 1, compared),
            "probability": np.linspace(0.5, 1, compared),
        }
    )
    return LoadedMicroBatch(
        plan=MicroBatch(
            step=2**40,
            position=3,
            num_micro_batches=5,
            rank=7,
            groups=np.arange(2**33, 2**33 + count),
            weights=np.linspace(0, 1, count, dtype=np.float32),
        ),
        columns=columns,
        tokens=groups.tokens,
    )


@given(st.lists(st.lists(ids, min_size=1, max_size=5), min_size=1, max_size=5))
def test_a_micro_batch_round_trips_with_its_values_and_types(conversations: list[Conversations]):
    sent = micro_batch(conversations)

    got = from_arrow(to_arrow(sent))

    for name in ("step", "position", "num_micro_batches", "rank"):
        assert getattr(got.plan, name) == getattr(sent.plan, name)
    for received, given_ in (
        (got.plan.groups, sent.plan.groups),
        (got.plan.weights, sent.plan.weights),
        (got.tokens, sent.tokens),
        *((getattr(got.columns, name), getattr(sent.columns, name)) for name in COLUMNS),
    ):
        assert received.dtype == given_.dtype
        np.testing.assert_array_equal(received, given_)
    for i, group in enumerate(conversations):
        assert [ids.tolist() for ids in got.groups.conversations(i)] == group


def test_a_micro_batch_is_one_row_of_the_schema():
    table = to_arrow(micro_batch([[[1, 2], [1, 3], [1, 4, 6]], [[5]], [[7], [8]]]))

    assert table.schema == SCHEMA
    assert table.num_rows == 1
    assert table.schema.field("tokens").type == pa.list_(pa.int32())
    assert table.column("num_responses").to_pylist() == [[3, 1, 2]]
    assert table.column("length").to_pylist() == [[2, 2, 3, 1, 1, 1]]
    assert table.column("num_comparisons").to_pylist() == [[2, 0, 1]]
    assert table.column("better").to_pylist() == [[0, 1, 0]]
    assert table.column("worse").to_pylist() == [[1, 2, 1]]
    assert table.column("weight").to_pylist() == [[0.5, 0.5, 1.0]]
    assert table.column("tokens").to_pylist() == [[1, 2, 3, 4, 6, 5, 7, 8]]
