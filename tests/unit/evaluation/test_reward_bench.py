import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.errors import InputError
from rm_ray.evaluation.reward_bench import (
    SECTIONS,
    ScoredPrompt,
    find_obstacle,
    score_benchmark,
    score_reward_bench,
    score_reward_bench_2,
    score_ties,
)


def test_a_perfect_model_scores_one_everywhere():
    everything = {subset: 1.0 for weights in SECTIONS.values() for subset in weights}
    assert score_reward_bench(everything) == dict.fromkeys([*SECTIONS, "Score"], 1.0)


def test_the_weights_match_the_benchmark_s_number_of_pairs():
    # 2,985 pairs; the 447 of math weigh as much as the 6 x 164 of code.
    total = sum(sum(weights.values()) for weights in SECTIONS.values())
    assert total == 2_985 - 447 + 984


def test_sections_weight_their_subsets_by_size_and_count_equally():
    found = score_reward_bench({"alpacaeval-easy": 1.0, "mt-bench-easy": 0.5, "math-prm": 0.25})
    assert found["Chat"] == pytest.approx((100 + 0.5 * 28) / 128)
    assert found["Reasoning"] == 0.25
    assert found["Score"] == pytest.approx((found["Chat"] + 0.25) / 2)
    assert "Safety" not in found


def prompt(subset: str, rewards: list[float], num_correct: int = 1, id: str = "") -> ScoredPrompt:
    return ScoredPrompt(subset=subset, rewards=rewards, num_correct=num_correct, id=id)


def test_a_tie_for_the_best_of_four_shares_the_point():
    found = score_reward_bench_2(
        [
            prompt("Math", [3.0, 1.0, 2.0, 0.0]),
            prompt("Math", [2.0, 2.0, 1.0, 0.0]),
            prompt("Math", [1.0, 2.0, 1.0, 0.0]),
            prompt("Focus", [1.0, 1.0, 1.0, 1.0]),
        ]
    )
    assert found == pytest.approx({"Math": 1.5 / 3, "Focus": 0.25, "Score": 0.375})


def test_ties_that_lead_by_more_than_they_differ_score_all():
    found = score_ties(
        [
            prompt("Ties", [5.0, 1.0, 0.0], 1, "ref:7"),
            prompt("Ties", [5.0, 4.0, 2.0, 1.0], 2, "tied:7"),
        ]
    )
    # Both lead: the tied answers by 2 with a spread of 1, and with the reference's lead too.
    assert found == pytest.approx(0.3 + 0.3 + 0.2 + 0.2 + 0.01 * math.tanh(2 / 1 - 1))


def test_ties_that_differ_by_more_than_they_lead_lose_the_margins():
    found = score_ties(
        [prompt("Ties", [5.0, 1.0], 1, "ref:7"), prompt("Ties", [9.0, 4.0, 2.0], 2, "tied:7")]
    )
    assert found == pytest.approx(0.6 + 0.01 * math.tanh(2 / 5 - 1))


def test_a_tied_prompt_without_its_reference_counts_only_for_accuracy():
    assert score_ties([prompt("Ties", [5.0, 4.0, 2.0], 2, "tied:1")]) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("responses", "expected"),
    [
        (
            {"ref:0": (1, [1.5, 0.1, 0.3]), "tied:0": (2, [2.4, 2.1, -2.0, -2.8]),
             "ref:1": (1, [-0.4, -1.4, 0.6]), "tied:1": (3, [1.2, 1.3, -0.9, -2.1, -1.8]),
             "ref:2": (1, [2.7, 0.2, -2.3]), "tied:2": (2, [-0.4, 1.5, -2.5, -3.0])},
            0.7673444760933742,
        ),
        (
            {"ref:0": (1, [2.5, -2.1, -2.1]), "tied:0": (2, [2.5, 0.2, 1.0, -0.7]),
             "tied:1": (2, [-0.3, 2.9, -2.2, 1.1]), "ref:2": (1, [0.5, -2.9, -1.3]),
             "tied:2": (2, [0.1, 0.3, 0.4, -0.5])},
            0.2906992325026004,
        ),
        (
            {"ref:0": (1, [1.4, -0.0, -2.7]), "tied:0": (3, [2.3, 0.9, 0.3, -1.0, -0.0]),
             "ref:1": (1, [-0.8, 1.1, -2.9]), "tied:1": (3, [2.4, -0.9, 2.2, -1.5, -0.6]),
             "ref:2": (1, [-1.0, -2.8, -2.2]), "tied:2": (2, [-0.5, -0.0, 0.4, -1.1])},
            0.29132787415658484,
        ),
    ],
)  # fmt: skip
def test_the_ties_score_matches_rewardbench_s_own(responses, expected):
    """The expected values come from ``process_single_model`` in rewardbench 0.1.4."""
    prompts = [prompt("Ties", rewards, right, name) for name, (right, rewards) in responses.items()]
    assert score_ties(prompts) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["17", "tied:", "both:3"])
def test_ties_with_other_ids_are_refused(name):
    with pytest.raises(InputError, match=f"has the id '{name}'"):
        score_reward_bench_2([prompt("Ties", [1.0, 0.0, 0.5], 2, name)])


@given(st.lists(st.lists(st.floats(-5, 5), min_size=2, max_size=5), min_size=1, max_size=9))
def test_scores_lie_between_their_bounds(rows):
    found = score_reward_bench_2([prompt("Math", rewards) for rewards in rows])
    assert 0 <= found["Score"] <= 1


@pytest.mark.parametrize(
    ("subsets", "obstacle"),
    [
        (["math-prm", "hep-go"], None),
        (["Focus", "Precise IF", "ties"], None),
        ([], None),
        (["law", "coding"], "'coding' is of neither RewardBench nor RewardBench 2"),
        (["Math", "coding"], "'coding' is of neither RewardBench nor RewardBench 2"),
        (["math-prm", ""], "rows without a subset are of neither RewardBench nor RewardBench 2"),
        (["Math", "math-prm"], "the subsets are of both RewardBench and RewardBench 2"),
    ],
)
def test_only_a_benchmark_s_own_subsets_have_its_scores(subsets: list[str], obstacle: str | None):
    assert find_obstacle(subsets) == obstacle
    prompts = [prompt(subset, [1.0, 0.0, 0.5], id="ref:1") for subset in subsets]
    assert ("Score" in score_benchmark(prompts, subsets)) == (subsets != [] and obstacle is None)
