import asyncio
import json
import math
import shutil
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rm_ray.config.scoring import ScoringModels
from rm_ray.config.serving import Server
from rm_ray.data.sources.synthetic import generate_pairs
from rm_ray.errors import InputError
from rm_ray.evaluation.reward_statistics import STATISTICS, RewardStatistics
from rm_ray.scoring.conversations import parse_conversations
from rm_ray.scoring.ensemble import JointRow, join_row
from rm_ray.serving.question import Question, Rewards
from rm_ray.serving.refusal import Refusal
from rm_ray.serving.replica import Replica, container_limit
from rm_ray.serving.served_model import NUM_ANCHORS
from rm_ray.serving.web import Web

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]

SIDES = ("chosen", "rejected")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("gib", [1e5, 1e6])
def test_a_cache_larger_than_the_memory_is_refused(exported, threads, gib):
    model, server = ScoringModels(model=(str(exported),)), Server(prefix_cache_gib=gib)
    with pytest.raises(InputError, match=r"--prefix_cache_gib 1.* is more than the memory of"):
        Replica(model, server, name="r1", use_gpu=False)


def test_a_container_has_the_memory_that_it_is_allowed(tmp_path):
    limit = tmp_path / "memory.max"
    assert container_limit(limit) == math.inf
    for text, expected in (("max\n", math.inf), ("1073741824\n", 2**30)):
        limit.write_text(text)
        assert container_limit(limit) == expected


def test_it_answers_and_reports(exported, threads):
    async def ask():
        model = ScoringModels(model=(str(exported),))
        replica = Replica(model, Server(), name="r1", use_gpu=False)
        asked = Question(conversations=(MESSAGES, [MESSAGES[0], {**MESSAGES[1], "content": "No"}]))
        found = await replica.score(asked)
        again = await replica.score(Question(conversations=(MESSAGES,)))
        refused = await replica.score(Question(conversations=("",)))
        replica.check_health()
        return found, again, refused, await replica.report()

    found, again, refused, report = asyncio.run(ask())
    assert isinstance(found, Rewards)
    assert found.model == exported.name
    assert found.rewards[0] == pytest.approx(again.rewards[0], abs=1e-6)
    assert isinstance(refused, Refusal)
    assert refused.status == 422
    assert (report.model, report.num_rewards) == (exported.name, 3)
    assert report.num_tokens == sum(found.num_tokens) + again.num_tokens[0]
    assert report.num_computed < report.num_tokens


def test_a_replica_without_a_model_does_not_start(tmp_path, threads):
    with pytest.raises(InputError, match="--model"):
        Replica(ScoringModels(model=(str(tmp_path),)), Server(), name="r1", use_gpu=False)


