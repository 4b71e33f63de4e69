import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.batches.columns import SCHEMA, from_arrow, to_arrow
from rm_ray.batches.loading import LoadedMicroBatch
from rm_ray.batches.plan import MicroBatch
from rm_ray.data.cache.pair_tokens import join_pairs

ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6)


def micro_batch(pairs: list[tuple[list[int], list[int]]]) -> LoadedMicroBatch:
    count = len(pairs)
    return LoadedMicroBatch(
        plan=MicroBatch(
            step=2**40,
            position=3,
            num_micro_batches=5,
            rank=7,
            pairs=np.arange(2**33, 2**33 + count),
            weights=np.linspace(0, 1, count, dtype=np.float32),
        ),
        pairs=join_pairs(pairs),
        margins=np.linspace(-1, 1, count, dtype=np.float32),
        prompt_lengths=np.arange(count, dtype=np.int32),
    )


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=5))
def test_a_micro_batch_round_trips_with_its_values_and_types(
    pairs: list[tuple[list[int], list[int]]],
):
    sent = micro_batch(pairs)

    got = from_arrow(to_arrow(sent))

    for name in ("step", "position", "num_micro_batches", "rank"):
        assert getattr(got.plan, name) == getattr(sent.plan, name)
    for received, given_ in (
        (got.plan.pairs, sent.plan.pairs),
        (got.plan.weights, sent.plan.weights),
        (got.margins, sent.margins),
        (got.prompt_lengths, sent.prompt_lengths),
        (got.pairs.tokens, sent.pairs.tokens),
        (got.pairs.lengths.chosen, sent.pairs.lengths.chosen),
        (got.pairs.lengths.rejected, sent.pairs.lengths.rejected),
        (got.pairs.lengths.prefix, sent.pairs.lengths.prefix),
    ):
        assert received.dtype == given_.dtype
        np.testing.assert_array_equal(received, given_)


def test_a_micro_batch_is_one_row_of_the_schema():
    table = to_arrow(micro_batch([([1, 2], [1, 3]), ([4], [5])]))

    assert table.schema == SCHEMA
    assert table.num_rows == 1
    assert table.schema.field("tokens").type == pa.list_(pa.int32())
    assert table.column("chosen_lengths").to_pylist() == [[2, 1]]
    assert table.column("tokens").to_pylist() == [[1, 2, 3, 4, 5]]
