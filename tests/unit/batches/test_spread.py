from dataclasses import dataclass
from functools import cache
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rm_ray.batches.spread import Spread, spread_packed, spread_padded

world_sizes = st.integers(1, 9)
budgets = st.integers(1, 400)
tokens_of_groups = st.lists(st.integers(1, 60), min_size=1, max_size=40).map(np.array)


@dataclass(frozen=True)
class Padded:
    """The longest conversation of each group, and its number of responses."""

    longest: np.ndarray
    num_responses: np.ndarray

    def cost(self, members: np.ndarray) -> int:
        """Return the tokens of a batch of these groups, with padding."""
        return int(self.num_responses[members].sum()) * int(self.longest[members].max())

    @property
    def costs(self) -> np.ndarray:
        """The tokens of each group alone."""
        return self.longest * self.num_responses

    def __len__(self) -> int:
        return len(self.longest)


def of_size(size: int, *longest: int) -> Padded:
    return Padded(np.array(longest), np.full(len(longest), size))


def pairs(*longest: int) -> Padded:
    return of_size(2, *longest)


padded_groups = st.lists(
    st.tuples(st.integers(1, 60), st.sampled_from([1, 2, 2, 3, 5])), min_size=1, max_size=40
).map(lambda groups: Padded(*np.array(groups).T))


def spread(groups: Padded, world_size: int, budget: int) -> Spread:
    return spread_padded(
        groups.longest, groups.num_responses, world_size=world_size, tokens_per_micro_batch=budget
    )


def plain(ranks: Spread) -> list[list[tuple[list[int], float]]]:
    return [[(members.tolist(), weight) for members, weight in batches] for batches in ranks]


def greedy_parts(groups: Padded, budget: int) -> int:
    """Count the micro-batches when groups fill them longest first, up to the budget."""
    parts, width, held = 0, 0, 0
    for group in np.argsort(-groups.longest, kind="stable"):
        rows = int(groups.num_responses[group])
        if held and (held + rows) * width <= budget:
            held += rows
        else:
            parts, width, held = parts + 1, int(groups.longest[group]), rows
    return parts


def fewest_parts(groups: Padded, budget: int) -> int:
    """Count the micro-batches of the best partition, by trying all of them."""

    @cache
    def best(left: frozenset[int]) -> int:
        if not left:
            return 0
        first, *others = sorted(left)
        options = []
        for size in range(len(others) + 1):
            for more in combinations(others, size):
                part = np.array([first, *more])
                if len(part) == 1 or groups.cost(part) <= budget:
                    options.append(1 + best(left - frozenset(part.tolist())))
        return min(options)

    return best(frozenset(range(len(groups))))


@given(padded_groups, world_sizes, budgets)
def test_every_rank_has_the_same_number_of_micro_batches_and_none_is_empty(
    groups: Padded, world_size: int, budget: int
):
    ranks = spread(groups, world_size, budget)

    assert len(ranks) == world_size
    assert len({len(micro_batches) for micro_batches in ranks}) == 1
    assert min(len(members) for micro_batches in ranks for members, _ in micro_batches) >= 1


@given(padded_groups, world_sizes, budgets)
def test_each_group_counts_exactly_once(groups: Padded, world_size: int, budget: int):
    counted = [
        member
        for micro_batches in spread(groups, world_size, budget)
        for members, weight in micro_batches
        for member in members.tolist()
        if weight == 1.0
    ]

    assert sorted(counted) == list(range(len(groups)))


@given(padded_groups, world_sizes, budgets)
def test_every_micro_batch_is_within_the_budget_unless_it_is_a_single_group(
    groups: Padded, world_size: int, budget: int
):
    for micro_batches in spread(groups, world_size, budget):
        for members, _ in micro_batches:
            assert len(members) == 1 or groups.cost(members) <= budget


