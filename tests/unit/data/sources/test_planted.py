import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import combinations, permutations
from statistics import NormalDist, fmean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.data.preferences.group_reading import parse_group
from rm_ray.data.rows.pairs import parse_pair
from rm_ray.data.sources import synthetic
from rm_ray.data.sources.planted import (
    FLIPPED,
    LIST_SIZES,
    SCORE_NOISE,
    SPLITS,
    STRENGTHS,
    TEMPERATURE,
    TIES,
    explode,
    generate_rows,
    is_held_out,
    tie_probability,
    utility,
    win_probability,
)

Row = dict[str, Any]

EACH_SPLIT = pytest.mark.parametrize("split", list(SPLITS))
PAIRS = [split for split in SPLITS if split not in ("lists", "scores")]
EACH_SPLIT_OF_PAIRS = pytest.mark.parametrize("split", PAIRS)

RARE = NormalDist().inv_cdf(1 - 1e-4)
"""Standard deviations beyond which a figure is hardly there by chance; the rows are fixed."""


@cache
def rows_of(split: str) -> tuple[Row, ...]:
    return tuple(generate_rows(split))


def lead(row: Row) -> float:
    return utility(row["prompt"], row["chosen"]) - utility(row["prompt"], row["rejected"])


def worths(row: Row) -> list[float]:
    return [utility(row["prompt"], response) for response in row["responses"]]


def assert_as_often(happened: Sequence[bool], probabilities: Sequence[float]) -> None:
    """Check events with known probabilities: in total, and by a chi-square over ten bins."""
    order = sorted(range(len(happened)), key=lambda i: probabilities[i])
    size = len(order) // 10
    bins = [order[first : first + size] for first in range(0, size * 10, size)]
    chi_square = sum(_score(happened, probabilities, part) ** 2 for part in bins)

    assert abs(_score(happened, probabilities, order)) < RARE
    assert chi_square < chi_square_limit(len(bins))


def _score(happened: Sequence[bool], probabilities: Sequence[float], part: Iterable[int]) -> float:
    """Return how many standard deviations off the count of events is."""
    members = list(part)
    off = sum(happened[i] - probabilities[i] for i in members)
    return off / math.sqrt(sum(probabilities[i] * (1 - probabilities[i]) for i in members))


def chi_square_limit(freedom: int) -> float:
    """Return what a chi-square rarely exceeds (Wilson and Hilferty, 1931)."""
    spread = 2 / (9 * freedom)
    return float(freedom * (1 - spread + RARE * math.sqrt(spread)) ** 3)


@EACH_SPLIT
def test_the_rows_are_the_same_every_time(split: str):
    assert list(generate_rows(split, 100)) == list(generate_rows(split, 100))


@EACH_SPLIT
def test_a_row_depends_on_its_split_and_number_only(split: str):
    assert list(generate_rows(split, 60))[:25] == list(generate_rows(split, 25))
    assert list(rows_of(split)[:25]) == list(generate_rows(split, 25))
    for first in (0, 1, 40, 300):
        assert tuple(generate_rows(split, 9, first=first)) == rows_of(split)[first : first + 9]


def test_the_first_rows_are_those_of_before():
    """Labels that change would make figures of before incomparable."""
    (truth,) = generate_rows("truth", 1)
    (ranked,) = generate_rows("lists", 1)

    assert truth == {
        "prompt": "Ivan asks: I have a dark workshop. Which colours do I take?",
        "chosen": "It needs yellow, brown, green and red.",
        "rejected": "My advice is green, red and white.",
        "source": "planted/dark",
    }
    assert ranked == {
        "prompt": "Ben asks: How should I paint a dark office?",
        "responses": [
            "My advice is blue, orange and pink.",
            "Try white, red and green.",
            "It needs red, green and orange.",
            "My advice is green and purple.",
        ],
        "ranks": [4, 3, 1, 2],
        "source": "planted/dark",
    }


@EACH_SPLIT
def test_a_split_has_its_stated_number_of_rows_and_more_if_asked(split: str):
    longer = tuple(generate_rows(split, SPLITS[split] + 7))

    assert len(rows_of(split)) == SPLITS[split]
    assert longer[:-7] == rows_of(split)
    assert len(longer) == SPLITS[split] + 7


def test_no_split_has_a_name_of_the_built_in_pairs():
    assert not SPLITS.keys() & synthetic.SPLITS.keys()


def test_the_prompts_of_the_truth_are_in_no_other_split():
    prompts = {split: {row["prompt"] for row in rows_of(split)} for split in SPLITS}
    truth = prompts.pop("truth")

    assert len(truth) > 200
    assert all(is_held_out(prompt) for prompt in truth)
    for others in prompts.values():
        assert len(others) > 500
        assert not truth & others


