import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.data.cache.group_tokens import shared_prefix_of_arrays
from rm_ray.serving.batches import MOST_SEARCHED, next_batch, share_prefixes

CONVERSATIONS = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=8).map(lambda ids: np.array(ids, np.int32)),
    min_size=1,
    max_size=8,
)
"""Of so few different tokens that many share prefixes."""

NOTHING = [0] * 8
"""No conversation has cached tokens."""


def nothing(_: np.ndarray) -> int:
    return 0


def tokens(*texts: str) -> list[np.ndarray]:
    return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]


def distinct(conversations: list[np.ndarray], groups: list[list[int]]) -> int:
    """Tokens to compute if each group's shared prefix is computed once."""
    total = 0
    for group in groups:
        members = [conversations[i] for i in group]
        repeated = (len(group) - 1) * shared_prefix_of_arrays(members)
        total += sum(map(len, members)) - repeated
    return total


def runs(items: list[int]):
    """All ways to divide a list into runs of neighbours."""
    for cuts in itertools.product((False, True), repeat=len(items) - 1):
        at = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(items)]
        yield [items[begin:end] for begin, end in itertools.pairwise(at)]


def test_responses_of_a_prompt_are_grouped_whatever_lies_between_them():
    conversations = tokens("snow?yes", "rain?no", "snow?no", "rain?yes", "snow?perhaps")
    assert sorted(share_prefixes(conversations, NOTHING)) == [[0, 2, 4], [1, 3]]


def test_what_shares_nothing_stays_alone():
    assert sorted(share_prefixes(tokens("abc", "bcd", "cde"), NOTHING)) == [[0], [1], [2]]


def test_the_same_conversation_twice_shares_all_but_its_last_token():
    twice = tokens("hello", "hello")
    assert share_prefixes(twice, NOTHING) == [[0, 1]]
    assert distinct(twice, [[0, 1]]) == 6


@given(CONVERSATIONS)
def test_groups_hold_every_conversation_once(conversations):
    groups = share_prefixes(conversations, NOTHING)
    assert sorted(i for group in groups for i in group) == [*range(len(conversations))]
    assert all(group == sorted(group) for group in groups)


@given(CONVERSATIONS)
def test_no_other_division_of_the_sorted_conversations_needs_fewer_tokens(conversations):
    order = sorted(range(len(conversations)), key=lambda i: conversations[i].tolist())
    best = min(distinct(conversations, each) for each in runs(order))
    assert distinct(conversations, share_prefixes(conversations, NOTHING)) == best


@given(CONVERSATIONS, CONVERSATIONS)
def test_no_other_division_needs_fewer_tokens_besides_those_that_are_cached(conversations, kept):
    def cached(ids: np.ndarray) -> int:
        return max(shared_prefix_of_arrays([np.append(ids[:-1], -1), each]) for each in kept)

    def cost(groups: list[list[int]]) -> float:
        total = 8 * distinct(conversations, groups)
        for group in groups:
            members = [conversations[i] for i in group]
            total -= 7 * min(cached(members[0]), shared_prefix_of_arrays(members))
        return total

    kept = [np.append(ids, [-2, -3]) for ids in kept]  # so that all of it can be cached
    order = sorted(range(len(conversations)), key=lambda i: conversations[i].tolist())
    groups = share_prefixes(conversations, [*map(cached, conversations)])
    assert cost(groups) == min(map(cost, runs(order)))


def test_a_batch_is_filled_by_what_is_left_to_compute_and_a_part_of_what_is_cached():
    pending = tokens(*(f"a long, long prompt?{answer}" for answer in "abcdefgh"))
    assert next_batch(pending, 24, nothing) == [[0, 1, 2, 3]]
    # A response has one token of its own, and reads 20 cached ones, which count as two.
    assert next_batch(pending, 24, lambda ids: 20) == [[*range(8)]]
    assert next_batch(pending, 23, lambda ids: 20) == [[*range(7)]]
    many = [np.append(pending[0][:-1], i) for i in range(50)]
    assert next_batch(many, 70, lambda ids: 20) == [[*range(50)]]  # as if the prompt was computed
    assert next_batch(many, 69, lambda ids: 20) == [[*range(49)]]


@given(CONVERSATIONS, st.integers(1, 30))
def test_a_batch_has_the_oldest_conversation_and_stays_within_its_tokens(conversations, limit):
    batch = next_batch(conversations, limit, nothing)
    assert batch[0][0] == 0
    chosen = [i for group in batch for i in group]
    assert len(chosen) == len({*chosen})
    assert distinct(conversations, batch) <= max(limit, len(conversations[0]))


@given(CONVERSATIONS, st.integers(1, 30))
def test_everything_pending_is_computed_after_as_many_batches_at_most(conversations, limit):
    left = [*range(len(conversations))]
    for _ in range(len(conversations)):
        batch = next_batch([conversations[i] for i in left], limit, nothing)
        chosen = {left[i] for group in batch for i in group}
        left = [i for i in left if i not in chosen]
        if not left:
            return
    raise AssertionError(left)


def test_what_shares_a_prefix_with_the_oldest_goes_before_what_is_older():
    pending = tokens("snow?yes", "rain", "snow?no")
    assert next_batch(pending, 10, nothing) == [[0, 2]]


def test_a_conversation_longer_than_a_pass_gets_one_of_its_own():
    assert next_batch(tokens("a" * 50, "bc"), 10, nothing) == [[0]]


def test_only_the_oldest_conversations_are_searched_for_prefixes():
    pending = tokens(*map(chr, range(32, 32 + 95)))
    pending = [*pending * MOST_SEARCHED][: MOST_SEARCHED + 5]
    assert (
        max(i for group in next_batch(pending, 10**6, nothing) for i in group) == MOST_SEARCHED - 1
    )


@pytest.mark.parametrize("count", [1, 2000])
def test_many_pending_conversations_are_grouped(count):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 1000, 20) for _ in range(count)]
    pending = [
        np.concatenate([prompt, rng.integers(3, 1000, 5)]).astype(np.int32)
        for _ in range(2)
        for prompt in prompts
    ]
    groups = share_prefixes(pending, [0] * len(pending))
    assert sorted(groups) == [[i, i + count] for i in range(count)]
