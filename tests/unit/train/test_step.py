import numpy as np
import pytest
import torch
from tables import builtin_table, ready_step
from torch.utils._python_dispatch import TorchDispatchMode

from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.model.build import build_reward_model
from rm_ray.train import step as step_module
from rm_ray.train.collectives import split_votes, sum_with_votes
from rm_ray.train.determinism import compute_deterministically
from rm_ray.train.engine import Engine
from rm_ray.train.step import NonFiniteLossError, accumulate_gradients, check_step, train_step

NUM_PAIRS = 12


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
        micro_batches,
        num_pairs=plan.steps.size(0),
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
    assert summed == [(11,), (11,)]
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
        gradients = accumulate_gradients(engine, micro_batches, num_pairs=NUM_PAIRS, flops=5.0)
        together = sum_with_votes(gradients.sums, (True, False))
    assert seen.count == 0
    numbers, grad_norm = engine.step(1e-3, together)
    sums, votes = split_votes(numbers, 2)
    assert votes == [True, False]
    measured = check_step(gradients, sums, grad_norm)
    assert (measured.pairs.count, measured.pairs.flops) == (NUM_PAIRS, 5.0)
    expected = take(build(tokenizer), table, tokenizer, budget=60)[1]
    assert measured.pairs.means("rm") == expected.pairs.means("rm")
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
                train_step(engine, micro_batches, num_pairs=6, learning_rate=1e-3)
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
    assert stopped.value.pairs == (owner,)
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
    micro_batches[0].pairs.margins[1] = float("inf")
    with pytest.raises(NonFiniteLossError) as stopped:
        train_step(engine, micro_batches, num_pairs=NUM_PAIRS, learning_rate=1e-3)
    assert stopped.value.pairs == (micro_batches[0].loaded.plan.pairs[1],)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(engine).items())
    assert engine.num_updates == 0