def test_no_two_splits_ask_and_answer_alike_but_lists_and_their_pairs():
    firsts = {split: [row["prompt"] for row in generate_rows(split, 50)] for split in SPLITS}

    for one, other in combinations(firsts, 2):
        assert firsts[one] != firsts[other]
    assert {row["prompt"] for row in generate_rows("exploded", 310)} == {
        row["prompt"] for row in generate_rows("lists", 30)
    }


@EACH_SPLIT
def test_a_row_is_of_its_documented_form(split: str):
    labels = {
        "soft": {"preference"}, "ties": {"tie"}, "strengths": {"margin"}, "lists": {"ranks"},
        "scores": {"scores"},
    }  # fmt: skip
    sides = {"chosen", "rejected"} if split in PAIRS else {"responses"}

    for row in rows_of(split):
        assert row.keys() == {"prompt", "source", *sides, *labels.get(split, ())}
        assert json.loads(json.dumps(row)) == row
        responses = row.get("responses") or [row["chosen"], row["rejected"]]
        texts = [row["prompt"], row["source"], *responses]
        assert all(isinstance(text, str) and text for text in texts)
        assert len(set(responses)) == len(responses)


@EACH_SPLIT_OF_PAIRS
def test_a_row_of_two_responses_is_read_as_a_pair(split: str):
    for row in rows_of(split)[:300]:
        pair = parse_pair(row)
        assert pair.prompt == [{"role": "user", "content": row["prompt"]}]
        assert pair.chosen[-1] == {"role": "assistant", "content": row["chosen"]}
        assert pair.rejected[-1] == {"role": "assistant", "content": row["rejected"]}
        assert (pair.margin, pair.source) == (row.get("margin", 0), row["source"])


def test_labels_are_of_their_documented_form():
    assert all(0 < row["preference"] < 1 for row in rows_of("soft"))
    assert {row["tie"] for row in rows_of("ties")} == {True, False}
    assert {row["margin"] for row in rows_of("strengths")} == {1, 2, 3}
    for row in rows_of("lists"):
        assert sorted(row["ranks"]) == list(range(1, len(row["responses"]) + 1))
    for row in rows_of("scores"):
        assert len(row["scores"]) == len(row["responses"])
        assert all(isinstance(score, float) for score in row["scores"])


