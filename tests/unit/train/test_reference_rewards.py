"""Reference groups are scored in few passes, with the rewards that each has alone."""

from itertools import pairwise

import pytest
import torch
from made_cache import group_row
from tables import map_rows

from rm_ray.batches.collate import Collator
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.model.build import build_reward_model
from rm_ray.train.engine import Engine
from rm_ray.train.reference_rewards import NUM_GROUPS, choose_reference_groups


@pytest.fixture(scope="module")
def groups_and_tokenizer(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("reference_groups"), load_tokenizer("builtin")
    rows = [
        group_row(0, i, [[5, 6, 10 + i, 50 + k, *[7] * (i % 4)] for k in range(1 + i % 4)])
        for i in range(40)
    ]
    table = map_rows(folder / "table", rows, origins=("rows",))
    return choose_reference_groups(table, tokenizer), tokenizer


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_passes_are_few_and_within_their_token_limit(groups_and_tokenizer, layout):
    reference_groups, _ = groups_and_tokenizer
    lengths = reference_groups.groups.lengths
    cost = {
        "packed": lambda groups: lengths.distinct[groups].sum(),
        "padded": lambda groups: (
            lengths.num_responses[groups].sum() * lengths.longest[groups].max()
        ),
    }[layout]
    for budget in (1, 100, 200, 10_000):
        passes = reference_groups.passes(layout, budget)
        assert [group for one in passes for group in one] == list(range(NUM_GROUPS))
        assert all(cost(one) <= budget or len(one) == 1 for one in passes)
        for one, after in pairwise(passes):
            assert cost([*one, after[0]]) > budget
    assert len(reference_groups.passes(layout, 1)) == NUM_GROUPS
    assert len(reference_groups.passes(layout, 10_000)) == 1


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_rewards_do_not_depend_on_the_passes(groups_and_tokenizer, layout):
    reference_groups, tokenizer = groups_and_tokenizer
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
    engine.rewards = lambda groups: calls.append(groups) or forward(groups)
    alone = reference_groups.score(engine, collator, tokens_per_pass=1)
    together = reference_groups.score(engine, collator, tokens_per_pass=10_000)
    assert len(calls) == NUM_GROUPS + 1
    for one, other in zip(alone["scored"], together["scored"], strict=True):
        assert one["ids"] == other["ids"]
        assert one["reward"] == pytest.approx(other["reward"], abs=1e-5)
    groups = reference_groups.groups
    expected = [ids.tolist() for i in range(len(groups)) for ids in groups.conversations(i)]
    assert [one["ids"] for one in together["scored"]] == expected
    assert len({one["reward"] for one in together["scored"]}) == len(expected)
