from itertools import combinations

import numpy as np
import pytest
import torch
from families import FakeTokenizer, build_in_float64, lay_out
from made_cache import Row, group_row
from tables import builtin_table, map_rows, ready_step
from torch.utils._python_dispatch import TorchDispatchMode

from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.data.cache.group_tokens import join_groups
from rm_ray.model.build import build_reward_model
from rm_ray.objectives.bradley_terry import BradleyTerry
from rm_ray.objectives.losses import Objective
from rm_ray.objectives.plackett_luce import PlackettLuce
from rm_ray.train import step as step_module
from rm_ray.train.collectives import split_votes, sum_with_votes
from rm_ray.train.determinism import compute_deterministically
from rm_ray.train.engine import Engine
from rm_ray.train.step import NonFiniteLossError, accumulate_gradients, check_step, train_step

NUM_PAIRS = 12

OBJECTIVE = BradleyTerry()


@pytest.fixture(scope="module")
def table_and_tokenizer(tmp_path_factory):
    return builtin_table(tmp_path_factory.mktemp("step") / "table", NUM_PAIRS)


def build(tokenizer, seed=0, **optimizer):
    return Engine(
        build_reward_model(ModelConfig(), tokenizer, seed=seed),
        OptimizerConfig(learning_rate=1e-3, **optimizer),
        ClusterConfig(),
        dtype=torch.float32,
        use_gpu=False,
    )


def take(engine, table, tokenizer, budget=400, batch=NUM_PAIRS):
    settings = PlanSettings(global_batch_size=batch, tokens_per_micro_batch=budget)
    plan = Plan(lengths=table.lengths, settings=settings)
    micro_batches = ready_step(table, plan, 0, tokenizer)
    return len(micro_batches), train_step(
        engine,
        OBJECTIVE,
        micro_batches,
        num_groups=plan.steps.size(0),
        learning_rate=1e-3,
    )


def weights(engine):
    return {name: weight.clone() for name, weight in engine.weights().items()}


def test_the_gradient_does_not_depend_on_the_micro_batches(table_and_tokenizer):
    norms = {}
    for budget in (20, 300, 10_000):
        engine = build(table_and_tokenizer[1])
        count, measured = take(engine, *table_and_tokenizer, budget=budget)
        norms[count] = measured.grad_norm
    assert set(norms) == {NUM_PAIRS, *norms} and len(norms) == 3
    first, *others = norms.values()
    assert others == pytest.approx([first] * 2, rel=1e-5)


