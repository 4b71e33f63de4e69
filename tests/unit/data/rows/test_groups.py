from pair_rows import ASKED, NO, SO

from rm_ray.data.rows.context import Context
from rm_ray.data.rows.groups import FIRST_WINS, Comparison, Group


def test_a_pair_is_two_responses_and_one_comparison():
    context = Context(tools=[{"type": "function"}])

    group = Group.pair([ASKED, SO], [ASKED, NO], margin=0.5, source="hh", context=context)

    assert group == Group(
        prompt=[ASKED],
        responses=[SO, NO],
        comparisons=(Comparison(better=0, worse=1, weight=1.0, margin=0.5, probability=1.0),),
        source="hh",
        context=context,
    )
    assert group.conversations == [[ASKED, SO], [ASKED, NO]]


def test_a_pair_without_a_margin_has_the_comparison_of_all_plain_pairs():
    group = Group.pair([ASKED, SO], [ASKED, NO])

    assert group.comparisons is FIRST_WINS
    assert group.comparisons == (Comparison(better=0, worse=1),)


def test_only_a_probability_of_one_half_is_a_tie():
    assert [Comparison(better=0, worse=1, probability=p).is_tie for p in (0.5, 0.51, 1.0)] == [
        True,
        False,
        False,
    ]


def test_swapping_reverses_every_preference_and_twice_gives_the_group_back():
    comparisons = (Comparison(better=0, worse=1, margin=2.0), Comparison(better=1, worse=0))
    group = Group(prompt=[ASKED], responses=[SO, NO], comparisons=comparisons)

    assert group.swap().comparisons == (
        Comparison(better=1, worse=0, margin=2.0),
        Comparison(better=0, worse=1),
    )
    assert group.swap().swap() == group
