"""Settings as users give them, for tests of how they are read and refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rm_ray.config.recipe import parse_config
from rm_ray.config.sections.batch import BatchConfig
from rm_ray.config.sections.checkpoint import CheckpointConfig
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.sections.data import DataConfig
from rm_ray.config.sections.evaluation import EvaluationConfig
from rm_ray.config.sections.hub import HubConfig
from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.mlflow import MlflowConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.config.sections.objective import ObjectiveConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.config.sections.run import RunConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import InputError

NOTHING_AT_ITS_DEFAULT = TrainConfig(
    run=RunConfig(
        name="other-run",
        storage_path="/mnt/runs",
        seed=7,
        deterministic=True,
        keep_pair_losses=True,
    ),
    data=DataConfig(
        train=("a.jsonl=0.5", "org/name:train=400"),
        eval=("b.parquet",),
        max_length=512,
        max_prompt_length=256,
        over_length="drop",
        max_refused_fraction=0.1,
        drop_overlap=True,
        exclude=("duplicates.jsonl",),
        chat_template="{{ messages }}",
        template_date="2026-11-28",
        columns=("prompt=question.full_text",),
        ignore_columns=("images",),
        form="nectar",
        group_by_prompt=True,
        max_responses=9,
        score_weights=("helpfulness=0.65",),
    ),
    model=ModelConfig(
        name_or_path="org/model",
        revision="main",
        head="keep",
        tokenizer="org/tokenizer",
        dtype="bfloat16",
        attention="eager",
        max_shard_size="5GB",
        gradient_checkpointing=True,
        liger="off",
    ),
    lora=LoraConfig(
        rank=8,
        alpha=16.0,
        targets=("q_proj", "v_proj"),
        rslora=True,
        train_embeddings=True,
        export="both",
    ),
    batch=BatchConfig(global_batch_size=256, tokens_per_micro_batch=1024, layout="padded"),
    objective=ObjectiveConfig(
        margin="ignore", ties="davidson", tie_parameter=0.5, noise=0.1, centering=0.01
    ),
    optimizer=OptimizerConfig(
        learning_rate=1e-5,
        betas=(0.8, 0.95),
        eps=1e-6,
        weight_decay=0.1,
        schedule="cosine",
        warmup_steps=3,
        max_grad_norm=0.0,
        max_skipped_steps=2,
        epochs=2,
        max_episodes=100,
    ),
    cluster=ClusterConfig(
        num_workers=4,
        use_gpu=True,
        cpus_per_worker=2,
        zero_stage=3,
        offload="optimizer",
        zero_secondary_partition=True,
    ),
    evaluation=EvaluationConfig(
        every_steps=5,
        at_end=False,
        sets=("chat=a.jsonl", "bench=b.parquet=400"),
        where="beside",
        cpus=2,
        sample_rows=2,
    ),
    checkpoint=CheckpointConfig(
        every_steps=5, keep=3, keep_best_by="eval/rm/loss", storage_patience_s=5.0
    ),
    mlflow=MlflowConfig(
        tracking_uri="http://127.0.0.1:5000", experiment="other", registered_model="rewards"
    ),
    hub=HubConfig(
        repo_id="me/rewards", private=False, every="best", revision_prefix="a-", patience_s=5.0
    ),
)

OTHER_OBJECTIVES = tuple(
    replace(NOTHING_AT_ITS_DEFAULT, objective=objective)
    for objective in (
        ObjectiveConfig(loss="plackett_luce", centering=0.01),
        ObjectiveConfig(margin="scale", label_smoothing=0.1),
    )
)
"""With the fields of the objective that exclude others."""

OTHER_DATA = replace(
    NOTHING_AT_ITS_DEFAULT,
    data=replace(NOTHING_AT_ITS_DEFAULT.data, group_by_prompt=False, over_length="truncate"),
)
"""With the fields of the data that exclude others."""


def write_recipe(folder: Path, text: str) -> Path:
    """Write a recipe; return its path."""
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def refusal_of(settings: dict[str, Any]) -> str:
    """Return the message by which settings are refused."""
    with pytest.raises(InputError) as caught:
        parse_config(settings, origin="recipe.yaml")
    return str(caught.value)


def refusal_of_value(section: str, field: str, value: Any) -> str:
    """Return the rule that a value out of range breaks, which names the field and the value."""
    message = refusal_of({section: {field: value}})
    before, _, given = message.rpartition(", got ")
    numbers = tuple(value) if isinstance(value, list) else value
    kept = type(getattr(getattr(TrainConfig(), section), field))
    assert given == repr(float(numbers) if kept is float else numbers)
    name, _, rule = before.partition(" must be ")
    assert name.endswith(f"{section}.{field}")
    return rule
