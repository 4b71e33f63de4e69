import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import lay_out
from made_cache import group_row
from tables import builtin_table, map_rows, ready_step

from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.data.cache.group_tokens import join_groups
from rm_ray.evaluation.held_out import evaluate_held_out
from rm_ray.model.build import build_reward_model
from rm_ray.objectives.bradley_terry import BradleyTerry
from rm_ray.train.engine import Engine
from rm_ray.train.step import train_step

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


def weights(engine):
    return {name: weight.clone() for name, weight in engine.weights().items()}


def test_evaluation_counts_each_pair_once_and_changes_nothing(table_and_tokenizer):
    table, tokenizer = table_and_tokenizer
    engine = build(tokenizer)
    before = weights(engine)
    settings = PlanSettings(global_batch_size=5, tokens_per_micro_batch=150, shuffle=False)
    plan = Plan(lengths=table.lengths, settings=settings)
    steps = [ready_step(table, plan, s, tokenizer) for s in range(3)]
    result = evaluate_held_out(engine, OBJECTIVE, steps, tokenizer, sample_rows=3)
    assert result.num_groups == NUM_PAIRS
    assert [sample["pair"] for sample in result.samples] == [0, 1, 2]
    for name, weight in weights(engine).items():
        assert torch.equal(weight, before[name])
    plan = Plan(lengths=table.lengths, settings=replace(settings, global_batch_size=NUM_PAIRS))
    micro_batches = ready_step(table, plan, 0, tokenizer)
    measured = train_step(
        engine, OBJECTIVE, micro_batches, num_groups=NUM_PAIRS, learning_rate=1e-3
    )
    trained = measured.groups.means("eval/rm")
    assert result.metrics == pytest.approx(trained, abs=1e-6)


def test_evaluation_reads_rewards_once_a_step(table_and_tokenizer, monkeypatch):
    table, tokenizer = table_and_tokenizer
    engine = build(tokenizer)
    settings = PlanSettings(global_batch_size=5, tokens_per_micro_batch=60, shuffle=False)
    plan = Plan(lengths=table.lengths, settings=settings)
    steps = [ready_step(table, plan, s, tokenizer) for s in range(3)]
    assert sum(map(len, steps)) > 3
    read, real = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda one: read.append(len(one)) or real(one))
    result = evaluate_held_out(engine, OBJECTIVE, steps, tokenizer, sample_rows=NUM_PAIRS)
    assert read == [10, 10, 4]
    monkeypatch.undo()
    shown = {one["pair"]: (one["chosen_reward"], one["rejected_reward"]) for one in result.samples}
    for ready in (ready for step in steps for ready in step):
        with torch.no_grad():
            rewards = engine.rewards(ready.groups).reshape(-1, 2).tolist()
        for pair, scores in zip(ready.loaded.plan.groups, rewards, strict=True):
            assert shown.pop(pair) == pytest.approx(scores)
    assert not shown


def test_equal_rewards_are_reported_as_ties(table_and_tokenizer):
    table, tokenizer = table_and_tokenizer
    engine = build(tokenizer)
    torch.nn.init.zeros_(engine.module.classifier.score.weight)
    settings = PlanSettings(global_batch_size=5, tokens_per_micro_batch=150, shuffle=False)
    plan = Plan(lengths=table.lengths, settings=settings)
    steps = [ready_step(table, plan, s, tokenizer) for s in range(3)]
    metrics = evaluate_held_out(engine, OBJECTIVE, steps, tokenizer, sample_rows=0).metrics
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
        build(tokenizer),
        OBJECTIVE,
        steps(),
        tokenizer,
        sample_rows=0,
        gives_up=lambda: len(begun) == 2,
    )
    assert result is None
    assert begun == [0, 1]


def test_the_scored_pairs_have_the_columns_that_the_report_needs(table_and_tokenizer):
    table, tokenizer = table_and_tokenizer
    settings = PlanSettings(global_batch_size=5, tokens_per_micro_batch=150, shuffle=False)
    plan = Plan(lengths=table.lengths, settings=settings)
    steps = [ready_step(table, plan, s, tokenizer) for s in range(3)]
    result = evaluate_held_out(build(tokenizer), OBJECTIVE, steps, tokenizer, sample_rows=0)
    assert sorted(result.order) == list(range(NUM_PAIRS))
    pairs, lengths = result.groups.pairs, table.lengths.conversations.reshape(-1, 2)
    np.testing.assert_array_equal(pairs.chosen_tokens, lengths[result.order, 0])
    np.testing.assert_array_equal(pairs.rejected_tokens, lengths[result.order, 1])
    np.testing.assert_array_equal(pairs.margins, table.columns.margin[result.order])
    assert result.metrics["eval/rm/chosen_rewards"] == pytest.approx(
        float(pairs.chosen_rewards.mean()), abs=1e-6
    )


