import json
from dataclasses import replace
from typing import Any

import pytest
from given_settings import NOTHING_AT_ITS_DEFAULT, OTHER_DATA, OTHER_OBJECTIVES, refusal_of

from rm_ray.config.fields import flatten
from rm_ray.config.recipe import parse_config
from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.config.train_config import AUTO_NAMES, MAY_CHANGE_NAMES, ResolvedConfig, TrainConfig
from rm_ray.errors import InputError

OPEN = {"zero_stage": "auto", "zero_secondary_partition": "auto"}


def asked(*, checkpointing: Any = "auto", **cluster: Any) -> TrainConfig:
    """Settings for 4 workers with 'auto' wherever allowed, unless overridden."""
    sections = {
        "model": {"gradient_checkpointing": checkpointing},
        "cluster": {"num_workers": 4, "use_gpu": False, **OPEN, **cluster},
    }
    return parse_config(sections)


def settled_values(config: ResolvedConfig) -> tuple[Any, ...]:
    values = flatten(config.to_json())
    return tuple(values[name] for name in AUTO_NAMES)


@pytest.mark.parametrize(
    "config", [TrainConfig(), NOTHING_AT_ITS_DEFAULT, OTHER_DATA, *OTHER_OBJECTIVES]
)
def test_a_config_survives_a_dictionary_and_json(config: TrainConfig):
    assert parse_config(config.to_dict()) == config
    assert parse_config(json.loads(json.dumps(config.to_dict()))) == config
    assert parse_config(config.to_json()) == config


def test_a_config_as_json_survives_a_round_trip():
    settings = NOTHING_AT_ITS_DEFAULT.to_json()

    assert json.loads(json.dumps(settings)) == settings
    assert settings["data"]["train"] == ["a.jsonl=0.5", "org/name:train=400"]


def test_the_round_trip_covers_every_field():
    default = flatten(TrainConfig().to_dict())
    # The head alone excludes adapters.
    head = TrainConfig(
        model=ModelConfig(trainable="head", gradient_checkpointing=True, activation_offloading=True)
    )
    in_4_bits = TrainConfig(model=ModelConfig(quantization="nf4"), lora=LoraConfig(rank=1))
    configs = (NOTHING_AT_ITS_DEFAULT, OTHER_DATA, head, in_4_bits, *OTHER_OBJECTIVES)
    others = [flatten(config.to_dict()) for config in configs]

    same = {name for name in default if all(default[name] == other[name] for other in others)}

    assert same == set()


def test_omitted_fields_keep_their_defaults():
    config = parse_config({"optimizer": {"epochs": 3}})

    assert config.optimizer == OptimizerConfig(epochs=3)
    assert config == TrainConfig(optimizer=OptimizerConfig(epochs=3))


def test_another_attention_is_refused_if_pairs_are_packed():
    with pytest.raises(InputError, match=r"model.attention must be 'sdpa' with .*, got 'eager'"):
        parse_config({"model": {"attention": "eager"}})
    settings = {"model": {"attention": "eager"}, "batch": {"layout": "padded"}}
    assert parse_config(settings).model.attention == "eager"


def test_the_best_by_evaluation_is_refused_if_own_pairs_have_none():
    settings = {"data": {"train": ["mine.jsonl"]}, "checkpoint": {"keep_best_by": "eval/rm/loss"}}

    with pytest.raises(InputError, match=r"keep_best_by.*data\.eval names no held-out pairs"):
        parse_config(settings)


def test_determinism_needs_a_fixed_number_of_workers():
    settings = {"run": {"deterministic": True}, "cluster": {"num_workers": "2-8"}}
    message = refusal_of(settings)

    assert "cluster.num_workers" in message
    assert "run.deterministic" in message
    for number in (8, "8", "8-8", None):
        parse_config({"run": {"deterministic": True}, "cluster": {"num_workers": number}})


def test_publishing_the_best_needs_a_metric():
    assert "hub.every must be 'checkpoint' or 'final'" in refusal_of({"hub": {"every": "best"}})


def test_the_best_by_evaluation_is_refused_without_held_out_pairs():
    best = {"data": {"eval": []}, "checkpoint": {"keep_best_by": "eval/rm/loss"}}

    assert "checkpoint.keep_best_by" in refusal_of(best)


