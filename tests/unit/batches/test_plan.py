import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.batches.plan import MicroBatch, Plan, PlanSettings, Steps, epoch_order
from rm_ray.data.cache.group_tokens import GroupLengths, count_positions

WORLD_SIZES = range(1, 10)

world_sizes = st.integers(1, 9)
budgets = st.integers(1, 400)
conversations = st.sampled_from([1, 2, 2, 3, 5]).flatmap(
    lambda size: st.lists(st.integers(1, 60), min_size=size, max_size=size)
)


@st.composite
def group_lengths(draw: st.DrawFn) -> GroupLengths:
    groups = draw(st.lists(conversations, min_size=1, max_size=40))
    prefix = [draw(st.integers(0, min(lengths) - 1)) for lengths in groups]
    return lengths_of(groups, prefix)


def lengths_of(groups: list[list[int]], prefix: list[int]) -> GroupLengths:
    return GroupLengths(
        num_responses=np.array([len(lengths) for lengths in groups]),
        prefix=np.array(prefix),
        conversations=np.array([length for lengths in groups for length in lengths]),
    )


def equal_lengths(count: int, length: int = 5) -> GroupLengths:
    return GroupLengths.of_pairs(
        chosen=np.full(count, length), rejected=np.full(count, length), prefix=np.full(count, 2)
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    return Plan(
        lengths=draw(group_lengths()),
        settings=PlanSettings(
            global_batch_size=draw(st.integers(1, 20)),
            tokens_per_micro_batch=draw(budgets),
            layout=draw(st.sampled_from(["packed", "padded"])),
            attention_weight=draw(st.sampled_from([0.0, 0.01])),
            seed=draw(st.integers(0, 3)),
            epochs=draw(st.integers(1, 3)),
            max_episodes=draw(st.none() | st.integers(1, 130)),
            shuffle=draw(st.booleans()),
        ),
    )


def plan_of(num_groups: int, **settings: object) -> Plan:
    defaults = {"global_batch_size": 8, "tokens_per_micro_batch": 100}
    return Plan(lengths=equal_lengths(num_groups), settings=PlanSettings(**(defaults | settings)))


def all_ranks(plan: Plan, step: int, world_size: int) -> list[list[MicroBatch]]:
    return [
        plan.micro_batches(step, rank=rank, world_size=world_size) for rank in range(world_size)
    ]


def counting_groups(ranks: list[list[MicroBatch]]) -> list[int]:
    return sorted(
        int(group)
        for micro_batches in ranks
        for micro_batch in micro_batches
        for group, weight in zip(micro_batch.groups, micro_batch.weights, strict=True)
        if weight
    )


@given(plans())
def test_each_group_appears_once_an_epoch(plan: Plan):
    per_epoch = plan.steps.per_epoch
    settings = PlanSettings(**{**vars(plan.settings), "max_episodes": None})
    whole = Plan(lengths=plan.lengths, settings=settings)

    for epoch in range(settings.epochs):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        groups = np.concatenate([whole.groups_of_step(step) for step in steps])
        assert sorted(groups.tolist()) == list(range(len(plan.lengths)))
        assert groups.tolist() == whole.order(epoch).tolist()


@given(plans())
def test_all_steps_together_train_exactly_the_requested_episodes(plan: Plan):
    steps, settings = plan.steps, plan.settings
    whole = len(plan.lengths) * settings.epochs
    asked = whole if settings.max_episodes is None else min(whole, settings.max_episodes)

    trained = [len(plan.groups_of_step(step)) for step in range(steps.total)]

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
        num_groups=10,
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
    assert [len(plan.groups_of_step(step)) for step in range(len(sizes))] == sizes


def test_a_shorter_run_begins_with_the_same_pairs():
    short, long = plan_of(30, max_episodes=21), plan_of(30, epochs=2)

    trained = np.concatenate([short.groups_of_step(step) for step in range(short.steps.total)])
    begun = np.concatenate([long.groups_of_step(step) for step in range(long.steps.total)])
    assert trained.tolist() == begun[:21].tolist()


def test_every_epoch_and_every_seed_has_its_own_order():
    orders = [
        plan_of(60, seed=seed, epochs=4).order(epoch).tolist()
        for seed in range(4)
        for epoch in range(4)
    ]

    assert len({tuple(order) for order in orders}) == 16
    assert list(range(60)) not in orders


def test_an_order_does_not_depend_on_earlier_calls():
    epoch_order.cache_clear()
    first = epoch_order(20, 0, 3).tolist()
    for epoch in range(6):
        epoch_order(20, 1, epoch)

    assert epoch_order(20, 0, 3).tolist() == first


def test_without_shuffling_every_epoch_keeps_the_order_of_the_data():
    plan = plan_of(10, global_batch_size=4, epochs=2, shuffle=False)

    assert [plan.groups_of_step(step).tolist() for step in range(6)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ] * 2


def test_the_batch_size_does_not_change_the_order():
    fours, fives = plan_of(20, global_batch_size=4), plan_of(20, global_batch_size=5)

    assert (
        np.concatenate([fours.groups_of_step(step) for step in range(5)]).tolist()
        == np.concatenate([fives.groups_of_step(step) for step in range(4)]).tolist()
    )


@given(plans())
def test_the_groups_of_a_step_do_not_depend_on_the_number_of_workers(plan: Plan):
    for step in range(min(plan.steps.total, 3)):
        expected = sorted(plan.groups_of_step(step).tolist())
        for world_size in WORLD_SIZES:
            assert counting_groups(all_ranks(plan, step, world_size)) == expected


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
def test_every_micro_batch_has_its_step_position_and_rank(plan: Plan, world_size: int):
    step = plan.steps.total - 1
    ranks = all_ranks(plan, step, world_size)

    for rank, micro_batches in enumerate(ranks):
        for position, micro_batch in enumerate(micro_batches):
            assert micro_batch.step == step
            assert micro_batch.position == position
            assert micro_batch.rank == rank
            assert micro_batch.num_micro_batches == len(ranks[0])
            assert micro_batch.weights.dtype == np.float32
            assert micro_batch.weights.shape == micro_batch.groups.shape


def test_plans_with_the_same_pairs_in_the_same_steps_have_the_same_fingerprint():
    plan = plan_of(20, seed=3)

    assert plan.fingerprint() == plan_of(20, seed=3).fingerprint()
    assert plan.fingerprint() == plan_of(20, seed=3, tokens_per_micro_batch=7).fingerprint()
    assert plan.fingerprint() == plan_of(20, seed=3, epochs=5).fingerprint()


def test_any_change_to_the_order_of_pairs_changes_the_fingerprint():
    sides = {"chosen": np.full(20, 5), "rejected": np.full(20, 5), "prefix": np.full(20, 2)}
    lengths = [
        GroupLengths.of_pairs(**{**sides, name: column - (np.arange(20) == 19)})
        for name, column in sides.items()
    ]
    shorter, *others = [Plan(lengths=each, settings=plan_of(20).settings) for each in lengths]
    swapped = Plan(lengths=shorter.lengths[np.arange(20)[::-1]], settings=shorter.settings)

    plans = [
        plan_of(20),
        plan_of(21),
        plan_of(20, seed=1),
        plan_of(20, global_batch_size=7),
        plan_of(20, shuffle=False),
        shorter,
        *others,
        swapped,
    ]
    assert len({plan.fingerprint() for plan in plans}) == len(plans)


def test_the_bounds_between_groups_are_part_of_the_fingerprint():
    settings = plan_of(1).settings
    pair_first, list_first = (
        lengths_of(groups, [1, 1]) for groups in ([[3, 3], [3, 3, 3]], [[3, 3, 3], [3, 3]])
    )

    first, second = (Plan(lengths=each, settings=settings) for each in (pair_first, list_first))

    assert first.lengths.conversations.tolist() == second.lengths.conversations.tolist()
    assert first.fingerprint() != second.fingerprint()


@given(plans(), world_sizes)
def test_no_micro_batch_of_several_groups_is_over_the_budget(plan: Plan, world_size: int):
    for micro_batches in all_ranks(plan, 0, world_size):
        for micro_batch in micro_batches:
            lengths = plan.lengths[micro_batch.groups]
            positions = count_positions(lengths, plan.settings.layout)
            assert len(lengths) == 1 or positions <= plan.settings.tokens_per_micro_batch


@pytest.mark.parametrize(("max_episodes", "epochs"), [(None, 3), (30, 3), (21, 3), (20, 2), (1, 1)])
def test_the_epochs_are_those_that_the_run_begins(max_episodes: int | None, epochs: int):
    settings = PlanSettings(
        global_batch_size=4, tokens_per_micro_batch=100, epochs=3, max_episodes=max_episodes
    )
    steps = Steps(num_groups=10, settings=settings)
    assert steps.num_epochs == epochs
    assert (steps.total - 1) // steps.per_epoch == epochs - 1
