import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rm_ray.data.cache.group_tokens import (
    GroupLengths,
    GroupTokens,
    common_prefix,
    count_positions,
    join_groups,
    ragged_arange,
    shared_prefix,
    shared_prefix_of_arrays,
    starts_of,
    sum_runs,
)

Ids = list[int]

Parts = tuple[Ids, list[Ids]]
"""The prefix of a group, and the tails of its conversations."""

# Tails may begin alike: a table caps the prefix so that each branch keeps a token.
ids = st.lists(st.integers(0, 2**31 - 1), max_size=8)

tails = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8)

parts_of_groups = st.lists(st.tuples(ids, st.lists(tails, min_size=1, max_size=5)), max_size=6)

runs = st.lists(st.tuples(st.integers(-5, 50), st.integers(0, 6)), max_size=8)

# Few different ids, so that conversations begin alike.
conversations = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5
)


def lay_out(parts: list[Parts]) -> GroupTokens:
    """Lay out groups whose shared prefix is as given."""
    tokens = [i for prefix, tails in parts for part in (prefix, *tails) for i in part]
    return GroupTokens(
        tokens=np.array(tokens, dtype=np.int32),
        lengths=lengths_of(*((len(prefix), *map(len, tails)) for prefix, tails in parts)),
    )


def lengths_of(*shapes: tuple[int, ...]) -> GroupLengths:
    """Return the lengths of groups, each given by its prefix and its tails."""
    whole = [prefix + tail for prefix, *tails in shapes for tail in tails]
    return GroupLengths(
        num_responses=np.array([len(tails) for _, *tails in shapes], np.int32),
        prefix=np.array([prefix for prefix, *_ in shapes], np.int32),
        conversations=np.array(whole, np.int32),
    )


def test_lengths_of_two_pairs_match_a_worked_example():
    # 2 shared tokens, tails of 1 and 3; nothing shared, tails of 4 and 1.
    lengths = GroupLengths.of_pairs(
        chosen=np.array([3, 4]), rejected=np.array([5, 1]), prefix=np.array([2, 0])
    )

    assert len(lengths) == 2
    assert lengths.num_responses.tolist() == [2, 2]
    assert lengths.conversations.tolist() == [3, 5, 4, 1]
    assert lengths.starts.tolist() == [0, 2]
    assert lengths.all.tolist() == [8, 5]
    assert lengths.longest.tolist() == [5, 4]
    assert lengths.distinct.tolist() == [6, 5]
    # Queries at 0..2 see 1 + 2 + 3 keys, rejected ones at 2..4 see 3 + 4 + 5; then 1..4 and 1.
    assert lengths.attended.tolist() == [18, 11]


def test_lengths_of_a_list_and_of_a_single_response_match_a_worked_example():
    # 2 shared tokens, tails of 1, 3 and 1; then 1 shared token and a tail of 2.
    lengths = lengths_of((2, 1, 3, 1), (1, 2))

    assert lengths.starts.tolist() == [0, 3]
    assert lengths.all.tolist() == [11, 3]
    assert lengths.longest.tolist() == [5, 3]
    assert lengths.distinct.tolist() == [7, 3]
    # As above, and the third response's one query sees 3 keys; then 1 + 2 + 3.
    assert lengths.attended.tolist() == [21, 6]
    # Within 2 keys: 1 + 2 + 2, then 2 + 2 + 2, then 2; and 1 + 2 + 2.
    assert lengths.attended_within(2).tolist() == [13, 5]


@given(parts_of_groups, st.none() | st.integers(1, 12))
def test_lengths_match_the_written_out_conversations(parts: list[Parts], window: int | None):
    lengths = lay_out(parts).lengths

    distinct, longest, attended, all_tokens = [], [], [], []
    for prefix, of_group in parts:
        branches = [
            [(-1, i) for i in range(len(prefix))] + [(k, i) for i in range(len(tail))]
            for k, tail in enumerate(of_group)
        ]
        all_tokens.append(sum(map(len, branches)))
        distinct.append(len({token for branch in branches for token in branch}))
        longest.append(max(len(branch) for branch in branches))
        products = {
            (query, key)
            for branch in branches
            for place, query in enumerate(branch)
            for key in branch[max(0, place + 1 - (window or place + 1)) : place + 1]
        }
        attended.append(len(products))
    assert len(lengths) == len(parts)
    assert lengths.all.tolist() == all_tokens
    assert lengths.distinct.tolist() == distinct
    assert lengths.longest.tolist() == longest
    assert lengths.attended_within(window).tolist() == attended


def test_long_conversations_do_not_overflow_the_table_s_32_bits():
    longest = 2**31 - 1
    lengths = lengths_of((1, longest - 1, longest - 1, longest - 1))

    assert lengths.all.tolist() == [3 * longest]
    assert lengths.distinct.tolist() == [3 * longest - 2]
    assert lengths.attended.tolist() == [3 * longest * 2**30 - 2]
    assert lengths.longest.tolist() == [longest]


