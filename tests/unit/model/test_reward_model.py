import numpy as np
import pytest
import torch
from tables import builtin_table
from tiny_models import tiny
from transformers import (
    PreTrainedTokenizerBase,
)

from rm_ray.batches.padding import PaddedPairs, pad_pairs
from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.cache.token_table import TokenTable
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.model.build import build_reward_model


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> TokenTable:
    return builtin_table(tmp_path_factory.mktemp("pairs") / "table", 7)[0]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("builtin")


def padded(table: TokenTable, pairs: list[int], pad_token_id: int) -> PaddedPairs:
    return pad_pairs(
        table.gather(np.array(pairs)),
        margins=table.margin[pairs],
        weights=torch.ones(len(pairs)).numpy(),
        pad_token_id=pad_token_id,
    )


def test_a_reward_does_not_depend_on_the_rest_of_the_batch(table, tokenizer):
    model = build_reward_model(ModelConfig(), tokenizer, seed=0, layout="padded")
    pad = tokenizer.pad_token_id
    together = model(padded(table, list(range(7)), pad)).reshape(2, 7)
    alone = torch.stack([model(padded(table, [p], pad)) for p in range(7)], dim=1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_rewards_do_not_depend_on_the_pad_token(table, tokenizer):
    model = build_reward_model(ModelConfig(), tokenizer, seed=0, layout="padded")
    rewards = [model(padded(table, list(range(7)), pad)) for pad in (tokenizer.pad_token_id, 77)]
    assert torch.equal(*rewards)


def test_gradient_checkpointing_changes_no_gradient(table, tokenizer):
    gradients = []
    for checkpointing in (False, True):
        config = ModelConfig(gradient_checkpointing=checkpointing)
        model = build_reward_model(config, tokenizer, seed=0, layout="padded").train()
        model(padded(table, [0, 1, 2], tokenizer.pad_token_id)).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert build_reward_model(
        config, tokenizer, seed=0, layout="padded"
    ).classifier.is_activation_checkpointing
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=0, atol=1e-6)


def test_eager_attention_gives_the_rewards_of_sdpa(table, tokenizer):
    rewards = [
        build_reward_model(ModelConfig(attention=attention), tokenizer, seed=0, layout="padded")(
            padded(table, [0, 1], tokenizer.pad_token_id)
        )
        for attention in ("sdpa", "eager")
    ]
    torch.testing.assert_close(*rewards, rtol=0, atol=1e-5)


def test_a_model_that_projects_its_last_hidden_states_is_scored_on_the_projection(
    tmp_path, table, tokenizer
):
    """Like OPT-350m, whose hidden states are wider than its head's input."""
    config = tiny(
        tmp_path, model_type="opt", word_embed_proj_dim=32, ffn_dim=64, do_layer_norm_before=False
    )
    model = build_reward_model(config, tokenizer, seed=0, layout="padded")
    assert model.classifier.score.weight.shape == (1, 32)
    batch = padded(table, [0, 1, 2], tokenizer.pad_token_id)
    theirs = model.classifier(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    torch.testing.assert_close(model(batch), theirs.logits[:, 0], rtol=0, atol=1e-5)
