from functools import cache
from itertools import combinations, pairwise

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from rm_ray.data.spread import Spread, spread_padded

world_sizes = st.integers(1, 9)
budgets = st.integers(1, 400)
lengths_of_pairs = st.lists(st.integers(1, 60), min_size=1, max_size=40).map(np.array)


def spread(lengths: np.ndarray, world_size: int, budget: int) -> Spread:
    return spread_padded(lengths, world_size=world_size, tokens_per_micro_batch=budget)


def cost(lengths: np.ndarray, members: np.ndarray) -> int:
    return 2 * len(members) * int(lengths[members].max())


def greedy_groups(lengths: np.ndarray, budget: int) -> int:
    """Count the groups of pairs laid longest first, each filled as far as the budget goes."""
    groups, width, held = 0, 0, 0
    for length in sorted(lengths.tolist(), reverse=True):
        if held and 2 * (held + 1) * width <= budget:
            held += 1
        else:
            groups, width, held = groups + 1, length, 1
    return groups


def fewest_groups(lengths: np.ndarray, budget: int) -> int:
    """Count the groups of the best of all partitions, tried one after another."""

    @cache
    def best(left: frozenset[int]) -> int:
        if not left:
            return 0
        first, *others = sorted(left)
        options = []
        for size in range(len(others) + 1):
            for more in combinations(others, size):
                group = np.array([first, *more])
                if len(group) == 1 or cost(lengths, group) <= budget:
                    options.append(1 + best(left - frozenset(group.tolist())))
        return min(options)

    return best(frozenset(range(len(lengths))))


@given(lengths_of_pairs, world_sizes, budgets)
def test_every_rank_has_equally_many_micro_batches_and_none_is_empty(
    lengths: np.ndarray, world_size: int, budget: int
):
    ranks = spread(lengths, world_size, budget)

    assert len(ranks) == world_size
    assert len({len(micro_batches) for micro_batches in ranks}) == 1
    assert min(len(members) for micro_batches in ranks for members, _ in micro_batches) >= 1


@given(lengths_of_pairs, world_sizes, budgets)
def test_each_pair_counts_exactly_once(lengths: np.ndarray, world_size: int, budget: int):
    counted = [
        member
        for micro_batches in spread(lengths, world_size, budget)
        for members, weight in micro_batches
        for member in members.tolist()
        if weight == 1.0
    ]

    assert sorted(counted) == list(range(len(lengths)))


@given(lengths_of_pairs, world_sizes, budgets)
def test_every_micro_batch_is_within_the_budget_unless_it_is_a_single_pair(
    lengths: np.ndarray, world_size: int, budget: int
):
    for micro_batches in spread(lengths, world_size, budget):
        for members, _ in micro_batches:
            assert len(members) == 1 or cost(lengths, members) <= budget


def test_a_pair_larger_than_the_budget_stands_alone():
    (micro_batches,) = spread(np.array([10, 100, 10, 10]), 1, 60)

    groups = [members.tolist() for members, _ in micro_batches]
    assert [1] in groups
    assert sorted(map(sorted, groups)) == [[0, 2, 3], [1]]


@given(lengths_of_pairs, world_sizes, budgets)
def test_there_are_no_more_micro_batches_than_greedy_filling_needs(
    lengths: np.ndarray, world_size: int, budget: int
):
    ranks = spread(lengths, world_size, budget)

    assert len(ranks[0]) == -(-greedy_groups(lengths, budget) // world_size)


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=6).map(np.array),
    st.integers(1, 4),
    st.integers(1, 80),
)
@example(np.array([7, 6, 5, 4, 3, 2]), 1, 36)
def test_no_other_grouping_needs_fewer_micro_batches(
    lengths: np.ndarray, world_size: int, budget: int
):
    ranks = spread(lengths, world_size, budget)

    assert len(ranks[0]) == -(-fewest_groups(lengths, budget) // world_size)


@given(lengths_of_pairs, world_sizes, budgets)
def test_ranks_that_wait_for_each_other_have_the_nearest_costs(
    lengths: np.ndarray, world_size: int, budget: int
):
    ranks = spread(lengths, world_size, budget)

    costs = [[cost(lengths, members) for members, _ in micro_batches] for micro_batches in ranks]
    positions = list(zip(*costs, strict=True))
    for here, after in pairwise(positions):
        assert min(here) >= max(after)


@given(st.integers(1, 40), world_sizes, st.integers(1, 30))
def test_equal_pairs_are_shared_equally(num_pairs: int, world_size: int, length: int):
    ranks = spread(np.full(num_pairs, length), world_size, 2 * length * num_pairs)

    held = [sum(len(members) for members, _ in micro_batches) for micro_batches in ranks]
    assert max(held) == -(-num_pairs // world_size)


def test_splitting_further_for_another_rank_evens_the_costs_out():
    # One micro-batch would hold all; two ranks get one each, of 1 x 40 and 3 x 10 tokens a side.
    ranks = spread(np.array([10, 40, 10, 10]), 2, 1_000)

    assert sorted(sorted(members.tolist()) for ((members, _),) in ranks) == [[0, 2, 3], [1]]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=8).map(np.array), st.integers(1, 9), budgets
)
def test_ranks_beyond_the_number_of_pairs_repeat_a_pair_that_does_not_count(
    lengths: np.ndarray, more: int, budget: int
):
    ranks = spread(lengths, len(lengths) + more, budget)

    assert [len(micro_batches) for micro_batches in ranks] == [1] * len(ranks)
    idle = [members for ((members, weight),) in ranks if weight == 0.0]
    assert len(idle) == more
    for members in idle:
        assert lengths[members].tolist() == [lengths.min()]  # the cheapest there is


@given(lengths_of_pairs, world_sizes, budgets)
def test_a_pair_is_repeated_only_where_there_are_fewer_pairs_than_micro_batches(
    lengths: np.ndarray, world_size: int, budget: int
):
    ranks = spread(lengths, world_size, budget)

    weights = [weight for micro_batches in ranks for _, weight in micro_batches]
    assert weights.count(0.0) == max(len(weights) - len(lengths), 0)


def test_a_micro_batch_is_halved_where_a_rank_would_have_none():
    # In fours, 16 equal pairs make 4 micro-batches, in threes 6; five ranks need 5.
    ranks = spread(np.full(16, 10), 5, 1_000)

    assert sorted(len(members) for ((members, _),) in ranks) == [2, 2, 4, 4, 4]


def test_ranks_take_turns_at_the_costliest_micro_batch():
    ranks = spread(np.array([40, 30, 20, 10]), 2, 1)  # every pair stands alone

    assert [[members.tolist() for members, _ in batches] for batches in ranks] == [
        [[0], [3]],
        [[1], [2]],
    ]


@given(lengths_of_pairs, world_sizes, budgets)
def test_spreading_twice_gives_the_same(lengths: np.ndarray, world_size: int, budget: int):
    def plain(ranks: list[list[tuple[np.ndarray, float]]]) -> list[list[tuple[list[int], float]]]:
        return [[(members.tolist(), weight) for members, weight in batches] for batches in ranks]

    first, second = (spread(lengths, world_size, budget) for _ in range(2))

    assert plain(first) == plain(second)