def test_a_resumed_run_may_change_how_it_trains_but_not_what():
    assert MAY_CHANGE_NAMES == (
        "run.storage_path",
        "run.deterministic",
        "run.keep_pair_losses",
        "model.gradient_checkpointing",
        "model.activation_offloading",
        "model.max_shard_size",
        "lora.export",
        "optimizer.max_skipped_steps",
        "cluster.num_workers",
        "cluster.use_gpu",
        "cluster.cpus_per_worker",
        "cluster.zero_stage",
        "cluster.offload",
        "cluster.zero_secondary_partition",
        "evaluation.sets",
        "evaluation.where",
        "evaluation.cpus",
        "checkpoint.every_steps",
        "checkpoint.keep",
        "checkpoint.storage_patience_s",
        "mlflow.registered_model",
        "hub.repo_id",
        "hub.private",
        "hub.every",
        "hub.revision_prefix",
        "hub.patience_s",
    )


def test_fields_that_accept_auto_may_also_change():
    assert AUTO_NAMES == (
        "cluster.zero_stage",
        "cluster.zero_secondary_partition",
        "model.gradient_checkpointing",
    )
    assert set(AUTO_NAMES) < set(MAY_CHANGE_NAMES)


def test_auto_fields_take_the_chosen_values():
    config = asked().settle(
        zero_stage=3, zero_secondary_partition=True, gradient_checkpointing=True
    )

    assert settled_values(config) == (3, True, True)
    assert settled_values(asked().settle()) == (0, False, False)


def test_fields_that_are_set_keep_their_values():
    config = asked(zero_stage=2, zero_secondary_partition=False, checkpointing=False)
    settled = config.settle(
        zero_stage=3, zero_secondary_partition=True, gradient_checkpointing=True
    )

    assert settled_values(settled) == (2, False, False)


def test_only_stage_3_has_a_secondary_partition():
    assert settled_values(asked(zero_secondary_partition=True).settle(zero_stage=1))[1] is False
    assert settled_values(asked(zero_secondary_partition=True).settle(zero_stage=3))[1] is True


def test_resolved_settings_are_written_like_requested_ones():
    cluster = replace(NOTHING_AT_ITS_DEFAULT.cluster, num_workers=4, use_gpu=True)
    config = replace(NOTHING_AT_ITS_DEFAULT, cluster=cluster)

    assert json.dumps(config.settle().to_json()) == json.dumps(config.to_json())


def test_workers_are_counted_before_auto_is_resolved():
    with pytest.raises(AssertionError, match="workers are counted"):
        asked(num_workers="2-8").settle()


def test_the_best_is_ranked_by_a_set_that_is_evaluated_on():
    sets = {"evaluation": {"sets": ["chat=a.jsonl"]}}
    own = {"data": {"train": ["mine.jsonl"]}}
    for data in ({}, own):
        best = {"checkpoint": {"keep_best_by": "eval/chat/accuracy"}}
        assert parse_config({**data, **sets, **best}).checkpoint.ranking_set == "chat"
    with pytest.raises(InputError, match=r"keep_best_by must be a metric of .*\(rm, chat\), got"):
        parse_config({**sets, "checkpoint": {"keep_best_by": "eval/code/loss"}})
    with pytest.raises(InputError, match=r"or a metric of eval/chat/, because data\.eval names no"):
        parse_config({**own, **sets, "checkpoint": {"keep_best_by": "eval/rm/loss"}})


HELD_OUT = {"data": {"eval": ["b.jsonl"]}}


@pytest.mark.parametrize(
    ("sections", "rule"),
    [
        (
            {"data": {"train": ["a.jsonl"]}},
            "evaluation.where must be 'within' unless data.eval or evaluation.sets name",
        ),
        (HELD_OUT, "checkpoint.every_steps must be above 0 with evaluation.where 'beside'"),
        (
            HELD_OUT | {"checkpoint": {"every_steps": 4}, "evaluation": {"every_steps": 6}},
            "evaluation.every_steps must be 0 for every checkpoint, or a multiple of "
            "checkpoint.every_steps (4)",
        ),
    ],
)
def test_an_evaluator_needs_held_out_pairs_and_a_checkpoint_for_every_evaluation(
    sections: dict[str, Any], rule: str
):
    evaluation = {"where": "beside", **sections.get("evaluation", {})}
    assert rule in refusal_of({**sections, "evaluation": evaluation})


@pytest.mark.parametrize("every", [0, 4, 8])
def test_an_evaluator_takes_the_checkpoints_or_some_of_them(every: int):
    evaluation = {"where": "beside", "every_steps": every, "cpus": 3}
    config = parse_config({**HELD_OUT, "checkpoint": {"every_steps": 4}, "evaluation": evaluation})
    assert (config.evaluates_beside, config.evaluator_cpus) == (True, 3)
    assert (TrainConfig().evaluates_beside, TrainConfig().evaluator_cpus) == (False, 0)
