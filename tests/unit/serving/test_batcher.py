import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from rm_ray.config.scoring import ScoringModel
from rm_ray.serving.batcher import MOST_FAILURES, Batcher
from rm_ray.serving.metrics import BatchMetrics
from rm_ray.serving.refusal import RefusedError
from rm_ray.serving.replica import current_version
from rm_ray.serving.served_model import ServedModel, ServedModels

IDS = st.lists(st.integers(5, 99), min_size=1, max_size=12)


def load(folder, cache_bytes: int = 0):
    options = ScoringModel(model=str(folder))
    loaded = ServedModel.load(
        current_version(options), options, device=torch.device("cpu"), cache_bytes=cache_bytes
    )
    return ServedModels.of([loaded])


@pytest.fixture(scope="module")
def model(exported):
    return load(exported)


@pytest.fixture(scope="module")
def cached_model(exported):
    return load(exported, cache_bytes=2**20)


@pytest.fixture(scope="module")
def plain(exported):
    return AutoModelForSequenceClassification.from_pretrained(exported).eval()


def make_batcher(tokens_per_forward: int = 64, max_pending_tokens: int = 10_000) -> Batcher:
    return Batcher(
        tokens_per_forward=tokens_per_forward,
        max_pending_tokens=max_pending_tokens,
        metrics=BatchMetrics(replica="1"),
    )


def arrays(*conversations: list[int]) -> list[np.ndarray]:
    return [np.array(ids, dtype=np.int32) for ids in conversations]


@torch.no_grad()
def reward(plain, ids: list[int]) -> float:
    return plain(input_ids=torch.tensor([ids])).logits.item()


@settings(max_examples=10)
@given(requests=st.lists(st.lists(IDS, min_size=1, max_size=4), min_size=1, max_size=6))
def test_every_request_gets_the_rewards_of_its_own_conversations(model, plain, requests):
    async def ask():
        batcher = make_batcher()
        return await asyncio.gather(*(batcher.score(model, arrays(*each)) for each in requests))

    for asked, rewards in zip(requests, asyncio.run(ask()), strict=True):
        assert rewards.dtype == np.float32
        assert rewards.shape == (1, len(asked))
        assert rewards[0] == pytest.approx([reward(plain, ids) for ids in asked], abs=1e-5)


def test_requests_that_wait_together_are_computed_together_over_their_prefix(model):
    async def ask():
        batcher = make_batcher()
        prompt = [*range(10, 30)]
        asked = (batcher.score(model, arrays([*prompt, i])) for i in range(40, 56))
        await asyncio.gather(*asked)
        return batcher.metrics

    metrics = asyncio.run(ask())
    (batches,) = (metric for metric in metrics.collect() if metric.name == "rm_serve_batch_tokens")
    assert next(s.value for s in batches.samples if s.name.endswith("_count")) == 1
    assert (metrics.num_rewards, metrics.num_tokens, metrics.num_computed) == (16, 16 * 21, 36)


@settings(max_examples=10)
@given(requests=st.lists(st.lists(IDS, min_size=1, max_size=4), min_size=1, max_size=6))
def test_every_request_gets_its_rewards_whatever_is_cached(cached_model, plain, requests):
    async def ask():
        batcher = make_batcher()
        return await asyncio.gather(
            *(batcher.score(cached_model, arrays(*each)) for each in requests)
        )

    for asked, rewards in zip(requests, asyncio.run(ask()), strict=True):
        assert rewards[0] == pytest.approx([reward(plain, ids) for ids in asked], abs=1e-5)


def test_a_prompt_is_computed_once_for_requests_that_come_one_after_another(exported):
    model = load(exported, cache_bytes=2**20)

    async def ask():
        batcher = make_batcher()
        prompt = [*range(60, 90)]
        for i in range(40, 44):
            await batcher.score(model, arrays([*prompt, i, 7]))
        return batcher.metrics

    metrics = asyncio.run(ask())
    assert (metrics.num_tokens, metrics.num_computed) == (4 * 32, 32 + 3 * 2)


