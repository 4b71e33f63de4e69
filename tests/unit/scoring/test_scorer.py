import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from rm_ray.config.scoring import ScoringModel
from rm_ray.errors import InputError
from rm_ray.evaluation.reward_statistics import STATISTICS, RewardStatistics
from rm_ray.scoring.scorer import Scorer, load_architecture, model_fingerprint, model_name

ids = st.lists(st.integers(5, 400), min_size=1, max_size=40)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scorer(exported: Path) -> Scorer:
    return Scorer.load(str(exported), device=CPU, tokens_per_forward=100)


@pytest.fixture(scope="module")
def client(exported: Path):
    return AutoModelForSequenceClassification.from_pretrained(exported).eval()


@torch.no_grad()
def reward(client, conversation: list[int]) -> float:
    return client(input_ids=torch.tensor([conversation])).logits.item()


@settings(max_examples=25)
@given(prompts=st.lists(st.lists(ids, min_size=1, max_size=5), min_size=1, max_size=4))
def test_rewards_equal_those_of_transformers(scorer, client, prompts):
    found = scorer.score(prompts)
    assert [len(rewards) for rewards in found] == [len(conversations) for conversations in prompts]
    for rewards, conversations in zip(found, prompts, strict=True):
        expected = [reward(client, conversation) for conversation in conversations]
        np.testing.assert_allclose(rewards, expected, rtol=0, atol=1e-5)


@settings(max_examples=10)
@given(prefix=ids, tails=st.lists(ids, min_size=2, max_size=5))
def test_a_shared_prompt_changes_nothing(scorer, client, prefix, tails):
    (found,) = scorer.score([[prefix + tail for tail in tails]])
    expected = [reward(client, prefix + tail) for tail in tails]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_no_conversations_have_no_rewards(scorer):
    assert scorer.score([]) == []


@pytest.mark.parametrize("tokens_per_forward", [1, 60, 10_000])
def test_the_size_of_a_forward_pass_changes_nothing(exported, scorer, tokens_per_forward):
    rng = np.random.default_rng(0)
    prompts = [
        [rng.integers(5, 400, rng.integers(1, 30)).tolist() for _ in range(3)] for _ in range(9)
    ]
    other = Scorer.load(str(exported), device=CPU, tokens_per_forward=tokens_per_forward)
    for ours, theirs in zip(scorer.score(prompts), other.score(prompts), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_prompt_of_many_conversations_is_divided_to_fit_a_forward_pass(
    exported, scorer, layout, monkeypatch
):
    rng = np.random.default_rng(1)
    shared = rng.integers(5, 400, 20).tolist()
    prompts = [
        [shared + rng.integers(5, 400, rng.integers(1, 30)).tolist() for _ in range(count)]
        for count in (1, 2, 23, 5)
    ]
    other = Scorer.load(str(exported), device=CPU, tokens_per_forward=150)
    if layout == "padded":
        other = replace(other, collator=replace(other.collator, layout="padded"))
        other.model.classifier.set_attn_implementation("sdpa")
    passes, forward = [], other.model.forward
    monkeypatch.setattr(
        other.model, "forward", lambda groups: passes.append(groups) or forward(groups)
    )
    for ours, theirs in zip(scorer.score(prompts), other.score(prompts), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    sizes = [groups.input_ids.numel() for groups in passes]
    assert max(sizes) <= 150
    assert sum(len(groups.last_positions) for groups in passes) == 1 + 2 + 23 + 5


def test_two_conversations_beyond_a_forward_pass_share_one(exported, monkeypatch):
    other = Scorer.load(str(exported), device=CPU, tokens_per_forward=10)
    sizes, forward = [], other.model.forward
    monkeypatch.setattr(
        other.model,
        "forward",
        lambda groups: sizes.append(len(groups.last_positions)) or forward(groups),
    )
    other.score([[[6] * 30 + [i] for i in range(7, 12)], [[8] * 30, [9] * 30]])
    assert sorted(sizes) == [1, 2, 2, 2]


def test_a_model_that_cannot_be_packed_is_padded(exported, tmp_path, client):
    folder = tmp_path / "other"
    shutil.copytree(exported, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"layer_types": ["chunked_attention"] * 2})
    )
    try:
        padded = Scorer.load(str(folder), device=CPU, tokens_per_forward=100)
    except InputError:
        pytest.skip("this transformers knows no such layers in a Llama")
    assert padded.collator.layout == "padded"
    prompts = [[[7, 8, 9], [7, 8]], [[6]]]
    for rewards, conversations in zip(padded.score(prompts), prompts, strict=True):
        np.testing.assert_allclose(rewards, [reward(client, c) for c in conversations], atol=1e-5)


def test_a_model_without_a_trained_head_is_refused(exported, tmp_path):
    folder = tmp_path / "headless"
    shutil.copytree(exported, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"has no weights for score\.weight, so it would score at"):
        Scorer.load(str(folder), device=CPU, tokens_per_forward=1)


@pytest.mark.parametrize("size", [0, 1_000])
def test_a_model_with_a_truncated_file_is_refused(size, exported, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(exported, folder)
    os.truncate(folder / "model.safetensors", size)
    with pytest.raises(InputError, match="cannot be loaded"):
        Scorer.load(str(folder), device=CPU, tokens_per_forward=1)


def test_a_model_that_is_not_a_reward_model_is_refused(exported, tmp_path):
    with pytest.raises(InputError, match="cannot be loaded"):
        Scorer.load(str(tmp_path / "missing"), device=CPU, tokens_per_forward=1)
    folder = tmp_path / "labels"
    shutil.copytree(exported, folder)
    config = json.loads((folder / "config.json").read_text())
    labels = {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    (folder / "config.json").write_text(json.dumps(config | labels))
    with pytest.raises(InputError, match="has 2 labels; a reward model has one"):
        Scorer.load(str(folder), device=CPU, tokens_per_forward=1)


def test_statistics_beside_a_model_change_no_raw_rewards(exported: Path, tmp_path: Path):
    folder = shutil.copytree(exported, tmp_path / "model")
    model = ScoringModel(model=str(folder))
    architecture = load_architecture(model_name(str(folder)))
    before = model_fingerprint(model, architecture)
    (folder / STATISTICS).write_text("{}")
    assert model_fingerprint(model, architecture) == before
    found = {
        model_fingerprint(
            model, architecture, RewardStatistics(mean=mean, std=1.0, num_responses=3)
        )
        for mean in (0.0, 1.0)
    }
    assert len({before, *found}) == 3
