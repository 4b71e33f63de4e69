import pytest
from pair_rows import NO, SO, assistant

from rm_ray.data.preferences.distinct import merge_identical
from rm_ray.data.rows.groups import Comparison
from rm_ray.data.rows.refusals import RefusedError


def beats(better: int, worse: int) -> Comparison:
    return Comparison(better=better, worse=worse)


def ties(one: int, other: int) -> Comparison:
    return Comparison(better=one, worse=other, probability=0.5)


def test_distinct_responses_stay_as_they_are():
    kept, comparisons = merge_identical([SO, NO], [beats(1, 0)], may_tie=False)

    assert (kept, comparisons) == ([0, 1], (beats(1, 0),))


def test_an_identical_response_is_kept_once_with_its_comparisons():
    responses = [SO, {**SO, "id": 7}, NO]

    kept, comparisons = merge_identical(responses, [beats(0, 2), beats(1, 2)], may_tie=False)

    assert (kept, comparisons) == ([0, 2], (beats(0, 1),))


def test_the_tie_of_identical_responses_says_nothing():
    responses = [SO, NO, SO]
    tied = [ties(0, 1), ties(0, 2), ties(1, 2)]

    assert merge_identical(responses, tied, may_tie=True) == ([0, 1], (ties(0, 1),))
    with pytest.raises(RefusedError, match="the responses 0 and 2"):
        merge_identical(responses, tied, may_tie=False)


def test_identical_responses_of_which_one_is_better_are_refused():
    for comparison in (beats(0, 2), beats(2, 0)):
        with pytest.raises(RefusedError, match="identical responses: the responses 0 and 2"):
            merge_identical([SO, NO, SO], [comparison], may_tie=True)


def test_true_and_1_are_different_values_of_a_message():
    responses = [{**assistant("a"), "final": True}, {**assistant("a"), "final": 1}]

    assert merge_identical(responses, [beats(0, 1)], may_tie=False)[0] == [0, 1]
