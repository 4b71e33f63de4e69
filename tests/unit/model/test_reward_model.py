import numpy as np
import pytest
import torch
from tables import builtin_table
from tiny_models import tiny
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedTokenizerBase, modeling_utils

from rm_ray.batches.collate import unlabelled
from rm_ray.batches.packing import PackedGroups, pack_groups
from rm_ray.batches.padding import PaddedGroups, pad_groups
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


def padded(table: TokenTable, pairs: list[int], pad_token_id: int) -> PaddedGroups:
    groups = table.gather(np.array(pairs))
    return pad_groups(groups, unlabelled(groups), pad_token_id=pad_token_id)


def laid_out(
    table: TokenTable, pairs: list[int], pad_token_id: int, layout: str
) -> PaddedGroups | PackedGroups:
    if layout == "padded":
        return padded(table, pairs, pad_token_id)
    groups = table.gather(np.array(pairs))
    return pack_groups(groups, unlabelled(groups), kernel="grouped")


def test_a_reward_does_not_depend_on_the_rest_of_the_batch(table, tokenizer):
    model = build_reward_model(ModelConfig(), tokenizer, seed=0, layout="padded")
    pad = tokenizer.pad_token_id
    together = model(padded(table, list(range(7)), pad))
    alone = torch.cat([model(padded(table, [p], pad)) for p in range(7)])
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


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_model_from_files_recomputes_its_layers_from_the_first_step(
    table, tokenizer, layout, tmp_path
):
    build_reward_model(ModelConfig(), tokenizer, seed=0).classifier.save_pretrained(tmp_path)
    config = ModelConfig(name_or_path=str(tmp_path), gradient_checkpointing=True)
    model = build_reward_model(config, tokenizer, seed=0, layout=layout)
    first, *_ = model.classifier.base_model.layers
    calls: list[object] = []
    first.input_layernorm.register_forward_hook(lambda *_: calls.append(None))
    model(laid_out(table, [0, 1], tokenizer.pad_token_id, layout)).sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_activation_offloading_moves_the_input_of_each_recomputed_layer_and_changes_no_bit(
    table, tokenizer, layout, monkeypatch
):
    """Without a GPU, a copy to other memory stands in for the one to pinned memory."""
    moved: list[torch.Size] = []

    def copy_away(tensor: torch.Tensor) -> torch.Tensor:
        moved.append(tensor.shape)
        return tensor.detach().clone()

    def stand_in(**_: object) -> saved_tensors_hooks:
        return saved_tensors_hooks(copy_away, lambda kept: kept.clone())

    monkeypatch.setattr(modeling_utils, "save_on_cpu", stand_in)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gradients = []
    for offloads in (False, True):
        config = ModelConfig(gradient_checkpointing=True, activation_offloading=offloads)
        model = build_reward_model(config, tokenizer, seed=0, layout=layout).train()
        batch = laid_out(table, [0, 1, 2], tokenizer.pad_token_id, layout)
        model(batch).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    (shape,) = {*moved}
    assert shape == (*batch.input_ids.shape, model.classifier.config.hidden_size)
    layers = model.classifier.config.num_hidden_layers
    assert len(moved) == layers - (layout == "packed")  # its last layer is trimmed
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name])


def test_without_a_gpu_activation_offloading_leaves_the_inputs_where_they_are(table, tokenizer):
    config = ModelConfig(gradient_checkpointing=True, activation_offloading=True)
    model = build_reward_model(config, tokenizer, seed=0, layout="padded").train()
    model(padded(table, [0], tokenizer.pad_token_id)).sum().backward()


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
    expected = theirs.logits[:, 0][[0, 3, 1, 4, 2, 5]]  # rows hold the chosen sides first
    torch.testing.assert_close(model(batch), expected, rtol=0, atol=1e-5)
