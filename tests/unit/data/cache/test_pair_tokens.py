import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from rm_ray.data.cache.pair_tokens import PairLengths, PairTokens, common_prefix, ragged_arange

Ids = list[int]


# Tails may begin alike: a table caps the prefix so that each branch keeps a token.
ids = st.lists(st.integers(0, 2**31 - 1), max_size=8)

tails = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8)

parts_of_pairs = st.lists(st.tuples(ids, tails, tails), max_size=6)

runs = st.lists(st.tuples(st.integers(-5, 50), st.integers(0, 6)), max_size=8)


def lay_out(parts: list[tuple[Ids, Ids, Ids]]) -> PairTokens:
    """Lay out pairs whose shared prefix is as given."""
    return PairTokens(
        tokens=np.array([i for pair in parts for part in pair for i in part], dtype=np.int32),
        lengths=PairLengths(
            chosen=np.array([len(prefix) + len(tail) for prefix, tail, _ in parts], np.int32),
            rejected=np.array([len(prefix) + len(tail) for prefix, _, tail in parts], np.int32),
            prefix=np.array([len(prefix) for prefix, _, _ in parts], np.int32),
        ),
    )


def lengths_of(chosen: list[int], rejected: list[int], prefix: list[int]) -> PairLengths:
    return PairLengths(
        chosen=np.array(chosen, np.int32),
        rejected=np.array(rejected, np.int32),
        prefix=np.array(prefix, np.int32),
    )


def test_lengths_of_two_pairs_match_a_worked_example():
    # 2 shared tokens, tails of 1 and 3; nothing shared, tails of 4 and 1.
    lengths = lengths_of([3, 4], [5, 1], [2, 0])

    assert len(lengths) == 2
    assert lengths.longest.tolist() == [5, 4]
    assert lengths.distinct.tolist() == [6, 5]
    # Queries at 0..2 see 1 + 2 + 3 keys, rejected ones at 2..4 see 3 + 4 + 5; then 1..4 and 1.
    assert lengths.attended.tolist() == [18, 11]


@given(parts_of_pairs)
def test_lengths_match_the_written_out_conversations(parts: list[tuple[Ids, Ids, Ids]]):
    lengths = lay_out(parts).lengths

    distinct, longest, attended = [], [], []
    for prefix, chosen, rejected in parts:
        branches = [
            [("prefix", i) for i in range(len(prefix))] + [(name, i) for i in range(len(tail))]
            for name, tail in (("chosen", chosen), ("rejected", rejected))
        ]
        distinct.append(len({token for branch in branches for token in branch}))
        longest.append(max(len(branch) for branch in branches))
        products = {
            (query, key)
            for branch in branches
            for place, query in enumerate(branch)
            for key in branch[: place + 1]
        }
        attended.append(len(products))
    assert len(lengths) == len(parts)
    assert lengths.distinct.tolist() == distinct
    assert lengths.longest.tolist() == longest
    assert lengths.attended.tolist() == attended


def test_long_conversations_do_not_overflow_the_table_s_32_bits():
    lengths = lengths_of([2**31 - 1], [2**31 - 1], [1])

    assert lengths.distinct.tolist() == [2**32 - 3]
    assert lengths.attended.tolist() == [2**31 * (2**31 - 1) - 1]
    assert lengths.longest.tolist() == [2**31 - 1]


def test_pairs_are_selected_in_the_given_order_and_may_repeat():
    lengths = lengths_of([3, 4, 9], [5, 1, 8], [2, 0, 7])

    some = lengths[np.array([2, 0, 2])]
    assert len(some) == 3
    assert some.chosen.tolist() == [9, 3, 9]
    assert some.rejected.tolist() == [8, 5, 8]
    assert some.prefix.tolist() == [7, 2, 7]
    assert some.distinct.tolist() == lengths.distinct[[2, 0, 2]].tolist()

    none = lengths[np.array([], dtype=np.int64)]
    assert len(none) == 0
    assert none.distinct.tolist() == none.attended.tolist() == none.longest.tolist() == []


def test_selected_lengths_do_not_change_with_their_table():
    chosen = np.array([3, 4])
    lengths = PairLengths(chosen=chosen, rejected=chosen, prefix=np.zeros(2, int))
    some = lengths[np.array([1])]

    chosen[1] = 9

    assert some.chosen.tolist() == [4]


@given(parts_of_pairs)
def test_both_conversations_of_each_pair_round_trip(parts: list[tuple[Ids, Ids, Ids]]):
    pairs = lay_out(parts)

    assert len(pairs) == len(parts)
    for i, (prefix, chosen, rejected) in enumerate(parts):
        assert pairs.chosen(i).tolist() == prefix + chosen
        assert pairs.rejected(i).tolist() == prefix + rejected
    lengths = [len(prefix) + len(chosen) + len(rejected) for prefix, chosen, rejected in parts]
    assert pairs.starts.tolist() == [sum(lengths[:i]) for i in range(len(parts))]


@given(runs, st.sampled_from([np.int32, np.int64]))
@example([], np.int64)
@example([(4, 0), (7, 2), (3, 0), (3, 0), (-2, 1), (9, 0)], np.int32)
@example([(5, 0)], np.int64)
def test_runs_match_a_loop(runs: list[tuple[int, int]], dtype: type):
    columns: np.ndarray = np.array(runs, dtype=dtype).reshape(-1, 2)

    got = ragged_arange(columns[:, 0], columns[:, 1])

    assert got.tolist() == [start + i for start, length in runs for i in range(length)]
    assert got.dtype == np.int64


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), max_size=8))
def test_a_common_prefix_is_shared_and_cannot_be_longer(left: list[int], right: list[int]):
    length = common_prefix(left, right)

    assert left[:length] == right[:length]
    assert left[: length + 1] != right[: length + 1] or length == min(len(left), len(right))
