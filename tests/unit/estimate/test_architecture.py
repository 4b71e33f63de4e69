"""Sizes of models, read without their weights."""

from shapes import LLAMA_8B, classifier_of, meta_classifier

from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.estimate.architecture import Architecture, Tuning
from rm_ray.model.tuning.trainable import outline_trained

OFF = LoraConfig()
EMBEDDING = 128_256 * 4_096
LAYER = 2 * 4_096**2 + 2 * 4_096 * 1_024 + 3 * 4_096 * 14_336 + 2 * 4_096
N = EMBEDDING + 32 * LAYER + 4_096 + 4_096
"""Parameters of an 8B Llama with a scalar head: 7.5 billion, as it has no output embedding."""


def test_the_sizes_of_an_8b_llama(tmp_path):
    llama_8b = Architecture.of(classifier_of(tmp_path / "config.json", LLAMA_8B))
    assert llama_8b.num_parameters == N == 7_504_928_768
    assert llama_8b.layer_parameters == LAYER == 218_112_000
    assert llama_8b.largest_in_layer == 4_096 * 14_336
    assert (llama_8b.query_width, llama_8b.key_width, llama_8b.num_heads) == (4_096, 1_024, 32)
    assert llama_8b.is_trimmable


def test_a_larger_vocabulary_enlarges_the_embedding(tmp_path):
    classifier = classifier_of(tmp_path / "config.json", LLAMA_8B | {"num_hidden_layers": 1})
    larger = Architecture.of(classifier, vocab_size=128_257)
    assert larger.parameters[0] == EMBEDDING + 4_096
    assert Architecture.of(classifier, vocab_size=100).parameters[0] == EMBEDDING


def test_matrix_products_exclude_embedding_head_and_last_norm():
    small = Architecture.of(meta_classifier(num_hidden_layers=3))
    assert small.num_in_linears == 3 * LAYER
    assert small.num_parameters == 3 * LAYER + EMBEDDING + 2 * 4_096


def test_only_packed_pairs_trim_the_last_layer():
    llama = Architecture.of(meta_classifier(num_hidden_layers=1))
    assert llama.trims("packed")
    assert not llama.trims("padded")


def test_gpt_neox_has_a_parallel_residual_and_llama_does_not():
    neox = Architecture.of(
        meta_classifier(model_type="gpt_neox", num_hidden_layers=1, hidden_size=64,
                        intermediate_size=256, num_attention_heads=4, num_key_value_heads=None)
    )  # fmt: skip
    assert neox.parallel_residual
    assert (neox.query_width, neox.key_width) == (64, 64)
    assert not Architecture.of(meta_classifier(num_hidden_layers=1)).parallel_residual


def test_a_model_that_is_trained_whole_has_no_tuning():
    assert Architecture.of(meta_classifier(num_hidden_layers=1)).tuning is None


def test_adapters_are_part_of_their_layers_and_the_rest_is_frozen():
    lora = LoraConfig(rank=8, targets=("q_proj", "down_proj"))
    classifier = meta_classifier(num_hidden_layers=3)
    llama = Architecture.of(outline_trained(classifier, ModelConfig(), lora), vocab_size=128_257)
    query, down = (8 * 4_096, 4_096 * 8), (8 * 14_336, 4_096 * 8)
    assert llama.tuning == Tuning(
        trained=(*(query + down) * 3, 4_096), num_layers=3, in_matrices=3 * (LAYER - 2 * 4_096),
        adapted=("q_proj", "down_proj"), rank=8,
    )  # fmt: skip
    assert llama.layer_parameters == LAYER + sum(query + down)
    assert llama.num_trained == 3 * sum(query + down) + 4_096
    assert llama.num_frozen == 3 * LAYER + EMBEDDING + 2 * 4_096
    whole = LoraConfig(rank=8, train_embeddings=True)
    embedding = Tuning.of(outline_trained(classifier, ModelConfig(), whole))
    assert embedding is not None and embedding.trains_embeddings
    assert embedding.trained[0] == EMBEDDING


def test_gradients_reach_the_last_trained_layers_only():
    classifier = meta_classifier(num_hidden_layers=3)

    def of(trainable: str) -> Architecture:
        model = ModelConfig(trainable=trainable)
        return Architecture.of(outline_trained(classifier, model, OFF))

    last, head = of("last:2"), of("head")
    assert (last.num_reached, head.num_reached, of("all").num_reached) == (2, 0, 3)
    assert last.num_trained == 2 * LAYER + 2 * 4_096
    assert head.num_trained == 4_096
    trained = last.of_trained()
    assert (trained.num_parameters, trained.num_layers) == (last.num_trained, 2)
    assert trained.layer_parameters == LAYER