class Readings(TorchDispatchMode):
    """Counts reads of a number from a tensor, which would synchronize with a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_step_reads_metrics_and_sums_them_over_ranks_once(table_and_tokenizer, monkeypatch):
    readings, summed = {}, []
    real = step_module.sum_over_ranks
    monkeypatch.setattr(
        step_module, "sum_over_ranks", lambda tensor: summed.append(tensor.shape) or real(tensor)
    )
    for budget in (20, 10_000):
        engine = build(table_and_tokenizer[1])
        with Readings() as seen:
            num_micro_batches, _ = take(engine, *table_and_tokenizer, budget=budget)
        readings[num_micro_batches] = seen.count
    assert summed == [(13,), (13,)]
    assert readings[1] == readings[NUM_PAIRS] > 0


def test_nothing_is_read_before_the_gradients_of_all_micro_batches_are_queued(
    table_and_tokenizer,
):
    table, tokenizer = table_and_tokenizer
    settings = PlanSettings(global_batch_size=NUM_PAIRS, tokens_per_micro_batch=60)
    plan = Plan(lengths=table.lengths, settings=settings)
    engine, micro_batches = build(tokenizer), ready_step(table, plan, 0, tokenizer)
    assert len(micro_batches) > 1
    with Readings() as seen:
        gradients = accumulate_gradients(
            engine, OBJECTIVE, micro_batches, num_groups=NUM_PAIRS, flops=5.0
        )
        together = sum_with_votes(gradients.sums, (True, False))
    assert seen.count == 0
    numbers, grad_norm = engine.step(1e-3, together)
    sums, votes = split_votes(numbers, 2)
    assert votes == [True, False]
    measured = check_step(gradients, sums, grad_norm)
    assert (measured.groups.count, measured.groups.flops) == (NUM_PAIRS, 5.0)
    expected = take(build(tokenizer), table, tokenizer, budget=60)[1]
    assert measured.groups.means("rm") == expected.groups.means("rm")
    assert measured.grad_norm == expected.grad_norm


def test_a_step_reads_once_between_backward_pass_and_update(table_and_tokenizer, monkeypatch):
    engine = build(table_and_tokenizer[1])
    real, update, lists, before_update = torch.Tensor.tolist, engine.optimizer.step, [], []
    monkeypatch.setattr(
        torch.Tensor, "tolist", lambda tensor: lists.append(tensor.shape) or real(tensor)
    )

    def spy():
        before_update.append((len(lists), seen.count))
        update()

    engine.optimizer.step = spy
    with Readings() as seen:
        take(engine, *table_and_tokenizer, budget=60)
    assert before_update == [(1, 0)]


def test_clipping_uses_the_configured_norm_and_zero_disables_it(table_and_tokenizer):
    """AdamW's first update ignores the gradient's scale, so check the gradient itself."""
    seen = {}
    for limit in (0.0, 0.25):
        engine = build(table_and_tokenizer[1], max_grad_norm=limit)
        step = engine.optimizer.step
        norms = []

        def spy(engine=engine, step=step, norms=norms):
            grads = [p.grad for p in engine.module.parameters()]
            norms.append(torch.nn.utils.get_total_norm(grads).item())
            step()

        engine.optimizer.step = spy
        _, measured = take(engine, *table_and_tokenizer)
        seen[limit] = (measured.grad_norm, norms[0])
    assert seen[0.0][0] == pytest.approx(seen[0.0][1])
    assert seen[0.25][0] == pytest.approx(seen[0.0][0])
    assert seen[0.25][1] == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_step_uses_only_deterministic_operations_and_they_change_nothing(
    table_and_tokenizer, layout
):
    table, tokenizer = table_and_tokenizer
    settings = PlanSettings(global_batch_size=6, tokens_per_micro_batch=200, layout=layout)
    plan, found = Plan(lengths=table.lengths, settings=settings), []
    try:
        for is_deterministic in (False, True):
            if is_deterministic:
                compute_deterministically()
            model = build_reward_model(ModelConfig(), tokenizer, seed=0, layout=layout)
            engine = Engine(
                model, OptimizerConfig(), ClusterConfig(), dtype=torch.float32, use_gpu=False
            )
            for step in range(2):
                micro_batches = ready_step(table, plan, step, tokenizer)
                train_step(engine, OBJECTIVE, micro_batches, num_groups=6, learning_rate=1e-3)
            found.append(weights(engine))
        with pytest.raises(RuntimeError, match="deterministic"):
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())


def test_a_loss_that_is_not_finite_names_its_pairs_and_keeps_the_weights(table_and_tokenizer):
    table, tokenizer = table_and_tokenizer
    engine = build(tokenizer)
    ids = [set(table.gather(np.array([p])).tokens) for p in range(NUM_PAIRS)]
    token, owner = next(
        (token, pair)
        for pair in range(NUM_PAIRS)
        for token in ids[pair]
        if sum(token in other for other in ids) == 1
    )
    with torch.no_grad():
        engine.module.classifier.get_input_embeddings().weight[int(token)] = float("nan")
    before = weights(engine)
    with pytest.raises(NonFiniteLossError) as stopped:
        take(engine, table, tokenizer)
    assert stopped.value.groups == (owner,)
    assert stopped.value.step == 0
    for name, weight in weights(engine).items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0, equal_nan=True)


def test_an_infinite_loss_with_a_finite_gradient_keeps_the_weights_too(table_and_tokenizer):
    table, tokenizer = table_and_tokenizer
    engine = build(tokenizer)
    settings = PlanSettings(global_batch_size=NUM_PAIRS, tokens_per_micro_batch=400)
    plan, before = Plan(lengths=table.lengths, settings=settings), weights(engine)
    micro_batches = ready_step(table, plan, 0, tokenizer)
    assert len(micro_batches) > 1
    micro_batches[0].groups.labels.margin[1] = float("inf")
    with pytest.raises(NonFiniteLossError) as stopped:
        train_step(engine, OBJECTIVE, micro_batches, num_groups=NUM_PAIRS, learning_rate=1e-3)
    assert stopped.value.groups == (micro_batches[0].loaded.plan.groups[1],)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(engine).items())
    assert engine.num_updates == 0


SIZES = [2, 1, 3, 5, 2, 4, 1, 3]


def rows_of_lists() -> list[Row]:
    """Return rows of 1 to 5 responses, with weights, margins, soft labels and ties."""
    rng, rows = np.random.default_rng(0), []
    for i, size in enumerate(SIZES):
        shared = rng.integers(10, 90, 3 + i).tolist()
        tails = [[90 + k, *rng.integers(10, 90, 2 + i).tolist()] for k in range(size)]
        sides = list(combinations(range(size), 2))
        weight = rng.random(len(sides), dtype=np.float32) + np.float32(0.1)
        labels = {
            "weight": (weight / weight.sum()).tolist(),
            "margin": rng.choice([0.0, 0.25], len(sides)).tolist(),
            "probability": rng.choice([0.5, 0.75, 1.0], len(sides)).tolist(),
        }
        conversations = [shared + tail for tail in tails]
        rows.append(group_row(0, i, conversations, sides, prefix_length=3 + i, **labels))
    return rows


def plain_loss(row: Row, rewards: list[torch.Tensor], objective: Objective) -> torch.Tensor | None:
    """Return a group's loss from its definition, comparison by comparison."""
    compared = zip(
        row["better"], row["worse"], row["weight"], row["margin"], row["probability"], strict=True
    )
    if isinstance(objective, BradleyTerry):
        terms = []
        for better, worse, weight, margin, p in compared:
            lead = rewards[better] - rewards[worse] - (margin if p == 1 else 0)
            terms.append(weight * (-p * lead.sigmoid().log() - (1 - p) * (-lead).sigmoid().log()))
        return sum(terms) if terms else None
    beaten: dict[int, set[int]] = {}
    for better, worse, _, _, p in compared:
        if p > 0.5:
            beaten.setdefault(better, set()).add(worse)
    terms = [
        -(rewards[i].exp() / (rewards[i].exp() + sum(rewards[j].exp() for j in worse))).log()
        for i, worse in beaten.items()
    ]
    return sum(terms) / len(terms) if terms else None


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("budget", [30, 10_000])
@pytest.mark.parametrize("objective", [BradleyTerry(), PlackettLuce()])
def test_gradients_of_groups_of_mixed_sizes_match_a_loop_over_single_conversations(
    tmp_path, layout, budget, objective
):
    """In float64; the step's gradient is the mean over all groups, also those without a loss."""
    rows, tokenizer = rows_of_lists(), FakeTokenizer()
    table = map_rows(tmp_path / "table", rows, origins=("rows",))
    settings = PlanSettings(
        global_batch_size=len(rows), tokens_per_micro_batch=budget, layout=layout
    )
    plan = Plan(lengths=table.lengths, settings=settings)
    model = build_in_float64(tmp_path, "llama", layout)
    engine = Engine(model, OptimizerConfig(), ClusterConfig(), dtype=torch.float32, use_gpu=False)
    engine.rewards = lambda groups: engine.module(groups)  # Engine.rewards gives float32
    micro_batches = ready_step(table, plan, 0, tokenizer)
    assert (len(micro_batches) > 1) == (budget == 30)

    step = accumulate_gradients(engine, objective, micro_batches, num_groups=len(rows))

    alone = build_in_float64(tmp_path, "llama", "padded")
    losses = []
    for row in rows:
        ids = [join_groups([[each]]) for each in row["ids"]]
        rewards = [alone(lay_out(one, "padded"))[0] for one in ids]
        losses.append(plain_loss(row, rewards, objective))
    learned = [loss for loss in losses if loss is not None]
    (sum(learned) / len(rows)).backward()
    assert step.metrics.count == len(rows)
    means = step.metrics.means("rm")
    mean = torch.stack(learned).mean().item()
    assert means["rm/loss"] == pytest.approx(mean, rel=1e-12)
    expected = {name: p.grad for name, p in alone.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)