@pytest.mark.parametrize("split", ["lists", "scores"])
def test_lists_of_each_size_are_equally_frequent(split: str):
    sizes = Counter(len(row["responses"]) for row in rows_of(split))

    assert sizes == dict.fromkeys(LIST_SIZES, SPLITS[split] // 3)


def test_the_utility_is_the_sum_over_the_colours_in_the_light_of_the_room():
    plain, dark, cold = "Which colours?", "Which colours suit a dark shop?", "A cold one?"

    assert utility(plain, "Try white and blue.") == -0.5 - 0.75
    assert utility(dark, "Try white and blue.") == (-0.5 + 1.0) + (-0.75 - 0.5)
    assert utility(cold, "Try white and blue.") == (-0.5 - 0.25) + (-0.75 - 1.0)
    assert utility(dark.replace("dark", "light"), "Blue!") == -0.75 + 0.5
    assert utility(cold.replace("cold", "hot"), "Blue!") == -0.75 + 1.0
    assert utility(dark, "I do not know.") == 0


def test_only_the_words_determine_the_utility():
    prompt = "Ana asks: Which colours suit my cold hall?"

    expected = utility(prompt, "I would take red, pink and brown.")

    assert expected == utility("Cold?", "BROWN, pink... Red")
    assert expected == utility(prompt, "Red, red, red and pink, or brown and red.")
    assert expected == utility(prompt, "I would take red, pink and brown in the coldest redwood.")


def test_each_room_has_a_taste_of_its_own():
    def order(room: str) -> list[str]:
        prompt = f"Which colours suit a {room} hall?"
        return sorted(colours, key=lambda colour: utility(prompt, colour))

    colours = [
        "white", "yellow", "pink", "orange", "red", "green", "blue", "purple", "brown", "black",
    ]  # fmt: skip
    orders = [order(room) for room in ("dark", "light", "cold", "hot")]

    assert all(one != other for one, other in combinations(orders, 2))


@EACH_SPLIT_OF_PAIRS
def test_the_longer_response_is_chosen_half_of_the_time(split: str):
    rows = rows_of(split)
    lengths = [(len(row["chosen"]), len(row["rejected"])) for row in rows]
    longer = fmean((a > b) + 0.5 * (a == b) for a, b in lengths)

    assert longer == pytest.approx(0.5, abs=0.05)


@given(st.floats(-20, 20))
def test_both_sides_win_or_tie_with_probabilities_that_add_up(difference: float):
    wins = [win_probability(side) for side in (difference, -difference)]
    tie = tie_probability(difference)
    odds = [math.exp(side / TEMPERATURE / 2) for side in (difference, -difference)]
    total = sum(odds) + TIES

    assert sum(wins) == pytest.approx(1)
    assert tie == pytest.approx(TIES / total)
    assert [(1 - tie) * win for win in wins] == pytest.approx([odd / total for odd in odds])
    assert tie <= tie_probability(0) == TIES / (2 + TIES)


def test_the_truth_chooses_the_response_that_is_worth_more():
    assert all(lead(row) > 0 for row in rows_of("truth"))


def in_one_direction(rows: Iterable[Row]) -> tuple[list[bool], list[float]]:
    """Return whether the response won whose text is the first by alphabet, and its lead."""
    won, leads = [], []
    for row in rows:
        first = row["chosen"] < row["rejected"]
        won.append(first)
        leads.append(lead(row) if first else -lead(row))
    return won, leads


def test_responses_win_as_often_as_bradley_and_terry_say():
    won, leads = in_one_direction(rows_of("pairs"))

    assert_as_often(won, [1 / (1 + math.exp(-each / TEMPERATURE)) for each in leads])


@pytest.mark.parametrize("wrong", [0.5, 0.8, 1.25, 2.0])
def test_another_temperature_would_be_noticed(wrong: float):
    won, leads = in_one_direction(rows_of("pairs"))

    with pytest.raises(AssertionError):
        assert_as_often(won, [win_probability(wrong * each) for each in leads])


def test_a_fifth_of_the_flipped_labels_is_wrong_whatever_the_lead():
    rows = rows_of("flipped")
    wrong = [lead(row) < 0 for row in rows]
    leads = [abs(lead(row)) for row in rows]

    assert FLIPPED == 0.2
    assert 0 not in leads
    assert_as_often(wrong, [0.2] * len(rows))
    large = [w for w, each in zip(wrong, leads, strict=True) if each > 2]
    assert_as_often(large, [0.2] * len(large))


def test_a_soft_label_is_the_probability_that_chosen_wins():
    rows = rows_of("soft")

    for row in rows:
        assert row["preference"] == 1 / (1 + math.exp(-lead(row) / TEMPERATURE))
    below = fmean(row["preference"] < 0.5 for row in rows)
    assert below == pytest.approx(0.5, abs=0.05)  # the sides are in no order


def test_ties_are_as_frequent_as_davidson_says():
    rows = rows_of("ties")
    halves = [math.exp(lead(row) / TEMPERATURE / 2) for row in rows]

    assert_as_often([row["tie"] for row in rows], [1 / (1 + h + 1 / h) for h in halves])


def test_responses_that_do_not_tie_win_as_often_as_bradley_and_terry_say():
    won, leads = in_one_direction(row for row in rows_of("ties") if not row["tie"])

    assert_as_often(won, [win_probability(each) for each in leads])


def test_the_sides_of_a_tie_are_in_no_order():
    tied = [lead(row) for row in rows_of("ties") if row["tie"]]

    assert abs(fmean(tied)) < RARE * stdev(tied) / math.sqrt(len(tied))


def test_preferences_with_a_strength_follow_bradley_and_terry():
    won, leads = in_one_direction(rows_of("strengths"))

    assert_as_often(won, [win_probability(each) for each in leads])


@pytest.mark.parametrize("margin", [1, 2, 3])
def test_a_strength_is_as_frequent_as_the_perceived_lead(margin: int):
    """The perceived lead is logistic around the true one; its size falls between two limits."""
    limits = (0.0, *STRENGTHS, math.inf)

    def below(limit: float, center: float) -> float:
        return 1 / (1 + math.exp(-(limit - center))) if limit < math.inf else 1.0

    def between(center: float) -> float:
        low, high = limits[margin - 1 : margin + 1]
        positive = below(high, center) - below(low, center)
        negative = below(high, -center) - below(low, -center)
        return positive + negative

    rows = rows_of("strengths")

    assert_as_often(
        [row["margin"] == margin for row in rows],
        [between(lead(row) / TEMPERATURE) for row in rows],
    )


def test_each_response_comes_first_as_often_as_plackett_and_luce_say():
    first, probabilities = [], []
    for row in rows_of("lists"):
        strengths = [math.exp(worth / TEMPERATURE) for worth in worths(row)]
        first += [rank == 1 for rank in row["ranks"]][:1]  # one of a list: they are independent
        probabilities.append(strengths[0] / sum(strengths))

    assert_as_often(first, probabilities)


def test_whole_rankings_are_as_frequent_as_plackett_and_luce_say():
    """The expected and the true log-likelihood of rankings, by enumeration."""
    found, expected, variances = [], [], []
    for row in rows_of("lists"):
        if len(row["ranks"]) != 4:
            continue
        strengths = [math.exp(worth / TEMPERATURE) for worth in worths(row)]
        logs = {order: log_likelihood(strengths, order) for order in permutations(range(4))}
        assert math.fsum(map(math.exp, logs.values())) == pytest.approx(1)
        mean = math.fsum(math.exp(log) * log for log in logs.values())
        found.append(logs[tuple(sorted(range(4), key=lambda i: row["ranks"][i]))])
        expected.append(mean)
        variances.append(math.fsum(math.exp(log) * (log - mean) ** 2 for log in logs.values()))

    off = (sum(found) - sum(expected)) / math.sqrt(sum(variances))
    assert len(found) == 500
    assert abs(off) < RARE


def log_likelihood(strengths: Sequence[float], order: Sequence[int]) -> float:
    places = range(len(order))
    return sum(math.log(strengths[order[k]] / sum(strengths[i] for i in order[k:])) for k in places)


def test_two_responses_of_a_list_win_as_often_as_bradley_and_terry_say():
    rows = rows_of("lists")

    assert_as_often(
        [row["ranks"][0] < row["ranks"][1] for row in rows],
        [win_probability(worths(row)[0] - worths(row)[1]) for row in rows],
    )


def test_the_exploded_pairs_are_all_comparisons_of_the_lists():
    rows = iter(rows_of("exploded"))

    for ranked in rows_of("lists"):
        rank_of = dict(zip(ranked["responses"], ranked["ranks"], strict=True))
        compared = [next(rows) for _ in range(math.comb(len(rank_of), 2))]
        assert compared == list(explode(ranked))
        for row in compared:
            assert (row["prompt"], row["source"]) == (ranked["prompt"], ranked["source"])
            assert rank_of[row["chosen"]] < rank_of[row["rejected"]]
        sides = {frozenset((row["chosen"], row["rejected"])) for row in compared}
        assert sides == {frozenset(two) for two in combinations(rank_of, 2)}
    assert next(rows, None) is None


def test_scores_are_normal_around_the_utilities():
    off = [
        (score - worth) / SCORE_NOISE
        for row in rows_of("scores")
        for score, worth in zip(row["scores"], worths(row), strict=True)
    ]
    below = [each < 0.5 for each in off]

    assert abs(fmean(off)) < RARE / math.sqrt(len(off))
    assert abs(stdev(off) - 1) < RARE / math.sqrt(2 * len(off))
    assert_as_often(below, [NormalDist().cdf(0.5)] * len(off))


def test_the_utility_does_not_favour_those_who_name_more_colours():
    counts: dict[int, list[float]] = {}
    for row in rows_of("scores"):
        for response, worth in zip(row["responses"], worths(row), strict=True):
            counts.setdefault(response.count(",") + 2, []).append(worth)

    assert counts.keys() == {2, 3, 4}
    for found in counts.values():
        assert abs(fmean(found)) < RARE * stdev(found) / math.sqrt(len(found))


@EACH_SPLIT
def test_a_row_is_read_as_its_comparison_group(split: str):
    for row in rows_of(split)[:300]:
        group = parse_group(row)
        texts = row.get("responses") or [row["chosen"], row["rejected"]]
        if row.get("preference", 1) < 0.5:
            texts = texts[::-1]
        assert group.prompt == [{"role": "user", "content": row["prompt"]}]
        assert [response["content"] for response in group.responses] == texts
        assert group.source == row["source"]
        assert len(group.comparisons) == math.comb(len(texts), 2)
        worth = [utility(row["prompt"], text) for text in texts]
        for each in group.comparisons:
            if "ranks" in row:
                assert row["ranks"][each.better] < row["ranks"][each.worse]
            if "scores" in row and not each.is_tie:
                assert row["scores"][each.better] > row["scores"][each.worse]
            if "preference" in row:
                difference = worth[each.better] - worth[each.worse]
                assert each.probability == pytest.approx(win_probability(difference))
            assert each.is_tie or "tie" not in row or not row["tie"]
            assert each.margin == row.get("margin", 0)
        assert list(group.scores or ()) == row.get("scores", [])