def test_what_a_client_gone_still_waits_for_is_dropped(model):
    async def ask():
        batcher = make_batcher(tokens_per_forward=10)
        first = asyncio.create_task(batcher.score(model, arrays([5] * 10)))
        gone = asyncio.create_task(batcher.score(model, arrays([6] * 10, [7] * 10)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([first, gone])
        assert gone.cancelled()
        while batcher._worker is not None and not batcher._worker.done():
            await asyncio.sleep(0.01)
        return batcher

    batcher = asyncio.run(ask())
    assert batcher.metrics.num_rewards == 1
    batcher.refuse_overload(10_000)  # nothing is counted as pending


def test_more_than_may_be_pending_is_refused_with_the_time_to_wait(model):
    async def ask():
        batcher = make_batcher(max_pending_tokens=25)
        first = asyncio.create_task(batcher.score(model, arrays([5] * 20)))
        await asyncio.sleep(0)
        with pytest.raises(RefusedError) as refused:
            await batcher.score(model, arrays([6] * 6))
        fits = await batcher.score(model, arrays([6] * 5))
        await first
        return refused.value.refusal, fits

    refusal, fits = asyncio.run(ask())
    assert refusal.status == 503
    assert refusal.retry_after_s >= 1
    assert "20 tokens are pending, of at most 25" in refusal.message
    assert fits.shape == (1, 1)


def test_a_request_that_never_fits_is_refused_for_good():
    with pytest.raises(RefusedError, match="has 26 tokens, and at most 25 may be pending") as found:
        make_batcher(max_pending_tokens=25).refuse_overload(26)
    assert found.value.refusal.status == 413


def test_requests_keep_the_model_they_arrived_under(model, exported):
    other = load(exported)
    with torch.no_grad():
        other.members[0].scorer.model.classifier.score.weight.mul_(-1)

    async def ask():
        batcher = make_batcher()
        conversations = arrays([5, 6, 7])
        asked = (batcher.score(each, conversations) for each in (model, other, model, other))
        return [rewards.item() for rewards in await asyncio.gather(*asked)]

    first, second, *again = asyncio.run(ask())
    assert first == pytest.approx(-second, abs=1e-6)
    assert again == pytest.approx([first, second], abs=1e-6)


def test_each_model_of_an_ensemble_scores_the_same_batches(model, exported):
    other = load(exported)
    with torch.no_grad():
        other.members[0].scorer.model.classifier.score.weight.mul_(-2)
    both = ServedModels.of([*model.members, *other.members])

    async def ask():
        batcher = make_batcher(tokens_per_forward=8)
        asked = [arrays([5, 6, 7], [5, 6, 8, 9]), arrays([*range(20, 30)])]
        scores = await asyncio.gather(*(batcher.score(both, each) for each in asked))
        alone = await asyncio.gather(*(batcher.score(model, each) for each in asked))
        return scores, alone

    for scores, alone in zip(*asyncio.run(ask()), strict=True):
        assert scores == pytest.approx(np.concatenate([alone, -2 * alone]), abs=1e-6)


def test_a_model_that_fails_is_an_error_of_each_request_and_at_last_of_the_replica(model):
    async def ask():
        batcher = make_batcher()
        broken = arrays([10**6])  # beyond the vocabulary, which ServedModel.encode refuses
        for failures in range(MOST_FAILURES):
            assert batcher.is_broken == (failures >= MOST_FAILURES)
            with pytest.raises(RefusedError, match="the model failed") as found:
                await batcher.score(model, broken)
            assert found.value.refusal.status == 500
        assert batcher.is_broken
        await batcher.score(model, arrays([5]))
        assert not batcher.is_broken

    asyncio.run(ask())


def test_a_reward_that_is_not_finite_is_an_error(exported):
    broken = load(exported)
    with torch.no_grad():
        broken.members[0].scorer.model.classifier.score.weight.fill_(float("nan"))
    with pytest.raises(RefusedError, match="not finite"):
        asyncio.run(make_batcher().score(broken, arrays([5, 6])))
    both = replace(broken, members=(*load(exported).members, *broken.members), shifts=np.zeros(2))
    with pytest.raises(RefusedError, match="not finite"):
        asyncio.run(make_batcher().score(both, arrays([5, 6])))


def test_of_requests_that_are_computed_together_only_the_one_at_fault_fails(model, plain):
    asked = [[5, 6], [10**6], [7, 8, 9], [5, 6, 7]]

    async def ask():
        batcher = make_batcher()
        jobs = (batcher.score(model, arrays(each)) for each in asked)
        found = await asyncio.gather(*jobs, return_exceptions=True)
        batcher.refuse_overload(10_000)  # nothing is counted as pending
        return found, batcher.is_broken

    found, is_broken = asyncio.run(ask())
    assert [isinstance(each, RefusedError) for each in found] == [False, True, False, False]
    for i in (0, 2, 3):
        assert found[i] == pytest.approx([reward(plain, asked[i])], abs=1e-5)
    assert not is_broken


@pytest.mark.parametrize("order", [(99, 40, 41), (40, 99, 41), (40, 41, 99)])
def test_a_conversation_without_a_finite_reward_spoils_no_other(exported, plain, order):
    model = load(exported, cache_bytes=2**20)
    with torch.no_grad():
        model.members[0].scorer.model.classifier.get_input_embeddings().weight[99] = float("inf")
    prompt = [*range(10, 30)]
    asked = [[*prompt, last] for last in order]  # the first has the prompt in its branch

    async def ask():
        batcher = make_batcher()
        jobs = (batcher.score(model, arrays(each)) for each in asked)
        found = await asyncio.gather(*jobs, return_exceptions=True)
        later = await batcher.score(model, arrays([*prompt, 42]))
        batcher.refuse_overload(10_000)  # nothing is counted as pending
        return [*found, later], batcher.metrics.num_rewards

    found, num_rewards = asyncio.run(ask())
    assert num_rewards == 4
    for each, last in zip(found, (*order, 42), strict=True):
        if last == 99:
            assert isinstance(each, RefusedError)
        else:
            assert each == pytest.approx([reward(plain, [*prompt, last])], abs=1e-5)


class Faulty:
    """A model whose passes are recorded, and that fails for, or spoils, some conversations."""

    def __init__(self, *, fails: int = -1, spoils: int = -1) -> None:
        self.members = [self]
        self.fails, self.spoils = fails, spoils
        self.passes: list[list[int]] = []

    def num_cached(self, ids: np.ndarray) -> int:
        return 0

    def score(self, prompts: list[list[np.ndarray]]) -> np.ndarray:
        lasts = [int(ids[-1]) for prompt in prompts for ids in prompt]
        self.passes.append(lasts)
        if self.fails in lasts:
            raise RuntimeError("the device broke")
        rewards = np.array([lasts], dtype=np.float32)
        rewards[:, np.array(lasts) == self.spoils] = np.nan
        return rewards


def ask_each(model: Faulty, lasts: list[int]) -> tuple[list[object], Batcher]:
    async def ask():
        batcher = make_batcher(tokens_per_forward=200)
        jobs = (batcher.score(model, arrays([1, 2, last])) for last in lasts)
        found = await asyncio.gather(*jobs, return_exceptions=True)
        batcher.refuse_overload(10_000)  # nothing is counted as pending
        return found, batcher

    return asyncio.run(ask())


def test_the_request_at_fault_is_found_by_halves():
    model = Faulty(fails=77)
    found, batcher = ask_each(model, [*range(50, 114)])
    assert [i for i, each in enumerate(found) if isinstance(each, RefusedError)] == [27]
    assert len(model.passes) == 1 + 2 * 6
    assert batcher.metrics.num_rewards == 63


def test_what_is_finite_beside_a_reward_that_is_not_is_handed_out_at_once():
    model = Faulty(spoils=77)
    found, batcher = ask_each(model, [*range(50, 114)])
    assert [i for i, each in enumerate(found) if isinstance(each, RefusedError)] == [27]
    assert [len(each) for each in model.passes] == [64, 1]
    assert batcher.metrics.num_rewards == 64


def test_a_request_that_failed_costs_no_further_pass_and_leaves_the_batcher_sound():
    model = Faulty(fails=77)

    async def ask():
        batcher = make_batcher(tokens_per_forward=3)
        request = batcher.score(model, arrays(*([1, 2, 77] for _ in range(5))))
        (found,) = await asyncio.gather(request, return_exceptions=True)
        batcher.refuse_overload(10_000)  # nothing is counted as pending
        return found, batcher.is_broken

    found, is_broken = asyncio.run(ask())
    assert isinstance(found, RefusedError)
    assert len(model.passes) == 1
    assert not is_broken


def test_a_request_that_is_answered_costs_no_look_at_the_others(model, monkeypatch):
    monkeypatch.setattr(Batcher, "_drop", None)

    async def ask():
        batcher = make_batcher()
        return await asyncio.gather(*(batcher.score(model, arrays([5, i])) for i in range(5, 9)))

    assert len(asyncio.run(ask())) == 4


def test_what_arrives_is_pending_while_it_is_tokenized():
    batcher = make_batcher(max_pending_tokens=100)
    with batcher.arriving(10_000):  # a guess does not refuse for good
        refused = pytest.raises(RefusedError, match="10,000 tokens are pending, of at most 100")
        with refused as found, batcher.arriving(1):
            raise AssertionError
        assert found.value.refusal.status == 503
        batcher.refuse_overload(100)  # the exact count of one that has arrived
    with batcher.arriving(60), batcher.arriving(40):
        pass
    batcher.refuse_overload(100)
