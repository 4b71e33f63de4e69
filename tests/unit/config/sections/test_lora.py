"""The rules of the section ``lora``."""

import math

import pytest

from rm_ray.config.recipe import parse_config
from rm_ray.config.sections.lora import LoraConfig
from rm_ray.errors import InputError


def test_lora_is_off_unless_a_rank_is_set():
    assert not LoraConfig().is_on
    assert LoraConfig(rank=1).is_on


def test_the_scaling_is_alpha_over_the_rank_or_over_its_root():
    assert LoraConfig(rank=16, alpha=32.0).scaling == 2.0
    assert LoraConfig(rank=16, alpha=32.0, rslora=True).scaling == 8.0


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("rank", -1, "lora.rank must be at least 0"),
        ("alpha", 0.0, "lora.alpha must be above 0 and finite"),
        ("alpha", math.inf, "lora.alpha must be above 0 and finite"),
        ("targets", (), "lora.targets must be 'all-linear' alone, or names"),
        ("targets", ("all-linear", "q_proj"), "lora.targets must be 'all-linear' alone, or names"),
        ("targets", (" ",), "lora.targets must be 'all-linear' alone, or names"),
    ],
)
def test_a_broken_rule_is_named(field, value, rule):
    with pytest.raises(InputError, match=rule):
        LoraConfig(**{field: value})


def test_a_recipe_may_name_one_target_without_a_list():
    config = parse_config({"lora": {"rank": 8, "targets": "q_proj"}})
    assert config.lora == LoraConfig(rank=8, targets=("q_proj",))
    assert not config.trains_all


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (
            {"lora": {"rank": 8}, "model": {"trainable": "head"}},
            "model.trainable must be 'all' with lora.rank above 0",
        ),
        ({"lora": {"export": "both"}}, r"lora.export must be 'merged' without LoRA"),
        (
            {"lora": {"alpha": 7.0}},
            r"lora.alpha must be 32.0 without LoRA \(lora.rank 0\), got 7.0",
        ),
        ({"lora": {"targets": "q_proj"}}, r"lora.targets must be \('all-linear',\) without LoRA"),
        ({"lora": {"rslora": True}}, "lora.rslora must be False without LoRA"),
        ({"lora": {"train_embeddings": True}}, "lora.train_embeddings must be False without LoRA"),
        (
            {"lora": {"rank": 8, "export": "adapter"}, "hub": {"repo_id": "me/model"}},
            "lora.export must be 'merged' or 'both' with hub.repo_id",
        ),
        (
            {"lora": {"rank": 8, "export": "adapter"}, "mlflow": {"registered_model": "m"}},
            "lora.export must be 'merged' or 'both' with hub.repo_id",
        ),
        (
            {"model": {"quantization": "nf4"}},
            r"model.quantization must be 'none' without LoRA, .* \(set lora.rank\), got",
        ),
        (
            {"model": {"quantization": "nf4", "trainable": "head"}},
            "model.quantization must be 'none' without LoRA",
        ),
        (
            {
                "model": {"quantization": "nf4"},
                "lora": {"rank": 8},
                "cluster": {"zero_stage": 3},
            },
            "model.quantization must be 'none' with ZeRO-3, .* 0, 1 or 2",
        ),
        (
            {
                "model": {"quantization": "nf4"},
                "lora": {"rank": 8},
                "cluster": {"zero_stage": "auto", "zero_secondary_partition": True},
            },
            "model.quantization must be 'none' with ZeRO-3",
        ),
    ],
)
def test_sections_that_contradict_lora_are_refused(settings, rule):
    with pytest.raises(InputError, match=rule):
        parse_config(settings)
