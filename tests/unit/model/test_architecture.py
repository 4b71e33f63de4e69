import pytest
import torch
from tiny_models import tiny
from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
)

from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.model.architecture import (
    attention_weight,
    count_parameters,
    is_quantizable,
    load_config,
    num_weights,
    read_architecture,
)
from rm_ray.model.build import build_reward_model, check_architecture


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("builtin")


def test_a_gpt_neox_model_has_no_dropout_left(tmp_path, tokenizer):
    config = tiny(tmp_path, model_type="gpt_neox", hidden_dropout=0.3, attention_dropout=0.2,
                  classifier_dropout=0.1)  # fmt: skip
    model = build_reward_model(config, tokenizer, seed=0).train()
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert not any(rates)
    assert model.classifier.config.attention_dropout == 0
    assert model.classifier.config.hidden_dropout == 0


def test_the_router_of_a_mixture_has_no_noise(tmp_path, tokenizer):
    config = tiny(tmp_path, model_type="mixtral", router_jitter_noise=0.3, num_local_experts=2)
    assert load_config(config, tokenizer).router_jitter_noise == 0


def test_an_architecture_has_one_label_and_the_tokenizer_s_special_tokens(tmp_path, tokenizer):
    config = tiny(tmp_path, model_type="llama", bos_token_id=500)
    architecture = load_config(config, tokenizer)
    assert (architecture.num_labels, architecture.problem_type) == (1, "regression")
    assert not architecture.use_cache
    assert architecture.pad_token_id is None
    assert architecture.bos_token_id == tokenizer.bos_token_id


def test_parameters_are_counted_without_embeddings(tmp_path, tokenizer):
    classifier = check_architecture(tiny(tmp_path, model_type="llama"), tokenizer)
    layer = 4 * 64 * 64 + 3 * 64 * 64 + 2 * 64  # attention, feed-forward, norms
    assert count_parameters(classifier) == 2 * layer + 64 + 64  # last norm, head
    products = 4 * 2 * 1 * 64
    assert attention_weight(classifier) == products / (2 * count_parameters(classifier))


def test_a_quantized_model_is_refused(tmp_path):
    config = tiny(tmp_path, model_type="llama", quantization_config={"quant_method": "gptq"})
    with pytest.raises(InputError, match=r"^model\.name_or_path '.*' is quantized"):
        read_architecture(config)


def test_the_built_in_model_has_the_requested_vocabulary_size():
    assert read_architecture(ModelConfig(), vocab_size=77).vocab_size == 77


def test_linear_layers_with_rows_of_whole_blocks_can_be_quantized():
    assert is_quantizable(nn.Linear(128, 3)) and is_quantizable(nn.Linear(64, 64, bias=False))
    assert not any(map(is_quantizable, (nn.Linear(96, 64), nn.Embedding(64, 64), nn.Identity())))


def test_a_parameter_of_bytes_holds_two_weights_in_each():
    assert num_weights(nn.Parameter(torch.zeros(3, 4))) == 12
    assert num_weights(nn.Parameter(torch.zeros(6, 1, dtype=torch.uint8), False)) == 12
