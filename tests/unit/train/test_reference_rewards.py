"""Reference pairs are scored in few passes, with the rewards that each pair has alone."""

from itertools import pairwise

import pytest
import torch
from tables import builtin_table

from rm_ray.batches.collate import Collator
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.model.build import build_reward_model
from rm_ray.train.engine import Engine
from rm_ray.train.reference_rewards import NUM_PAIRS, choose_reference_pairs


@pytest.fixture(scope="module")
def pairs_and_tokenizer(tmp_path_factory):
    table, tokenizer = builtin_table(tmp_path_factory.mktemp("reference_pairs") / "table", 40)
    return choose_reference_pairs(table, tokenizer), tokenizer


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_passes_are_few_and_within_their_token_limit(pairs_and_tokenizer, layout):
    reference_pairs, _ = pairs_and_tokenizer
    lengths = reference_pairs.pairs.lengths
    cost = {
        "packed": lambda pairs: lengths.distinct[pairs].sum(),
        "padded": lambda pairs: 2 * len(pairs) * lengths.longest[pairs].max(),
    }[layout]
    for budget in (1, 100, 200, 10_000):
        passes = reference_pairs.passes(layout, budget)
        assert [pair for one in passes for pair in one] == list(range(NUM_PAIRS))
        assert all(cost(one) <= budget or len(one) == 1 for one in passes)
        for one, after in pairwise(passes):
            assert cost([*one, after[0]]) > budget
    assert len(reference_pairs.passes(layout, 1)) == NUM_PAIRS
    assert len(reference_pairs.passes(layout, 10_000)) == 1


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_rewards_do_not_depend_on_the_passes(pairs_and_tokenizer, layout):
    reference_pairs, tokenizer = pairs_and_tokenizer
    engine = Engine(
        build_reward_model(ModelConfig(), tokenizer, seed=0, layout=layout),
        OptimizerConfig(),
        ClusterConfig(),
        dtype=torch.float32,
        use_gpu=False,
    )
    collator = Collator(
        layout=layout, kernel="grouped", pad_token_id=tokenizer.pad_token_id, device=engine.device
    )
    forward, calls = engine.rewards, []
    engine.rewards = lambda pairs: calls.append(pairs) or forward(pairs)
    alone = reference_pairs.score(engine, collator, tokens_per_pass=1)
    together = reference_pairs.score(engine, collator, tokens_per_pass=10_000)
    assert len(calls) == NUM_PAIRS + 1
    for one, other in zip(alone["pairs"], together["pairs"], strict=True):
        assert one["chosen_ids"] == other["chosen_ids"]
        assert one["rejected_ids"] == other["rejected_ids"]
        assert one["chosen_reward"] == pytest.approx(other["chosen_reward"], abs=1e-5)
        assert one["rejected_reward"] == pytest.approx(other["rejected_reward"], abs=1e-5)
    assert len({pair["chosen_reward"] for pair in together["pairs"]}) == NUM_PAIRS