def test_kept_losses_are_those_of_the_objective_and_change_nothing(table_and_tokenizer):
    table, tokenizer = table_and_tokenizer
    settings = PlanSettings(global_batch_size=NUM_PAIRS, tokens_per_micro_batch=60)
    micro_batches = ready_step(table, Plan(lengths=table.lengths, settings=settings), 0, tokenizer)
    engine, sums = build(tokenizer), {}
    with torch.no_grad():
        outputs = [engine.outputs(each.groups) for each in micro_batches]
    for keeps in (False, True):
        with Readings() as seen:
            gradients = accumulate_gradients(
                engine, OBJECTIVE, micro_batches, num_groups=NUM_PAIRS, keeps_losses=keeps
            )
        assert seen.count == 0
        sums[keeps] = gradients.sums.tolist()
    assert sums[True] == sums[False]
    assert len(gradients.losses) == len(micro_batches) > 1
    for rewards, ready, kept in zip(outputs, micro_batches, gradients.losses, strict=True):
        assert not kept.requires_grad
        assert torch.equal(kept, OBJECTIVE(rewards, ready.groups.labels).groups)


def test_no_loss_is_kept_unless_asked_for_and_a_group_without_a_loss_has_none(
    table_and_tokenizer,
):
    table, tokenizer = table_and_tokenizer
    settings = PlanSettings(global_batch_size=NUM_PAIRS, tokens_per_micro_batch=10_000)
    micro_batches = ready_step(table, Plan(lengths=table.lengths, settings=settings), 0, tokenizer)
    micro_batches[0].groups.labels.weight[0] = 0  # the pair's only comparison
    engine = build(tokenizer)
    arguments = (engine, OBJECTIVE, micro_batches)
    assert not accumulate_gradients(*arguments, num_groups=NUM_PAIRS).losses
    (kept,) = accumulate_gradients(*arguments, num_groups=NUM_PAIRS, keeps_losses=True).losses
    assert kept.isnan().tolist() == [True] + [False] * (NUM_PAIRS - 1)