SIZES = (1, 2, 3, 5, 2, 4)
"""Responses of each group of ``mixed``."""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A table of groups of mixed sizes, with ties and with groups that compare nothing."""
    rng = np.random.default_rng(0)
    scored = {"score": [3.0, np.nan, 1.0, 2.0, 0.0]}
    labels = [
        ([], {}),
        ([(1, 0)], {"margin": [0.5]}),
        ([(0, 1), (1, 2), (0, 2)], {"weight": [0.5, 0.25, 0.25]}),
        ([(4, 0), (4, 1), (2, 3), (3, 0)], {"probability": [1.0, 0.5, 0.75, 1.0], **scored}),
        ([(0, 1)], {"probability": [0.5]}),
        ([], {}),
    ]
    rows = []
    for number, (size, (comparisons, about)) in enumerate(zip(SIZES, labels, strict=True)):
        shared = rng.integers(5, 400, 6).tolist()
        ids = [[*shared, 7 + i, *rng.integers(5, 400, 3 * i).tolist()] for i in range(size)]
        about = {"prefix_length": 6, "prompt_length": 6, **about}
        rows.append(group_row(0, number, ids, comparisons, **about))
    return map_rows(tmp_path_factory.mktemp("mixed") / "table", rows, origins=("rows",))


def evaluate_mixed(mixed, tokenizer, objective=OBJECTIVE, **options):
    engine = build(tokenizer)
    settings = PlanSettings(global_batch_size=4, tokens_per_micro_batch=60, shuffle=False)
    plan = Plan(lengths=mixed.lengths, settings=settings)
    steps = [ready_step(mixed, plan, s, tokenizer) for s in range(plan.steps.total)]
    result = evaluate_held_out(engine, objective, steps, tokenizer, **options)
    alone = []
    for group in range(len(SIZES)):
        ids = mixed.gather(np.array([group])).conversations(0)
        with torch.no_grad():
            rewards = [engine.rewards(lay_out(join_groups([[one]]), "packed")) for one in ids]
        alone.append(torch.cat(rewards).double().tolist())
    return result, alone


def test_groups_of_mixed_sizes_weigh_1_each_and_labelled_ties_count_half(
    mixed, table_and_tokenizer
):
    result, alone = evaluate_mixed(mixed, table_and_tokenizer[1], sample_rows=0)
    assert result.num_groups == len(SIZES)
    totals = {"accuracy": 0.0, "loss": 0.0, "reward_margin": 0.0, "chosen_rewards": 0.0}
    first = 0
    for rewards, count in zip(alone, mixed.columns.num_comparisons, strict=True):
        for i in range(first, first + count):
            columns = mixed.columns
            better, worse = rewards[columns.better[i]], rewards[columns.worse[i]]
            p, weight = float(columns.probability[i]), float(columns.weight[i])
            lead = better - worse - (float(columns.margin[i]) if p == 1 else 0.0)
            right = 0.5 if p == 0.5 else float(better > worse)
            loss = p * np.log1p(np.exp(-lead)) + (1 - p) * np.log1p(np.exp(lead))
            totals["accuracy"] += weight * right
            totals["loss"] += weight * loss
            totals["reward_margin"] += weight * (0.0 if p == 0.5 else better - worse)
            totals["chosen_rewards"] += weight * ((better + worse) / 2 if p == 0.5 else better)
        first += count
    for name, total in totals.items():
        assert result.metrics[f"eval/rm/{name}"] == pytest.approx(total / 4, abs=1e-5), name


def test_the_scored_groups_have_every_response_once_and_their_labels(mixed, table_and_tokenizer):
    result, alone = evaluate_mixed(mixed, table_and_tokenizer[1], sample_rows=0)
    groups, columns = result.groups, mixed.columns
    assert sorted(result.order) == list(range(len(SIZES)))
    assert len(groups) == len(SIZES)
    for place, group in enumerate(result.order):
        mine = groups[np.array([place])]
        expected = columns[np.array([group])]
        np.testing.assert_allclose(mine.rewards, alone[group], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(mine.tokens, expected.length)
        np.testing.assert_array_equal(mine.scores, expected.score)
        np.testing.assert_array_equal(mine.better, expected.better)
        np.testing.assert_array_equal(mine.worse, expected.worse)
        np.testing.assert_array_equal(mine.weights, expected.weight)
        np.testing.assert_array_equal(mine.margins, expected.margin)
        np.testing.assert_array_equal(mine.probabilities, expected.probability)


def test_samples_show_a_pair_by_its_sides_and_any_other_group_as_a_list(mixed, table_and_tokenizer):
    tokenizer = table_and_tokenizer[1]
    result, alone = evaluate_mixed(mixed, tokenizer, sample_rows=len(SIZES))
    samples = json.loads(json.dumps(result.samples))
    assert [sample["pair"] for sample in samples] == list(range(len(SIZES)))
    pair = samples[1]
    assert pair["chosen_reward"] == pytest.approx(alone[1][1], abs=1e-5)
    assert pair["rejected_reward"] == pytest.approx(alone[1][0], abs=1e-5)
    assert pair["correct"] == (alone[1][1] > alone[1][0])
    ids = mixed.gather(np.array([1])).conversations(0)
    assert pair["chosen"] == tokenizer.decode(ids[1][6:])
    assert pair["prompt"] == tokenizer.decode(ids[0][:6])
    for group in (0, 2, 3, 4, 5):
        ids = mixed.gather(np.array([group])).conversations(0)
        assert samples[group]["responses"] == [tokenizer.decode(one[6:]) for one in ids]
        assert samples[group]["rewards"] == pytest.approx(alone[group], abs=1e-5)
    wins = [samples[group]["wins"] for group in (0, 2, 3, 4, 5)]
    assert wins == [[0], [2, 1, 0], [0, 0, 1, 1, 1], [0, 0], [0] * 4]
    assert [samples[group]["correct"] for group in (0, 4, 5)] == [None, None, None]
    ranked = alone[2][0] > alone[2][1] > alone[2][2]
    assert samples[2]["correct"] == ranked
