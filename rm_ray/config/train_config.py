"""All settings of a run: its sections, the rules between them, and their resolved form."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, get_type_hints

from rm_ray.config.checks import require
from rm_ray.config.fields import field_types, may_change, takes_auto
from rm_ray.config.sections.batch import BatchConfig
from rm_ray.config.sections.checkpoint import CheckpointConfig
from rm_ray.config.sections.cluster import ClusterConfig, ResolvedCluster
from rm_ray.config.sections.data import DataConfig
from rm_ray.config.sections.evaluation import DEFAULT_SET, EvaluationConfig
from rm_ray.config.sections.hub import HubConfig
from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.mlflow import MlflowConfig
from rm_ray.config.sections.model import ModelConfig, ResolvedModel
from rm_ray.config.sections.objective import ObjectiveConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.config.sections.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run, as requested."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mlflow: MlflowConfig = field(default_factory=MlflowConfig)
    hub: HubConfig = field(default_factory=HubConfig)

    def __post_init__(self) -> None:
        attention = self.model.attention
        rule = "'sdpa' with batch.layout 'packed' (set batch.layout to 'padded' for another)"
        packed = self.batch.layout == "packed"
        require(not packed or attention == "sdpa", "model.attention", attention, rule)
        metric = self.checkpoint.keep_best_by or ""
        self._check_ranking_set()
        self._check_evaluator()
        bounds = self.cluster.worker_bounds
        require(
            not self.run.deterministic or bounds is None or bounds[0] == bounds[1],
            "cluster.num_workers",
            self.cluster.num_workers,
            "a fixed number with run.deterministic, because it determines the order of sums",
        )
        every = self.hub.every
        rule = "'checkpoint' or 'final' without checkpoint.keep_best_by"
        require(every != "best" or bool(metric), "hub.every", every, rule)
        self._check_lora()
        self._check_quantization()

    def _check_ranking_set(self) -> None:
        metric, named = self.checkpoint.keep_best_by, self.checkpoint.ranking_set
        sets = self.evaluation.named_sets
        others = f", or a metric of {', '.join(f'eval/{name}/' for name in sets)}" if sets else ""
        rule = f"none or a train/rm/ metric{others}, because data.eval names no held-out pairs"
        has_pairs = bool(self.data.held_out) or named != DEFAULT_SET
        require(has_pairs, "checkpoint.keep_best_by", metric, rule)
        known = [DEFAULT_SET] * bool(self.data.held_out) + [*sets]
        rule = f"a metric of a set in evaluation.sets ({', '.join(known) or 'there is none'})"
        require(named is None or named in known, "checkpoint.keep_best_by", metric, rule)

    def _check_evaluator(self) -> None:
        if not self.evaluates_beside:
            return
        evaluation, saves = self.evaluation, self.checkpoint.every_steps
        has_sets = bool(self.data.held_out or evaluation.sets)
        rule = "'within' unless data.eval or evaluation.sets name held-out pairs"
        require(has_sets, "evaluation.where", evaluation.where, rule)
        rule = (
            "above 0 with evaluation.where 'beside', which evaluates the checkpoints that training "
            "saves (or set evaluation.where to 'within')"
        )
        require(saves > 0, "checkpoint.every_steps", saves, rule)
        rule = (
            f"0 for every checkpoint, or a multiple of checkpoint.every_steps ({saves}), with "
            "evaluation.where 'beside', which evaluates nothing but checkpoints"
        )
        every = evaluation.every_steps
        require(every % saves == 0, "evaluation.every_steps", every, rule)

    def _check_lora(self) -> None:
        lora, trainable = self.lora, self.model.trainable
        rule = "'all' with lora.rank above 0, which trains adapters and the head"
        require(not lora.is_on or trainable == "all", "model.trainable", trainable, rule)
        for name, default in vars(LoraConfig()).items():  # without LoRA, no other has an effect
            value, rule = vars(lora)[name], f"{default!r} without LoRA (lora.rank 0)"
            require(lora.is_on or value == default, f"lora.{name}", value, rule)
        rule = "'merged' or 'both' with hub.repo_id or mlflow.registered_model, which get the model"
        is_used = (self.hub.repo_id or self.mlflow.registered_model) is not None
        require(lora.writes_merged or not is_used, "lora.export", lora.export, rule)

    def _check_quantization(self) -> None:
        quantization, cluster = self.model.quantization, self.cluster
        is_full = quantization == "none"
        rule = "'none' without LoRA, since 4-bit weights cannot be trained (set lora.rank)"
        require(self.lora.is_on or is_full, "model.quantization", quantization, rule)
        is_whole = cluster.zero_stage != 3 and cluster.zero_secondary_partition is not True
        rule = "'none' with ZeRO-3, which cannot shard 4-bit weights (cluster.zero_stage 0, 1 or 2)"
        require(is_whole or is_full, "model.quantization", quantization, rule)

    @property
    def evaluates_beside(self) -> bool:
        """Whether an evaluator on other resources evaluates the checkpoints."""
        return self.evaluation.where == "beside"

    @property
    def evaluator_cpus(self) -> int:
        """CPUs that an evaluator needs beside the workers' own."""
        return self.evaluation.cpus if self.evaluates_beside else 0

    @property
    def trains_all(self) -> bool:
        """Whether every weight is trained; otherwise checkpoints need the base model."""
        return self.model.trainable == "all" and not self.lora.is_on

    def to_dict(self) -> dict[str, Any]:
        """Return nested dictionaries, from which ``recipe.parse_config`` builds an equal config."""
        return asdict(self)

    def to_json(self) -> dict[str, Any]:
        """Return the settings after a round trip through JSON, which turns tuples into lists."""
        settings: dict[str, Any] = json.loads(json.dumps(self.to_dict()))
        return settings

    def settle(
        self,
        *,
        zero_stage: int = 0,
        zero_secondary_partition: bool = False,
        gradient_checkpointing: bool = False,
    ) -> ResolvedConfig:
        """Return the settings with the given values in place of 'auto'.

        The secondary partition only exists at stage 3. ``cluster.num_workers`` must be a number.
        """
        cluster, model = self.cluster, self.model
        assert isinstance(cluster.num_workers, int), "workers are counted before 'auto' is settled"
        if cluster.zero_stage != "auto":
            zero_stage = cluster.zero_stage
        if cluster.zero_secondary_partition != "auto":
            zero_secondary_partition = cluster.zero_secondary_partition
        if model.gradient_checkpointing != "auto":
            gradient_checkpointing = model.gradient_checkpointing
        chosen: dict[str, Any] = {
            "num_workers": cluster.num_workers,
            "use_gpu": bool(cluster.use_gpu),
            "zero_stage": zero_stage,
            "zero_secondary_partition": zero_secondary_partition and zero_stage == 3,
        }
        return ResolvedConfig(
            **{
                **vars(self),
                "cluster": ResolvedCluster(**{**vars(cluster), **chosen}),
                "model": ResolvedModel(
                    **{**vars(model), "gradient_checkpointing": gradient_checkpointing}
                ),
            }
        )


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(TrainConfig):
    """Settings of a training run with its workers counted and no 'auto' left."""

    cluster: ResolvedCluster = field(default_factory=ResolvedCluster)
    model: ResolvedModel = field(default_factory=ResolvedModel)


def _find_auto_names() -> tuple[str, ...]:
    """Return the fields that accept 'auto' and that ResolvedConfig narrows."""
    requested, resolved = dict(field_types(TrainConfig)), get_type_hints(ResolvedConfig)
    names = (
        f"{section}.{name}"
        for section in ResolvedConfig.__annotations__
        for name in resolved[section].__annotations__
    )
    return tuple(name for name in names if takes_auto(requested[name]))


MAY_CHANGE_NAMES = tuple(name for name, hint in field_types(TrainConfig) if may_change(hint))
"""Fields that a resumed run may change: how and where it trains, not what."""

AUTO_NAMES = _find_auto_names()
"""Fields that may be 'auto'; the chosen value is fixed before a run begins."""
