from dataclasses import replace

import numpy as np
import pytest
import torch
from tables import builtin_table, ready_step

from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.evaluation.held_out import evaluate_held_out
from rm_ray.model.build import build_reward_model
from rm_ray.train.engine import Engine
from rm_ray.train.step import train_step

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


def weights(engine):
    return {name: weight.clone() for name, weight in engine.weights().items()}


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
    plan = Plan(lengths=table.lengths, settings=replace(settings, global_batch_size=NUM_PAIRS))
    micro_batches = ready_step(table, plan, 0, tokenizer)
    measured = train_step(engine, micro_batches, num_pairs=NUM_PAIRS, learning_rate=1e-3)
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


def test_an_evaluation_that_gives_up_returns_nothing(table_and_tokenizer):
    table, tokenizer = table_and_tokenizer
    settings = PlanSettings(global_batch_size=5, tokens_per_micro_batch=150, shuffle=False)
    plan = Plan(lengths=table.lengths, settings=settings)
    begun = []

    def steps():
        for step in range(3):
            begun.append(step)
            yield ready_step(table, plan, step, tokenizer)

    result = evaluate_held_out(
        build(tokenizer), steps(), tokenizer, sample_rows=0, gives_up=lambda: len(begun) == 2
    )
    assert result is None
    assert begun == [0, 1]


def test_the_scored_pairs_have_the_columns_that_the_report_needs(table_and_tokenizer):
    table, tokenizer = table_and_tokenizer
    settings = PlanSettings(global_batch_size=5, tokens_per_micro_batch=150, shuffle=False)
    plan = Plan(lengths=table.lengths, settings=settings)
    steps = [ready_step(table, plan, s, tokenizer) for s in range(3)]
    result = evaluate_held_out(build(tokenizer), steps, tokenizer, sample_rows=0)
    assert sorted(result.order) == list(range(NUM_PAIRS))
    np.testing.assert_array_equal(result.pairs.chosen_tokens, table.lengths.chosen[result.order])
    np.testing.assert_array_equal(result.pairs.margins, table.margin[result.order])
    assert result.metrics["eval/rm/chosen_rewards"] == pytest.approx(
        float(result.pairs.chosen_rewards.mean()), abs=1e-6
    )