def test_several_models_answer_their_mean_and_its_spread(exported, tmp_path, threads):
    """Both are what jobs/evaluate.py writes for the anchors, from rewards of plain transformers."""
    folders = [exported, changed_copy(exported, tmp_path / "other")]
    pairs = [*generate_pairs("test", NUM_ANCHORS)]
    rewards = [plain_rewards(folder, pairs) for folder in folders]
    rows = [
        JointRow(
            origin="here",
            parsed=parse_conversations({side: pair[side] for side in SIDES}),
            each=tuple(
                {f"{side}_reward": values[i] for side, values in found.items()} for found in rewards
            ),
        )
        for i, pair in enumerate(pairs)
    ]
    shifts = np.mean([row.rewards.mean(axis=1) for row in rows], axis=0)

    async def ask():
        models = ScoringModels(model=tuple(map(str, folders)))
        replica = Replica(models, Server(), name="r1", use_gpu=False)

        async def report():
            return [await replica.report()]

        transport = httpx2.ASGITransport(app=Web(replica.score, report, Server(), None).app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
            return [await client.post(path, json=body) for path, body in bodies(folders[0], pairs)]

    ours, openrlhf, slime = asyncio.run(ask())
    row = join_row(rows[0], shifts)
    means = pytest.approx([row[f"{side}_reward"] for side in SIDES], abs=1e-5)
    spreads = pytest.approx([row[f"{side}_reward_spread"] for side in SIDES], abs=1e-5)
    assert min(row[f"{side}_reward_spread"] for side in SIDES) > 1e-3
    assert {each.headers["X-Reward-Model"] for each in (ours, openrlhf, slime)} == {
        f"{exported.name} + other"
    }
    assert (ours.json()["rewards"], ours.json()["spread"]) == (means, spreads)
    assert openrlhf.json()["rewards"] == means
    assert openrlhf.json()["extra_logs"]["reward_spread"] == spreads
    assert slime.json() == pytest.approx(row["chosen_reward"], abs=1e-5)


def test_standardized_rewards_reach_every_protocol_and_win_probabilities_stay_raw(
    exported, tmp_path, threads
):
    """The numbers are those of plain transformers, standardized here."""
    folder = shutil.copytree(exported, tmp_path / "standardized")
    pairs = [*generate_pairs("test", 4)]
    found = plain_rewards(folder, pairs)
    rewards = np.array([found[side] for side in SIDES])
    statistics = RewardStatistics.of(rewards)
    assert statistics is not None
    (folder / STATISTICS).write_text(json.dumps(statistics.to_json()))
    expected = (rewards - rewards.mean()) / rewards.std()
    asked = bodies(folder, pairs)
    prompt, answers = asked[0][1]["messages"], asked[0][1]["responses"]
    shifted = {"messages": prompt, "responses": answers[:1], "reference": answers[1]}
    text = asked[1][1]["query"][0]

    async def ask():
        models = ScoringModels(model=(str(folder),), rewards="standardized")
        replica = Replica(models, Server(), name="r1", use_gpu=False)

        async def report():
            return [await replica.report()]

        transport = httpx2.ASGITransport(app=Web(replica.score, report, Server(), None).app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
            others = [
                ("/v1/rewards", shifted),
                ("/classify", {"input": text}),
                ("/classify", {"text": text}),
                ("/pooling", {"input": text}),
                ("/v1/embeddings", {"input": text}),
                ("/v1/score/evaluation", {"messages": [text]}),
            ]
            answers = [await client.post(path, json=body) for path, body in asked + others]
            return [await client.get("/health"), *answers]

    health, ours, openrlhf, slime, over, *rest = asyncio.run(ask())
    assert health.json()["rewards"] == "standardized"
    assert {one.headers["X-Reward-Scale"] for one in (ours, openrlhf, slime, over, *rest)} == {
        "standardized"
    }
    both = pytest.approx(expected[:, 0].tolist(), abs=1e-4)
    assert ours.json()["rewards"] == both
    assert openrlhf.json()["rewards"] == both
    win = 1 / (1 + np.exp(rewards[1, 0] - rewards[0, 0]))
    assert ours.json()["win_probability"] == pytest.approx(win, abs=1e-5)
    first = pytest.approx(expected[0, 0], abs=1e-4)
    vllm, sglang, pooling, embeddings, llama_factory = (one.json() for one in rest)
    assert slime.json() == first
    assert vllm["data"][0]["probs"] == pooling["data"][0]["data"] == [first]
    assert sglang["embedding"] == embeddings["data"][0]["embedding"] == [first]
    assert llama_factory["scores"] == [first]
    difference = pytest.approx(expected[0, 0] - expected[1, 0], abs=1e-4)
    assert over.json()["rewards"] == [difference]
    assert over.json()["reference_reward"] == pytest.approx(expected[1, 0], abs=1e-4)
    assert len(over.json()["num_tokens"]) == 1


def bodies(folder: Path, pairs: list[Any]) -> list[tuple[str, Any]]:
    """What three clients send for the first pair."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    both = [pairs[0][side] for side in SIDES]
    texts = [tokenizer.apply_chat_template(each, tokenize=False) for each in both]
    prompt, answers = both[0][:-1], [each[-1]["content"] for each in both]
    return [
        ("/v1/rewards", {"messages": prompt, "responses": answers}),
        ("/get_reward", {"query": texts}),
        ("/reward", {"prompt": prompt, "response": answers[0]}),
    ]


def changed_copy(exported: Path, folder: Path) -> Path:
    """Another model of the same tokenizer."""
    shutil.copytree(exported, folder)
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    generator = torch.Generator().manual_seed(1)
    head = weights["score.weight"]
    weights["score.weight"] = head + torch.randn(head.shape, generator=generator) * 0.3
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@torch.no_grad()
def plain_rewards(folder: Path, pairs: list[Any]) -> dict[str, list[float]]:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = {}
    for side in SIDES:
        conversations = [pair[side] for pair in pairs]
        batch = tokenizer.apply_chat_template(
            conversations, padding=True, return_tensors="pt", return_dict=True
        )
        found[side] = model(**batch).logits[:, 0].tolist()
    return found


def test_requests_beyond_the_bound_are_refused_before_they_are_tokenized(exported, threads):
    async def ask():
        server = Server(max_pending_tokens=4000)
        replica = Replica(ScoringModels(model=(str(exported),)), server, name="r1", use_gpu=False)
        content = "Hello. " * 200
        long = Question(conversations=([MESSAGES[0], {**MESSAGES[1], "content": content}],))
        waiting = [asyncio.ensure_future(replica.score(long)) for _ in range(20)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        refused = [each.result() for each in waiting if each.done()]
        return refused, await asyncio.gather(*waiting)

    refused, answers = asyncio.run(ask())
    assert len(refused) == 20 - 4000 // 351  # each has about 351 tokens by its characters
    assert {each.status for each in refused} == {503}
    assert sum(isinstance(each, Rewards) for each in answers) >= 1