def test_a_pair_larger_than_the_budget_stands_alone():
    (micro_batches,) = spread(pairs(10, 100, 10, 10), 1, 60)

    parts = [members.tolist() for members, _ in micro_batches]
    assert [1] in parts
    assert sorted(map(sorted, parts)) == [[0, 2, 3], [1]]


@given(padded_groups, world_sizes, budgets)
def test_greedy_filling_would_not_need_fewer_micro_batches(
    groups: Padded, world_size: int, budget: int
):
    ranks = spread(groups, world_size, budget)

    assert len(ranks[0]) == -(-greedy_parts(groups, budget) // world_size)


@given(
    st.builds(
        lambda size, longest: of_size(size, *longest),
        st.integers(1, 3),
        st.lists(st.integers(1, 12), min_size=1, max_size=6),
    ),
    st.integers(1, 4),
    st.integers(1, 80),
)
@example(pairs(7, 6, 5, 4, 3, 2), 1, 36)
def test_no_other_grouping_of_groups_of_one_size_needs_fewer_micro_batches(
    groups: Padded, world_size: int, budget: int
):
    ranks = spread(groups, world_size, budget)

    assert len(ranks[0]) == -(-fewest_parts(groups, budget) // world_size)


@given(padded_groups, world_sizes, budgets)
def test_ranks_that_wait_for_each_other_have_the_nearest_costs(
    groups: Padded, world_size: int, budget: int
):
    ranks = spread(groups, world_size, budget)

    costs = [[groups.cost(members) for members, _ in micro_batches] for micro_batches in ranks]
    positions = list(zip(*costs, strict=True))
    for here, after in pairwise(positions):
        assert min(here) >= max(after)


@given(st.integers(1, 40), world_sizes, st.integers(1, 30))
def test_equal_pairs_are_shared_equally(num_groups: int, world_size: int, length: int):
    ranks = spread(pairs(*[length] * num_groups), world_size, 2 * length * num_groups)

    held = [sum(len(members) for members, _ in micro_batches) for micro_batches in ranks]
    assert max(held) == -(-num_groups // world_size)


def test_splitting_for_another_rank_balances_the_costs():
    # One micro-batch would hold all; two ranks get one each, of 1 x 40 and 3 x 10 tokens a side.
    ranks = spread(pairs(10, 40, 10, 10), 2, 1_000)

    assert sorted(sorted(members.tolist()) for ((members, _),) in ranks) == [[0, 2, 3], [1]]


@given(padded_groups.filter(lambda groups: len(groups) <= 8), st.integers(1, 9), budgets)
def test_ranks_beyond_the_number_of_groups_repeat_a_group_that_does_not_count(
    groups: Padded, more: int, budget: int
):
    ranks = spread(groups, len(groups) + more, budget)

    assert [len(micro_batches) for micro_batches in ranks] == [1] * len(ranks)
    idle = [members for ((members, weight),) in ranks if weight == 0.0]
    assert len(idle) == more
    for members in idle:
        assert groups.costs[members].tolist() == [groups.costs.min()]  # the cheapest one


@given(padded_groups, world_sizes, budgets)
def test_a_group_is_repeated_only_if_there_are_fewer_groups_than_micro_batches(
    groups: Padded, world_size: int, budget: int
):
    ranks = spread(groups, world_size, budget)

    weights = [weight for micro_batches in ranks for _, weight in micro_batches]
    assert weights.count(0.0) == max(len(weights) - len(groups), 0)


def test_a_micro_batch_is_halved_if_a_rank_would_have_none():
    # In fours, 16 equal pairs make 4 micro-batches, in threes 6; five ranks need 5.
    ranks = spread(pairs(*[10] * 16), 5, 1_000)

    assert sorted(len(members) for ((members, _),) in ranks) == [2, 2, 4, 4, 4]


def test_ranks_take_turns_at_the_costliest_micro_batch():
    ranks = spread(pairs(40, 30, 20, 10), 2, 1)  # every pair stands alone

    assert [[members.tolist() for members, _ in batches] for batches in ranks] == [
        [[0], [3]],
        [[1], [2]],
    ]


def test_a_long_list_takes_the_room_of_several_pairs():
    # Of 10 tokens each; 60 tokens hold a list of four and one pair, or three pairs.
    (micro_batches,) = spread(Padded(np.full(5, 10), np.array([2, 4, 2, 2, 2])), 1, 60)

    assert plain([micro_batches]) == [[([0, 1], 1.0), ([2, 3, 4], 1.0)]]


def test_the_filler_is_the_cheapest_group_and_not_the_one_with_the_shortest_conversation():
    groups = Padded(np.array([12, 10]), np.array([1, 5]))  # 12 tokens, and 50

    ranks = spread(groups, 3, 100)

    assert plain(ranks) == [[([1], 1.0)], [([0], 1.0)], [([0], 0.0)]]


@given(padded_groups, world_sizes, budgets)
def test_spreading_twice_gives_the_same(groups: Padded, world_size: int, budget: int):
    first, second = (spread(groups, world_size, budget) for _ in range(2))

    assert plain(first) == plain(second)


def pack(
    tokens: np.ndarray, world_size: int, budget: int, costs: np.ndarray | None = None
) -> Spread:
    return spread_packed(
        tokens,
        tokens.astype(float) if costs is None else costs,
        world_size=world_size,
        tokens_per_micro_batch=budget,
    )


def with_attention(tokens: np.ndarray, weight: float) -> np.ndarray:
    """Return costs that grow with the square of a pair's tokens."""
    costs: np.ndarray = tokens + weight * tokens.astype(np.int64) ** 2
    return costs


def loads(ranks: Spread, costs: np.ndarray) -> np.ndarray:
    """Return the work of each rank at each position, ``[ranks, positions]``."""
    return np.array(
        [[weight * costs[members].sum() for members, weight in batches] for batches in ranks]
    )


def fewest_packed(tokens: np.ndarray, budget: int) -> int:
    """Count the groups of the best partition; a pair over the budget gets its own."""
    sizes = [min(size, budget) for size in tokens.tolist()]

    @cache
    def best(left: frozenset[int]) -> tuple[int, int]:
        """Return the fewest groups, and the smallest possible size of the last one."""
        if not left:
            return 0, budget
        options = []
        for pair in left:
            groups, held = best(left - {pair})
            fits = held + sizes[pair] <= budget
            options.append((groups, held + sizes[pair]) if fits else (groups + 1, sizes[pair]))
        return min(options)

    return best(frozenset(range(len(sizes))))[0]


attention_weights = st.sampled_from([0.0, 0.01, 0.3])


@given(tokens_of_groups, world_sizes, budgets, attention_weights)
def test_packed_every_rank_has_the_same_number_of_micro_batches_and_none_is_empty(
    tokens: np.ndarray, world_size: int, budget: int, weight: float
):
    ranks = pack(tokens, world_size, budget, with_attention(tokens, weight))

    assert len(ranks) == world_size
    assert len({len(batches) for batches in ranks}) == 1
    assert min(len(members) for batches in ranks for members, _ in batches) >= 1


@given(tokens_of_groups, world_sizes, budgets, attention_weights)
def test_packed_each_group_counts_exactly_once(
    tokens: np.ndarray, world_size: int, budget: int, weight: float
):
    ranks = pack(tokens, world_size, budget, with_attention(tokens, weight))

    weighted = [item for batches in ranks for item in batches]
    assert {weight for _, weight in weighted} <= {0.0, 1.0}
    counted = [pair for members, weight in weighted if weight for pair in members.tolist()]
    assert sorted(counted) == list(range(len(tokens)))


@given(tokens_of_groups, world_sizes, budgets, attention_weights)
def test_packed_every_micro_batch_is_within_the_budget_unless_it_is_a_single_group(
    tokens: np.ndarray, world_size: int, budget: int, weight: float
):
    for batches in pack(tokens, world_size, budget, with_attention(tokens, weight)):
        for members, _ in batches:
            assert len(members) == 1 or tokens[members].sum() <= budget


def test_packed_a_pair_larger_than_the_budget_stands_alone():
    (batches,) = pack(np.array([10, 100, 10, 10]), 1, 60)

    assert sorted(sorted(members.tolist()) for members, _ in batches) == [[0, 2, 3], [1]]


def test_packed_pairs_that_fill_the_budget_exactly_share_one_micro_batch():
    (batches,) = pack(np.array([10, 30, 20]), 1, 60)
    assert [sorted(members.tolist()) for members, _ in batches] == [[0, 1, 2]]

    (batches,) = pack(np.array([10, 30, 20]), 1, 59)
    assert len(batches) == 2


@settings(max_examples=200)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=8).map(np.array),
    st.integers(1, 4),
    st.integers(1, 90),
    attention_weights,
)
@example(np.array([3, 3, 2, 2, 2]), 1, 6, 0.0)
def test_packed_up_to_eight_pairs_need_at_most_one_group_more_than_the_best_grouping(
    tokens: np.ndarray, world_size: int, budget: int, weight: float
):
    """If heaviest first does not find m groups, the best grouping has at least m.

    It fails at a pair x that has room nowhere, all before it being as large. Set aside the pairs
    that x does not fit beside even alone: no grouping adds anything to them. The k groups left
    hold two or more each, so k <= 3. If x is over a third of the budget, no group can hold three,
    and k of them are too few; else all k are filled over two thirds, too much for k - 1.
    """
    (first, *_) = pack(tokens, world_size, budget, with_attention(tokens, weight))

    best = fewest_packed(tokens, budget)
    assert -(-best // world_size) <= len(first) <= -(-(best + 1) // world_size)


def test_packed_first_fit_finds_a_perfect_packing_that_heaviest_first_misses():
    # 3 + 3 and 2 + 2 + 2 fit into 2 x 6; heaviest first makes 3 + 2 + 2 and 3 + 2 of them.
    (batches,) = pack(np.array([3, 3, 2, 2, 2]), 1, 6)

    assert sorted(members.tolist() for members, _ in batches) == [[0, 1], [2, 3, 4]]


def test_packed_tokens_are_balanced_if_balancing_costs_breaks_the_budget():
    # By cost 9 | 4 + 3 + 2, of which one holds 10 tokens; by tokens 4 + 2 in each.
    tokens, costs = np.array([2, 2, 4, 4]), np.array([9.0, 2.0, 3.0, 4.0])

    (batches,) = pack(tokens, 1, 6, costs)

    assert sorted(tokens[members].tolist() for members, _ in batches) == [[4, 2], [4, 2]]


@given(
    tokens_of_groups.filter(lambda tokens: len(tokens) > 1),
    world_sizes,
    attention_weights,
)
def test_packed_no_rank_without_its_smallest_pair_has_more_work_than_another(
    tokens: np.ndarray, world_size: int, weight: float
):
    costs = with_attention(tokens, weight)
    ranks = pack(tokens, world_size, int(tokens.sum()), costs)  # the budget does not matter

    assert {len(batches) for batches in ranks} == {1}
    held = loads(ranks, costs)[:, 0]
    for ((members, load_weight),), load in zip(ranks, held, strict=True):
        if load_weight:
            assert load - costs[members].min() <= held.min() + 1e-9 * load


def test_packed_the_work_of_attention_is_balanced():
    # By tokens, 8 + 4 equals 4 + 4 + 4; by work, 8 alone equals four of 4.
    tokens = np.array([8, 4, 4, 4, 4])

    by_work = pack(tokens, 2, 100, tokens.astype(float) ** 2)
    by_tokens = pack(tokens, 2, 100)

    def held(ranks: Spread) -> list[list[int]]:
        return sorted(sorted(tokens[members].tolist()) for ((members, _),) in ranks)

    assert held(by_work) == [[4, 4, 4, 4], [8]]
    assert held(by_tokens) == [[4, 4, 4], [4, 8]]


def lognormal_pairs(seed: int, num_groups: int) -> np.ndarray:
    """Return token counts like those of chats: median 650, one in a hundred over 4,000."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.lognormal(6.5, 0.8, num_groups), 20, 8_192).astype(int)


@pytest.mark.parametrize("weight", [0.0, 2e-5, 1e-4])
@pytest.mark.parametrize("seed", range(8))
def test_packed_256_pairs_of_usual_lengths_load_8_ranks_within_3_percent_at_every_position(
    seed: int, weight: float
):
    tokens = lognormal_pairs(seed, 256)
    costs = with_attention(tokens, weight)

    held = loads(pack(tokens, 8, 16_384, costs), costs)

    assert (held.mean(axis=0) / held.max(axis=0)).min() >= 0.97


@pytest.mark.parametrize("seed", range(8))
def test_packed_256_pairs_of_usual_lengths_take_no_more_micro_batches_than_needed(
    seed: int,
):
    tokens = lognormal_pairs(seed, 256)

    ranks = pack(tokens, 8, 16_384, with_attention(tokens, 2e-5))

    assert len(ranks[0]) == -(-int(tokens.sum()) // (8 * 16_384))


@given(tokens_of_groups, world_sizes, budgets, attention_weights)
def test_packed_ranks_that_wait_for_each_other_have_the_nearest_costs(
    tokens: np.ndarray, world_size: int, budget: int, weight: float
):
    costs = with_attention(tokens, weight)
    ranks = pack(tokens, world_size, budget, costs)

    for here, after in pairwise(loads(ranks, costs).T):
        assert here.min() >= after.max()


def test_packed_ranks_take_turns_at_the_costliest_micro_batch():
    ranks = pack(np.array([40, 30, 20, 10]), 2, 1)  # every pair stands alone

    assert [[members.tolist() for members, _ in batches] for batches in ranks] == [
        [[0], [3]],
        [[1], [2]],
    ]


@given(tokens_of_groups, world_sizes, budgets)
def test_packed_the_smallest_pair_is_repeated_if_there_are_fewer_pairs_than_micro_batches(
    tokens: np.ndarray, world_size: int, budget: int
):
    ranks = pack(tokens, world_size, budget)

    weighted = [item for batches in ranks for item in batches]
    idle = [members for members, weight in weighted if weight == 0.0]
    assert len(idle) == max(len(weighted) - len(tokens), 0)
    assert len(idle) < world_size
    for members in idle:
        assert tokens[members].tolist() == [tokens.min()]


def test_packed_three_pairs_on_five_ranks_repeat_the_smallest_twice():
    ranks = pack(np.array([5, 2, 9]), 5, 100)

    assert plain(ranks) == [
        [([2], 1.0)],
        [([0], 1.0)],
        [([1], 1.0)],
        [([1], 0.0)],
        [([1], 0.0)],
    ]


@given(tokens_of_groups, world_sizes, budgets, attention_weights)
def test_packing_twice_gives_the_same(
    tokens: np.ndarray, world_size: int, budget: int, weight: float
):
    costs = with_attention(tokens, weight)
    first, second = (pack(tokens.copy(), world_size, budget, costs.copy()) for _ in range(2))

    assert plain(first) == plain(second)


@given(tokens_of_groups, world_sizes, budgets)
def test_packed_the_unit_of_costs_does_not_matter(tokens: np.ndarray, world_size: int, budget: int):
    costs = with_attention(tokens, 0.25)  # exact in binary, so that equal costs stay equal

    assert plain(pack(tokens, world_size, budget, costs)) == plain(
        pack(tokens, world_size, budget, costs * 2.0**40)
    )
