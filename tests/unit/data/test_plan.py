from functools import cache
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rm_ray.data.plan import MicroBatch, Plan, PlanSettings, Steps, epoch_order, spread

WORLD_SIZES = range(1, 10)

world_sizes = st.integers(1, 9)
budgets = st.integers(1, 400)
lengths_of_pairs = st.lists(st.integers(1, 60), min_size=1, max_size=40).map(np.array)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    return Plan(
        lengths=draw(lengths_of_pairs),
        settings=PlanSettings(
            global_batch_size=draw(st.integers(1, 20)),
            tokens_per_micro_batch=draw(budgets),
            seed=draw(st.integers(0, 3)),
            epochs=draw(st.integers(1, 3)),
            max_episodes=draw(st.none() | st.integers(1, 130)),
            shuffle=draw(st.booleans()),
        ),
    )


def plan_of(num_pairs: int, **settings: object) -> Plan:
    defaults = {"global_batch_size": 8, "tokens_per_micro_batch": 100}
    return Plan(lengths=np.full(num_pairs, 5), settings=PlanSettings(**(defaults | settings)))


def all_ranks(plan: Plan, step: int, world_size: int) -> list[list[MicroBatch]]:
    return [
        plan.micro_batches(step, rank=rank, world_size=world_size) for rank in range(world_size)
    ]


def counting_pairs(ranks: list[list[MicroBatch]]) -> list[int]:
    return sorted(
        int(pair)
        for micro_batches in ranks
        for micro_batch in micro_batches
        for pair, weight in zip(micro_batch.pairs, micro_batch.weights, strict=True)
        if weight
    )


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


@given(plans())
def test_each_pair_appears_once_an_epoch(plan: Plan):
    per_epoch = plan.steps.per_epoch
    settings = PlanSettings(**{**vars(plan.settings), "max_episodes": None})
    whole = Plan(lengths=plan.lengths, settings=settings)

    for epoch in range(settings.epochs):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        pairs = np.concatenate([whole.pairs_of_step(step) for step in steps])
        assert sorted(pairs.tolist()) == list(range(len(plan.lengths)))
        assert pairs.tolist() == whole.order(epoch).tolist()


@given(plans())
def test_all_steps_together_train_exactly_the_episodes_asked_for(plan: Plan):
    steps, settings = plan.steps, plan.settings
    whole = len(plan.lengths) * settings.epochs
    asked = whole if settings.max_episodes is None else min(whole, settings.max_episodes)

    trained = [len(plan.pairs_of_step(step)) for step in range(steps.total)]

    assert steps.num_episodes == asked
    assert sum(trained) == asked
    assert trained == [steps.size(step) for step in range(steps.total)]
    assert min(trained) >= 1
    assert max(trained) <= settings.global_batch_size


@given(plans())
def test_the_episodes_before_a_step_are_those_of_the_steps_before_it(plan: Plan):
    steps = plan.steps
    sizes = [steps.size(step) for step in range(steps.total)]

    for step in range(steps.total + 1):
        assert steps.episodes_before(step) == sum(sizes[:step])


@given(plans())
def test_only_the_last_step_of_an_epoch_or_of_the_run_is_short(plan: Plan):
    steps = plan.steps
    for step in range(steps.total - 1):
        if (step + 1) % steps.per_epoch:
            assert steps.size(step) == plan.settings.global_batch_size


def test_an_epoch_of_ten_pairs_in_fours_ends_with_a_step_of_two():
    steps = Steps(
        num_pairs=10,
        settings=PlanSettings(global_batch_size=4, tokens_per_micro_batch=1, epochs=2),
    )

    assert (steps.per_epoch, steps.total, steps.num_episodes) == (3, 6, 20)
    assert [steps.size(step) for step in range(6)] == [4, 4, 2, 4, 4, 2]
    assert [steps.episodes_before(step) for step in range(7)] == [0, 4, 8, 10, 14, 18, 20]


@pytest.mark.parametrize(
    ("max_episodes", "sizes"),
    [(3, [3]), (4, [4]), (9, [4, 4, 1]), (10, [4, 4, 2]), (11, [4, 4, 2, 1]), (99, [4, 4, 2] * 2)],
)
def test_max_episodes_ends_the_run_in_the_middle_of_an_epoch_or_step(
    max_episodes: int, sizes: list[int]
):
    plan = plan_of(10, global_batch_size=4, epochs=2, max_episodes=max_episodes)

    assert plan.steps.total == len(sizes)
    assert [len(plan.pairs_of_step(step)) for step in range(len(sizes))] == sizes


