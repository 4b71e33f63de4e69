import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from families import FAMILIES, PAD, VOCABULARY, FakeTokenizer, build_in_float64, describe
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig
from varlen_operator import register_varlen_on_cpu

from rm_ray.batches.collate import Collator
from rm_ray.data.cache.group_tokens import join_groups
from rm_ray.model.reward_model import RewardModel
from rm_ray.scoring.prefix_cache import PrefixCache, cost_of_cached, token_bytes
from rm_ray.scoring.scorer import Scorer

CPU = torch.device("cpu")

register_varlen_on_cpu()

TAILS = st.lists(st.integers(3, VOCABULARY - 2), min_size=1, max_size=12)
REQUESTS = st.lists(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 30), st.lists(TAILS, min_size=1, max_size=3)),
        min_size=1,
        max_size=3,
    ),
    min_size=2,
    max_size=4,
)
"""Calls, each of groups: the number of a prompt, how much of it, and what follows."""

PROMPTS = np.random.default_rng(0).integers(3, VOCABULARY - 1, (3, 30)).tolist()


def scorer(model: RewardModel, *, cache: PrefixCache | None, kernel: str = "shared") -> Scorer:
    return Scorer(
        model=model.eval(),
        tokenizer=FakeTokenizer(),  # type: ignore[arg-type]
        collator=Collator(layout="packed", kernel=kernel, pad_token_id=PAD, device=CPU),
        tokens_per_forward=50,
        cache=cache,
    )


def widths(model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the tokens of every forward pass."""
    found, forward = [], model.forward

    def forward_counted(groups):
        found.append(groups.input_ids.numel())
        return forward(groups)

    monkeypatch.setattr(model, "forward", forward_counted)
    return found


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        *((name, "shared") for name in FAMILIES),
        *itertools.product(("qwen3", "mistral-window"), ("grouped", "varlen")),
    ],
)
def test_rewards_are_those_of_whole_passes_in_every_family(tmp_path, name, kernel, monkeypatch):
    monkeypatch.setattr("rm_ray.batches.shared_prefix_index.MIN_SHARED", 1)
    model = build_in_float64(tmp_path, name, "packed")
    rng = np.random.default_rng(1)

    def draw(most: int) -> list[int]:
        return rng.integers(3, VOCABULARY - 1, rng.integers(1, most)).tolist()

    system, questions = draw(12), [draw(20) for _ in range(3)]
    whole = scorer(model, cache=None, kernel=kernel)
    cached = scorer(model, cache=PrefixCache(1_000), kernel=kernel)
    computed = widths(model, monkeypatch)
    asked = [
        [[system + question + draw(9) for _ in range(responses)] for question in questions]
        for responses in (1, 3, 2)
    ]
    for prompts in asked:
        computed.clear()
        expected = whole.score(prompts)
        needed = sum(computed)
        computed.clear()
        found = cached.score(prompts)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)  # rewards are float32
    assert sum(computed) < needed / 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return build_in_float64(tmp_path_factory.mktemp("model"), "llama-grouped", "packed")


@settings(max_examples=8, deadline=None)
@given(REQUESTS, st.integers(1, 120))
def test_no_order_of_requests_and_no_size_changes_rewards(model, requests, num_tokens):
    cached = scorer(model, cache=PrefixCache(num_tokens))
    whole = scorer(model, cache=None)
    for request in requests:
        prompts = [
            [PROMPTS[prompt][:cut] + tail for tail in tails] for prompt, cut, tails in request
        ]
        for ours, theirs in zip(cached.score(prompts), whole.score(prompts), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
        tree = cached.cache._tree
        kept = Counter(slot for node in tree._nodes() for slot in node.slots.tolist())
        assert kept + Counter(tree._free.tolist()) == Counter(range(num_tokens))


def test_the_same_again_computes_its_last_token_alone(model, monkeypatch):
    cached, computed = scorer(model, cache=PrefixCache(100)), widths(model, monkeypatch)
    for _ in range(2):
        cached.score([[PROMPTS[0]]])
    assert computed == [30, 1]


def test_a_pass_that_fails_keeps_nothing(model, monkeypatch):
    cached, forward = scorer(model, cache=PrefixCache(100)), model.forward

    def fail_at_last(groups):
        forward(groups)
        raise ZeroDivisionError

    monkeypatch.setattr(model, "forward", fail_at_last)
    with pytest.raises(ZeroDivisionError):
        cached.score([[PROMPTS[0], [*PROMPTS[0][:20], 5]]])
    assert cached.num_cached(np.array(PROMPTS[0])) == 0
    assert cached.cache._tree.num_free == 100


def test_a_pass_without_finite_rewards_keeps_nothing(model, monkeypatch):
    cached, forward = scorer(model, cache=PrefixCache(100)), model.forward
    spoil = torch.tensor([1.0, float("inf")])
    monkeypatch.setattr(model, "forward", lambda groups: forward(groups) * spoil)
    cached.score([[PROMPTS[0], [*PROMPTS[0][:20], 5]]])
    assert cached.cache._tree.num_free == 100


def test_of_a_pass_beyond_the_room_prompts_are_kept_before_responses(model):
    small, whole = scorer(model, cache=PrefixCache(36)), scorer(model, cache=None)
    responses = [[*PROMPTS[0], *(10 * [i])] for i in range(5, 7)]
    for _ in range(2):
        (found,), (expected,) = small.score([responses]), whole.score([responses])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        assert small.num_cached(np.array(responses[0])) == 36
        assert small.num_cached(np.array(responses[1])) == 30
        assert small.cache._tree.num_free == 0


def test_a_lone_conversation_is_no_shared_prefix(model):
    small = scorer(model, cache=PrefixCache(24))
    lone, pair = PROMPTS[1][:20], [[*PROMPTS[0][:20], i] for i in (5, 6)]
    small.score([[lone], pair])
    assert small.num_cached(np.array(pair[0])) == 20


def test_cached_tokens_count_for_a_part_so_that_their_keys_fit(model, monkeypatch):
    cached, computed = scorer(model, cache=PrefixCache(1_000)), widths(model, monkeypatch)
    cached.score([[prompt] for prompt in PROMPTS])
    computed.clear()
    cached.score([[[*prompt[:29], i]] for prompt in PROMPTS for i in range(5, 9)])
    # 29 of 30 tokens are cached and count as 3, so 12 conversations fit into 50 tokens.
    assert computed == [12]
    costs = cost_of_cached(np.array([29, 29, 29]), np.array([1, 2, 100]))
    assert costs.tolist() == [3, 6, 29]  # never more than if they were computed
    computed.clear()
    cached.score([[[*PROMPTS[0][:29], i, i] for i in range(10, 20)]])
    assert computed == [20]


def test_a_group_s_cached_tokens_are_those_of_its_shared_prefix():
    cache = PrefixCache(100)
    groups = join_groups([[[1, 2, 3, 4], [1, 2, 5]], [[7, 8]]])
    for expected in ([0, 0], [2, 1]):
        found = cache.begin(groups)
        assert found.lengths.tolist() == expected
        cache.end(groups, found, keep=True)
    assert [cache.count(np.array(ids)) for ids in ([1, 2, 3, 4], [1, 2, 5, 6], [7])] == [3, 3, 0]


@pytest.mark.parametrize(
    ("name", "expected"), [("llama-grouped", 2 * 2 * 16 * 2), ("gpt_neox", 2 * 2 * 32 * 2)]
)
def test_the_memory_of_a_token_is_that_of_its_heads(name, expected):
    assert token_bytes(AutoConfig.for_model(**describe(name)), torch.bfloat16) == expected
