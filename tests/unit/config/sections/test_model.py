import pytest

from rm_ray.config.sections.data import BUILTIN
from rm_ray.config.sections.model import ModelConfig, ResolvedModel
from rm_ray.errors import InputError
from rm_ray.model.lean.sharded_writer import MAX_SHARD_SIZE


def test_the_model_is_the_embedded_one_unless_another_is_named():
    assert ModelConfig().name_or_path == BUILTIN
    assert ModelConfig().tokenizer is None


def test_a_resolved_model_is_still_a_model_section():
    settled = ResolvedModel(name_or_path="org/model", gradient_checkpointing=True)

    assert isinstance(settled, ModelConfig)
    assert settled.gradient_checkpointing is True
    assert ResolvedModel().gradient_checkpointing is ModelConfig().gradient_checkpointing is False


def test_activations_are_only_offloaded_where_they_are_recomputed():
    assert ModelConfig(gradient_checkpointing=True, activation_offloading=True)
    for recomputes in (False, "auto"):
        with pytest.raises(InputError, match=r"activation_offloading must be false unless model\."):
            ModelConfig(gradient_checkpointing=recomputes, activation_offloading=True)


@pytest.mark.parametrize(
    ("trainable", "number"),
    [("all", None), ("head", 0), ("last:1", 1), ("last:12", 12), ("last:04", 4)],
)
def test_the_number_of_trained_layers_follows_from_trainable(trainable, number):
    assert ModelConfig(trainable=trainable).num_trained_layers == number


@pytest.mark.parametrize(
    "trainable",
    ["", "last", "last:0", "last:-1", "last:four", "none", "last:" + "9" * 5_000, "last:00"],
)
def test_an_unknown_trainable_is_refused_with_an_example(trainable):
    with pytest.raises(InputError, match=r"model.trainable must be 'all', 'head', or 'last:N'"):
        ModelConfig(trainable=trainable)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("50GB", 50 * 10**9), ("5GB", 5 * 10**9), ("1.5 gb", 1_500_000_000), ("2GiB", 2 * 2**30),
        ("1MB", 10**6), ("1000KB", 10**6), ("4000000", 4_000_000), (4_000_000, 4_000_000),
    ],
)  # fmt: skip
def test_the_size_of_a_weight_file_is_a_number_of_bytes_or_has_a_unit(size, expected):
    assert ModelConfig(max_shard_size=size).shard_bytes == expected


@pytest.mark.parametrize(
    "size", ["", "5", 5, -5_000_000, "-5GB", "GB", "five GB", "5GB each", "999KB", "5gbit", "5GG"]
)
def test_a_size_that_is_none_or_lacks_its_unit_is_refused(size):
    with pytest.raises(InputError, match=r"model.max_shard_size must be at least 1MB: a number of"):
        ModelConfig(max_shard_size=size)


def test_the_default_size_of_a_weight_file_is_that_of_transformers():
    assert ModelConfig().shard_bytes == MAX_SHARD_SIZE