def test_a_shorter_run_begins_with_the_same_pairs():
    short, long = plan_of(30, max_episodes=21), plan_of(30, epochs=2)

    trained = np.concatenate([short.pairs_of_step(step) for step in range(short.steps.total)])
    begun = np.concatenate([long.pairs_of_step(step) for step in range(long.steps.total)])
    assert trained.tolist() == begun[:21].tolist()


def test_every_epoch_and_every_seed_has_an_order_of_its_own():
    orders = [
        plan_of(60, seed=seed, epochs=4).order(epoch).tolist()
        for seed in range(4)
        for epoch in range(4)
    ]

    assert len({tuple(order) for order in orders}) == 16
    assert list(range(60)) not in orders


def test_an_order_does_not_depend_on_what_was_asked_before():
    epoch_order.cache_clear()
    first = epoch_order(20, 0, 3).tolist()
    for epoch in range(6):
        epoch_order(20, 1, epoch)

    assert epoch_order(20, 0, 3).tolist() == first


def test_without_shuffling_pairs_come_as_they_are_in_every_epoch():
    plan = plan_of(10, global_batch_size=4, epochs=2, shuffle=False)

    assert [plan.pairs_of_step(step).tolist() for step in range(6)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ] * 2


def test_the_batch_size_cuts_the_same_order_elsewhere():
    fours, fives = plan_of(20, global_batch_size=4), plan_of(20, global_batch_size=5)

    assert (
        np.concatenate([fours.pairs_of_step(step) for step in range(5)]).tolist()
        == np.concatenate([fives.pairs_of_step(step) for step in range(4)]).tolist()
    )


@given(plans())
def test_the_pairs_of_a_step_do_not_depend_on_the_number_of_workers(plan: Plan):
    for step in range(min(plan.steps.total, 3)):
        expected = sorted(plan.pairs_of_step(step).tolist())
        for world_size in WORLD_SIZES:
            assert counting_pairs(all_ranks(plan, step, world_size)) == expected


@given(plans(), world_sizes)
def test_the_weights_of_all_ranks_sum_to_the_true_batch_size(plan: Plan, world_size: int):
    for step in range(plan.steps.total):
        weights = [
            weight
            for micro_batches in all_ranks(plan, step, world_size)
            for micro_batch in micro_batches
            for weight in micro_batch.weights.tolist()
        ]
        assert set(weights) <= {0.0, 1.0}
        assert sum(weights) == plan.steps.size(step)


@given(plans(), world_sizes)
def test_every_micro_batch_knows_its_step_position_and_rank(plan: Plan, world_size: int):
    step = plan.steps.total - 1
    ranks = all_ranks(plan, step, world_size)

    for rank, micro_batches in enumerate(ranks):
        for position, micro_batch in enumerate(micro_batches):
            assert micro_batch.step == step
            assert micro_batch.position == position
            assert micro_batch.rank == rank
            assert micro_batch.num_micro_batches == len(ranks[0])
            assert micro_batch.weights.dtype == np.float32
            assert micro_batch.weights.shape == micro_batch.pairs.shape


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


def test_plans_with_the_same_pairs_in_the_same_steps_have_the_same_fingerprint():
    plan = plan_of(20, seed=3)

    assert plan.fingerprint() == plan_of(20, seed=3).fingerprint()
    assert plan.fingerprint() == plan_of(20, seed=3, tokens_per_micro_batch=7).fingerprint()
    assert plan.fingerprint() == plan_of(20, seed=3, epochs=5).fingerprint()


def test_whatever_moves_a_pair_changes_the_fingerprint():
    longer = Plan(lengths=np.array([5] * 19 + [6]), settings=plan_of(20).settings)
    swapped = Plan(lengths=longer.lengths[::-1], settings=longer.settings)

    plans = [
        plan_of(20),
        plan_of(21),
        plan_of(20, seed=1),
        plan_of(20, global_batch_size=7),
        plan_of(20, shuffle=False),
        longer,
        swapped,
    ]
    assert len({plan.fingerprint() for plan in plans}) == len(plans)