def test_groups_are_selected_in_the_given_order_and_may_repeat():
    lengths = lengths_of((2, 1, 3), (0, 4), (7, 2, 1, 5))

    some = lengths[np.array([2, 0, 2])]
    assert len(some) == 3
    assert some.num_responses.tolist() == [3, 2, 3]
    assert some.conversations.tolist() == [9, 8, 12, 3, 5, 9, 8, 12]
    assert some.prefix.tolist() == [7, 2, 7]
    assert some.distinct.tolist() == lengths.distinct[[2, 0, 2]].tolist()

    none = lengths[np.array([], dtype=np.int64)]
    assert len(none) == 0
    assert none.distinct.tolist() == none.attended.tolist() == none.longest.tolist() == []


def test_selected_lengths_do_not_change_with_their_table():
    lengths = lengths_of((0, 3, 3), (0, 4, 4))
    some = lengths[np.array([1])]

    lengths.conversations[2] = 9

    assert some.conversations.tolist() == [4, 4]


@given(parts_of_groups)
def test_the_conversations_of_each_group_round_trip(parts: list[Parts]):
    groups = lay_out(parts)

    assert len(groups) == len(parts)
    for i, (prefix, of_group) in enumerate(parts):
        whole = [prefix + tail for tail in of_group]
        assert [ids.tolist() for ids in groups.conversations(i)] == whole
        assert [groups.conversation(i, k).tolist() for k in range(len(whole))] == whole


@given(parts_of_groups)
def test_the_runs_of_all_responses_follow_each_other(parts: list[Parts]):
    groups = lay_out(parts)

    own = [
        len(tail) + (0 if k else len(prefix))
        for prefix, of_group in parts
        for k, tail in enumerate(of_group)
    ]
    assert groups.own_lengths.tolist() == own
    assert groups.own_starts.tolist() == [sum(own[:i]) for i in range(len(own))]
    assert sum(own) == len(groups.tokens) == groups.lengths.distinct.sum()


@given(st.lists(conversations, min_size=1, max_size=5))
def test_joined_groups_keep_their_conversations_and_store_a_shared_prefix_once(
    groups: list[list[Ids]],
):
    joined = join_groups(groups)

    for i, of_group in enumerate(groups):
        assert [ids.tolist() for ids in joined.conversations(i)] == of_group
        assert joined.lengths.prefix[i] == shared_prefix(of_group)
    assert joined.tokens.dtype == np.int32
    assert len(joined.tokens) == joined.lengths.distinct.sum()


@given(conversations)
def test_a_shared_prefix_is_the_longest_that_leaves_every_conversation_a_token(
    of_group: list[Ids],
):
    length = shared_prefix(of_group)

    first = of_group[0]
    assert all(ids[:length] == first[:length] for ids in of_group)
    assert all(len(ids) > length for ids in of_group)
    longer = length + 1
    assert any(ids[:longer] != first[:longer] or len(ids) <= longer for ids in of_group)


@pytest.mark.parametrize(
    ("of_group", "length"),
    [
        ([[1, 2, 3]], 2),
        ([[1, 2], [1, 2, 3]], 1),
        ([[1, 2, 3], [1, 2, 4], [1, 5]], 1),
        ([[1], [1]], 0),
    ],
)
def test_every_conversation_keeps_a_token_behind_the_prefix(of_group: list[Ids], length: int):
    assert shared_prefix(of_group) == length


def test_positions_of_a_pass_are_distinct_tokens_or_a_rectangle():
    lengths = lengths_of((2, 1, 3, 1), (1, 2))

    assert count_positions(lengths, "packed") == 7 + 3
    assert count_positions(lengths, "padded") == 4 * 5


@given(runs, st.sampled_from([np.int32, np.int64]))
@example([], np.int64)
@example([(4, 0), (7, 2), (3, 0), (3, 0), (-2, 1), (9, 0)], np.int32)
@example([(5, 0)], np.int64)
def test_runs_match_a_loop(runs: list[tuple[int, int]], dtype: type):
    columns: np.ndarray = np.array(runs, dtype=dtype).reshape(-1, 2)

    got = ragged_arange(columns[:, 0], columns[:, 1])

    assert got.tolist() == [start + i for start, length in runs for i in range(length)]
    assert got.dtype == np.int64


@given(st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4), max_size=6))
def test_sums_of_runs_match_a_loop(runs: list[list[int]]):
    values = np.array([value for run in runs for value in run], dtype=np.int32)
    lengths = np.array([len(run) for run in runs], dtype=np.int32)

    assert sum_runs(values, lengths).tolist() == [sum(run) for run in runs]
    assert starts_of(lengths).tolist() == [sum(map(len, runs[:i])) for i in range(len(runs))]


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), max_size=8))
def test_a_common_prefix_is_shared_and_cannot_be_longer(left: list[int], right: list[int]):
    length = common_prefix(left, right)

    assert left[:length] == right[:length]
    assert left[: length + 1] != right[: length + 1] or length == min(len(left), len(right))


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=4))
def test_arrays_share_the_prefix_of_their_lists(conversations: list[list[int]]):
    arrays = [np.array(ids, dtype=np.int32) for ids in conversations]
    assert shared_prefix_of_arrays(arrays) == shared_prefix(conversations)
