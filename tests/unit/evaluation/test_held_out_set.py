from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.batches.plan import PlanSettings, Steps
from rm_ray.config.sections.checkpoint import LIST_METRICS, METRICS
from rm_ray.evaluation.held_out_set import (
    MOST_SOURCES,
    HeldOutSet,
    PromptLabel,
    benchmark_metrics,
    benchmark_names,
    scored_prompts,
    source_metrics,
    why_no_benchmark,
)
from rm_ray.evaluation.pairwise import Labels
from rm_ray.evaluation.scored_groups import ScoredGroups


def make_set(num_groups: int, **about) -> HeldOutSet:
    settings = PlanSettings(global_batch_size=4, tokens_per_micro_batch=100)
    return HeldOutSet(steps=Steps(num_groups=num_groups, settings=settings), **about)


def pair(chosen: float, rejected: float) -> ScoredGroups:
    return ScoredGroups.one(rewards=[chosen, rejected], tokens=[2, 2], better=[0], worse=[1])


RIGHT, WRONG = pair(1.0, 0.0), pair(0.0, 1.0)


def test_the_default_set_keeps_its_names_and_a_named_one_has_its_own():
    default, named = make_set(3), make_set(3, name="chat")
    assert (default.prefix, default.dataset, default.folder) == ("eval/rm", "eval", "")
    assert (named.prefix, named.dataset, named.folder) == ("eval/chat", "eval/chat", "chat/")
    assert default.is_default and not named.is_default


def test_only_a_named_set_has_the_accuracy_of_each_source():
    sources = Labels(names=("/a/x.jsonl", "/a/y.jsonl"), codes=np.array([0, 1, 1]))
    groups, order = ScoredGroups.join([RIGHT, WRONG, RIGHT]), np.array([2, 1, 0])
    named = make_set(3, name="chat", sources=sources)
    assert named.averages(order, groups) == {
        "eval/chat/accuracy_on/x.jsonl": 1.0, "eval/chat/accuracy_on/y.jsonl": 0.5,
    }  # fmt: skip
    assert make_set(3, sources=sources).averages(order, groups) == {}
    one = Labels(names=("/a/x.jsonl",), codes=np.zeros(3, dtype=int))
    assert replace(named, sources=one).averages(order, groups) == {}


def test_no_metric_of_a_set_is_the_folder_of_another():
    """MLflow's file store keeps a metric as a file."""
    sources = Labels(names=("/a/x.jsonl", "/a/y.jsonl"), codes=np.array([0, 1]))
    prompts = (PromptLabel(subset="donotanswer", num_correct=1, places=(0, 1)),) * 2
    bench = make_set(2, name="bench", sources=sources, prompts=prompts)
    groups = ScoredGroups.join([RIGHT, WRONG])
    of_all = [f"eval/bench/{name}" for name in (*METRICS, *LIST_METRICS)]
    names = [*of_all, *bench.averages(np.arange(2), groups)]
    assert len(names) == len(of_all) + 4
    assert not [a for a in names for b in names if b.startswith(f"{a}/")]


def test_many_sources_get_no_metrics():
    names = [f"source {i}" for i in range(MOST_SOURCES + 1)]
    assert len(source_metrics(names[:-1])) == MOST_SOURCES
    assert source_metrics(names) == {}


def test_reward_bench_has_its_weighted_sections():
    """Easy and long AlpacaEval weigh 100 and 95 (arXiv:2403.13787)."""
    subsets = ("alpacaeval-easy", "alpacaeval-length", "donotanswer", "donotanswer")
    prompts = tuple(PromptLabel(subset=name, num_correct=1, places=(0, 1)) for name in subsets)
    bench = make_set(4, name="bench", prompts=prompts)
    groups = ScoredGroups.join([WRONG, RIGHT, RIGHT, WRONG])
    found = bench.averages(np.array([1, 0, 3, 2]), groups)
    assert found == {
        "eval/bench/score": pytest.approx((100 / 195 + 0.5) / 2),
        "eval/bench/score_on/chat": pytest.approx(100 / 195),
        "eval/bench/score_on/safety": 0.5,
    }
    assert [f"eval/bench/{name}" for name in benchmark_names(prompts)] == list(found)
    assert bench.subsets(np.array([2, 0])) == ["donotanswer", "alpacaeval-easy"]


def test_reward_bench_2_counts_repeated_responses_as_often_as_they_occur():
    """Three share the highest reward, two of which are one response of the group."""
    label = PromptLabel(subset="Focus", num_correct=1, places=(0, 1, 1, 2))
    group = ScoredGroups.one(rewards=[1.0, 1.0, 0.0], tokens=[2, 2, 2], better=[0, 0], worse=[1, 2])
    bench = make_set(1, name="bench", prompts=(label,))
    assert bench.averages(np.array([0]), group) == {
        "eval/bench/score": pytest.approx(1 / 3),
        "eval/bench/score_on/focus": pytest.approx(1 / 3),
    }


def test_rows_without_correct_responses_or_subsets_are_no_benchmark():
    unknown = (PromptLabel(subset="x", num_correct=0, places=(0, 1)),)
    assert scored_prompts(unknown, np.array([0]), RIGHT) == []
    assert benchmark_names(unknown) == []
    assert make_set(1, name="chat").averages(np.array([0]), RIGHT) == {}
    assert make_set(1, name="chat").subsets(np.array([0])) == []
    assert benchmark_metrics({}) == {}


@given(st.permutations(range(6)))
def test_the_order_in_which_groups_were_scored_changes_no_bit(order: list[int]):
    subsets = ("Focus", "Math", "Safety")
    prompts = tuple(
        PromptLabel(subset=subsets[i % 3], num_correct=1, places=(0, 1, 2)) for i in range(6)
    )
    sources = Labels(names=("a", "b"), codes=np.arange(6) % 2)
    bench = make_set(6, name="bench", prompts=prompts, sources=sources)
    rewards = np.random.default_rng(0).normal(size=(6, 3))
    groups = ScoredGroups.join(
        [
            ScoredGroups.one(rewards=row, tokens=[2, 2, 2], better=[0, 0], worse=[1, 2])
            for row in rewards.tolist()
        ]
    )
    expected = bench.averages(np.arange(6), groups)
    assert bench.averages(np.array(order), groups[np.array(order)]) == expected


def test_why_a_set_with_subsets_has_no_benchmark_s_averages_is_said():
    neither = "of neither RewardBench nor RewardBench 2"
    coding, none = (PromptLabel(subset=name, num_correct=1, places=(0, 1, 2)) for name in ("x", ""))
    assert why_no_benchmark([coding]) == f"'x' is {neither}"
    assert why_no_benchmark([none]) == f"rows without a subset are {neither}"
    pairs = PromptLabel(subset="Math", num_correct=1, places=(0, 1))
    assert benchmark_names([pairs]) == []
    assert why_no_benchmark([pairs]).startswith("no row has correct and incorrect responses")
