import os

import numpy as np
import pytest
import torch
from tables import builtin_table, ready_step
from torch.utils._python_dispatch import TorchDispatchMode

from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.config.train_config import ClusterConfig, ModelConfig, OptimizerConfig
from rm_ray.evaluation.held_out import evaluate_held_out
from rm_ray.model.reward_model import build_reward_model
from rm_ray.train.determinism import KERNELS, ask_for_determinism, compute_deterministically
from rm_ray.train.engine import Engine
from rm_ray.train.step import NonFiniteLossError, train_step

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
    """Counts how often a number is read from a tensor, for which a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_metrics_are_read_and_summed_over_ranks_once_a_step(table_and_tokenizer):
    readings, sums = {}, {}
    for budget in (20, 10_000):
        engine = build(table_and_tokenizer[1])
        real, called = engine.sum_over_ranks, []

        def count(tensor, real=real, called=called):
            called.append(tensor)
            real(tensor)

        engine.sum_over_ranks = count
        with Readings() as seen:
            num_micro_batches, _ = take(engine, *table_and_tokenizer, budget=budget)
        readings[num_micro_batches], sums[num_micro_batches] = seen.count, len(called)
    assert sums == dict.fromkeys((1, NUM_PAIRS), 1)
    assert readings[1] == readings[NUM_PAIRS] > 0


def test_one_read_lies_between_the_backward_pass_and_the_update(table_and_tokenizer, monkeypatch):
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


def test_clipping_is_to_the_norm_asked_for_and_zero_leaves_it_off(table_and_tokenizer):
    """With plain SGD-like moments the first AdamW step ignores scale, so look at the gradient."""
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
def test_a_step_has_deterministic_operations_alone_and_they_change_nothing(
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


def test_what_kernels_read_at_their_first_use_is_set_for_determinism(monkeypatch):
    for name in KERNELS:
        monkeypatch.setenv(name, "before")
    ask_for_determinism()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert os.environ["FLASH_ATTENTION_DETERMINISTIC"] == "1"


def test_a_loss_that_is_not_finite_names_its_pairs_and_leaves_the_weights(table_and_tokenizer):
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


def test_an_infinite_loss_of_a_finite_gradient_leaves_the_weights_too(table_and_tokenizer):
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


def test_evaluation_counts_each_pair_once_and_changes_nothing(table_and_tokenizer):
    table, tokenizer = table_and_tokenizer
    engine = build(tokenizer)
    before = weights(engine)
    settings = PlanSettings(global_batch_size=5, tokens_per_micro_batch=150, shuffle=False)
    plan = Plan(lengths=table.lengths, settings=settings)
    steps = [ready_step(table, plan, s, tokenizer) for s in range(3)]
    result = evaluate_held_out(engine, steps, tokenizer, sample_rows=3)
    assert result.num_pairs == NUM_PAIRS
    assert [sample["pair"] for sample in result.samples] == [0, 1, 2]
    for name, weight in weights(engine).items():
        assert torch.equal(weight, before[name])
    _, measured = take(engine, table, tokenizer)
    trained = measured.pairs.means("eval/rm")
    assert result.metrics == pytest.approx(trained, abs=1e-6)


def test_evaluation_reads_rewards_once_a_step(table_and_tokenizer, monkeypatch):
    table, tokenizer = table_and_tokenizer
    engine = build(tokenizer)
    settings = PlanSettings(global_batch_size=5, tokens_per_micro_batch=60, shuffle=False)
    plan = Plan(lengths=table.lengths, settings=settings)
    steps = [ready_step(table, plan, s, tokenizer) for s in range(3)]
    assert sum(map(len, steps)) > 3
    read, real = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda one: read.append(one.shape[1]) or real(one))
    result = evaluate_held_out(engine, steps, tokenizer, sample_rows=NUM_PAIRS)
    assert read == [5, 5, 2]
    monkeypatch.undo()
    shown = {one["pair"]: (one["chosen_reward"], one["rejected_reward"]) for one in result.samples}
    for ready in (ready for step in steps for ready in step):
        with torch.no_grad():
            rewards = engine.rewards(ready.pairs).reshape(2, -1).T.tolist()
        for pair, scores in zip(ready.loaded.plan.pairs, rewards, strict=True):
            assert shown.pop(pair) == pytest.approx(scores)
    assert not shown


def test_equal_rewards_are_reported_as_ties(table_and_tokenizer):
    table, tokenizer = table_and_tokenizer
    engine = build(tokenizer)
    torch.nn.init.zeros_(engine.module.classifier.score.weight)
    settings = PlanSettings(global_batch_size=5, tokens_per_micro_batch=150, shuffle=False)
    plan = Plan(lengths=table.lengths, settings=settings)
    steps = [ready_step(table, plan, s, tokenizer) for s in range(3)]
    metrics = evaluate_held_out(engine, steps, tokenizer, sample_rows=0).metrics
    assert metrics["eval/rm/ties"] == 1.0
    assert metrics["eval/rm/accuracy"] == 0.5
    assert metrics["eval/rm/loss"] == pytest.approx(0.6931472)
