"""Every setting of a run: typed, frozen, validated when built."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rm_ray.config.checks import refuse_password, require, require_date
from rm_ray.data.rows.columns import ColumnRules, require_rules

BUILTIN = "builtin"
"""Names the embedded pairs, tokenizer and model, which need no download."""
METRICS = ("accuracy", "loss", "chosen_rewards", "rejected_rewards", "reward_margin")
"""What is measured of pairs in training and in evaluation."""


Layout = Literal["packed", "padded"]
"""How pairs lie in a micro-batch: each distinct token once, or right-padded conversations."""


ZeroStage = Literal["auto", 0, 1, 2, 3]

_TAKEN = ("evaluations", "mlflow.db", "mlflow_artifacts", "token_cache")
"""What else lies beside the runs in run.storage_path."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What the run is called, where it keeps its files, and its seed."""

    name: str = "reward-model"
    """The run's name and its folder under storage_path. The same name resumes the same run."""

    storage_path: str = "~/rm_ray"
    """Where runs and token caches are kept: a folder, a network mount, or a URI (s3://, gs://).
    On a cluster of several machines it must be one that all of them reach."""

    seed: int = 0
    """Orders the pairs, samples the mixture and initialises the head."""

    deterministic: bool = False
    """The same command gives the same weights, bit for bit, on GPUs too: only kernels that add in a
    fixed order are used, and an operation that has none ends the run. It needs a fixed number of
    workers, and the same machines. What it costs on GPUs is not measured yet."""

    def __post_init__(self) -> None:
        legal = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name) is not None
        rule = "letters from A to Z or a to z, digits, '.', '_' and '-'"  # Ray's metrics are ASCII
        require(legal, "run.name", self.name, rule)
        is_free = self.name not in _TAKEN
        require(is_free, "run.name", self.name, f"none of {', '.join(_TAKEN)}, which are there")
        require(bool(self.storage_path), "run.storage_path", self.storage_path, "a path or a URI")
        refuse_password(
            "run.storage_path",
            self.storage_path,
            "the environment, as with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
        require(0 <= self.seed < 2**32, "run.seed", self.seed, "from 0 to 4294967295")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which preference pairs are trained on and which are refused."""

    train: tuple[str, ...] = (f"{BUILTIN}:train",)
    """Sources of training pairs, each 'path-or-dataset[:split][=share]': a .jsonl, .jsonl.gz or
    .parquet file, a folder or glob of them, a saved or Hub dataset, or 'builtin'. A share with a
    point is a fraction of the rows (0.5), one without is a number of rows (400)."""

    eval: tuple[str, ...] | None = None
    """Sources of held-out pairs, written like data.train; may be empty. None: the built-in test
    pairs where all of data.train is built-in, and no evaluation of others."""

    max_length: int = 2048
    """Most tokens that one conversation (prompt and response) may have."""

    max_prompt_length: int | None = None
    """Most tokens that the prompt may have; none: only max_length counts."""

    over_length: Literal["drop", "truncate"] = "drop"
    """A pair that is too long is dropped, or its prompt loses its oldest tokens. A response is
    never cut: a pair whose response alone is too long is dropped in both cases."""

    max_refused_fraction: float = 0.5
    """The run stops before training when a larger share of the rows is refused."""

    drop_overlap: bool = False
    """Leave out training pairs whose prompt is among the held-out ones, as refused rows. Prompts
    are compared without regard to case and whitespace. False: the held-out pairs are counted."""

    chat_template: str | None = None
    """A Jinja chat template, the path of a file with one, or the name of one of several that the
    tokenizer has; none: the tokenizer's own, or its default one."""

    template_date: str | None = None
    """The date, as in 2026-11-28, that a chat template is told which asks for today's; none: that
    of the run's beginning. It is part of the exported template, so that texts stay the same."""

    columns: tuple[str, ...] = ()
    """Which column holds which part of a row: 'prompt=question chosen=response_j', in a recipe also
    '{prompt: question, chosen: response_j}'. A part is chosen, rejected, prompt, messages, history,
    system, tools, documents, margin, source, response, responses, subset or id; a column may be a
    path in one ('question.full_text', 'completions.0.text'). Others are found by their names."""

    ignore_columns: tuple[str, ...] = ()
    """Columns that are left out on purpose, though they may hold part of the conversation."""

    def __post_init__(self) -> None:
        for name, sources in (("data.train", self.train), ("data.eval", self.held_out)):
            for source in sources:
                refuse_password(name, source, "the environment")
        require(len(self.train) > 0, "data.train", self.train, "a list of at least one source")
        require(self.max_length >= 2, "data.max_length", self.max_length, "at least 2")
        limit = self.max_prompt_length
        require(limit is None or limit >= 1, "data.max_prompt_length", limit, "at least 1")
        share = self.max_refused_fraction
        require(0 <= share <= 1, "data.max_refused_fraction", share, "between 0 and 1")
        require_rules("data.", self.columns, self.ignore_columns)
        require_date("data.template_date", self.template_date)

    @property
    def rules(self) -> ColumnRules:
        """What is said of columns."""
        return ColumnRules.of(self.columns, self.ignore_columns)

    @property
    def held_out(self) -> tuple[str, ...]:
        """Sources of held-out pairs; built-in ones are nothing to measure own pairs by."""
        if self.eval is not None:
            return self.eval
        is_builtin = all(re.match(rf"{BUILTIN}(?![^:=])", source.strip()) for source in self.train)
        return (f"{BUILTIN}:test",) if is_builtin else ()


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The backbone, its tokenizer and how it is computed."""

    name_or_path: str = BUILTIN
    """A decoder on the Hub, a folder with one, a config.json (random weights), or 'builtin'."""

    revision: str | None = None
    """Branch, tag or commit of a model on the Hub."""

    tokenizer: str | None = None
    """A tokenizer on the Hub or in a folder, or 'builtin'; none: the model's own."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the backbone. Master weights, optimizer, head and loss stay in float32."""

    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation under batch.layout 'padded'; 'packed' has its own, for which
    'sdpa' stands: variable-length flash attention on GPUs in bfloat16, elsewhere PyTorch's."""

    gradient_checkpointing: bool | Literal["auto"] = False
    """Recompute activations in the backward pass: less memory, about a third more time. 'auto' does
    so where what fits in memory is predicted to be clearly faster that way."""

    liger: Literal["auto", "on", "off"] = "auto"
    """Liger's fused Triton kernels, which need a GPU; 'auto' uses them where there is one."""

    def __post_init__(self) -> None:
        for name in ("name_or_path", "tokenizer"):
            refuse_password(f"model.{name}", getattr(self, name), "the environment, as HF_TOKEN")

    @property
    def recomputes(self) -> bool:
        """Whether activations are recomputed, once that is chosen."""
        assert self.gradient_checkpointing != "auto", "settings are chosen before they are used"
        return self.gradient_checkpointing


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How preference pairs are grouped into optimizer steps and forward passes."""

    global_batch_size: int = 64
    """Pairs per optimizer step, over all workers. It need not divide by anything."""

    tokens_per_micro_batch: int = 16_384
    """Upper bound on the tokens of one forward pass on one worker: distinct ones where packed,
    padding included where padded. A single pair that is larger gets a micro-batch of its own."""

    layout: Layout = "packed"
    """'packed': one row of distinct tokens, so that a pair's shared prefix is computed once and
    nothing is padded; 'padded': right-padded conversations. A model that cannot be packed is
    padded, and says so."""

    def __post_init__(self) -> None:
        size, tokens = self.global_batch_size, self.tokens_per_micro_batch
        require(size >= 1, "batch.global_batch_size", size, "at least 1")
        require(tokens >= 1, "batch.tokens_per_micro_batch", tokens, "at least 1")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its learning-rate schedule and how long to train."""

    learning_rate: float = 3e-6
    """Peak learning rate."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's first and second moments."""

    eps: float = 1e-8
    """Added to AdamW's denominator."""

    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; vectors (norms, biases) have none."""

    schedule: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = "linear"
    """Shape of the learning rate over all the steps of the run, counted once."""

    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0 to its peak ('constant' has none)."""

    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm; 0 leaves them as they are."""

    max_skipped_steps: int = 0
    """Steps that may be passed over because their loss or gradient is not a finite number. The run
    goes back to its newest checkpoint and leaves them out; 0: the first one ends it."""

    epochs: int = 1
    """Passes over the training pairs."""

    max_episodes: int | None = None
    """Stop after this many pairs, also in the middle of an epoch; none: after all epochs."""

    def __post_init__(self) -> None:
        rate = self.learning_rate
        require(0 < rate < math.inf, "optimizer.learning_rate", rate, "above 0 and finite")
        in_range = all(0 <= beta < 1 for beta in self.betas)
        require(in_range, "optimizer.betas", self.betas, "two numbers from 0 up to, not with, 1")
        require(0 < self.eps < math.inf, "optimizer.eps", self.eps, "above 0 and finite")
        for name in ("weight_decay", "warmup_steps", "max_grad_norm"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"optimizer.{name}", value, "at least 0 and finite")
        skipped = self.max_skipped_steps
        require(skipped >= 0, "optimizer.max_skipped_steps", skipped, "at least 0")
        require(self.epochs >= 1, "optimizer.epochs", self.epochs, "at least 1")
        limit = self.max_episodes
        require(limit is None or limit >= 1, "optimizer.max_episodes", limit, "at least 1")
        require(
            self.schedule != "constant" or self.warmup_steps == 0,
            "optimizer.warmup_steps",
            self.warmup_steps,
            "0 under schedule 'constant' (use 'constant_with_warmup')",
        )


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """How many workers train, on what, and how the model is sharded over them."""

    num_workers: int | str | None = None
    """Training processes; none: one for each GPU of the cluster, or 1 where there is none. Two
    numbers ('2-8') let it start with what there is, shrink when a machine goes, and grow when one
    comes; the pairs of each step stay the same."""

    use_gpu: bool | None = None
    """One GPU for each worker; none: where the cluster has GPUs."""

    cpus_per_worker: int = 1
    """CPU cores (and threads of arithmetic) of each worker. Ray Data needs some beside them."""

    zero_stage: ZeroStage = 0
    """DeepSpeed ZeRO: 1 shards the optimizer, 2 also the gradients, 3 also the weights; 0 is
    plain data parallelism without DeepSpeed. 'auto' takes the lowest stage that fits in
    memory and is predicted within 10% of the fastest; a resumed run keeps it."""

    offload: Literal["none", "optimizer", "all"] = "none"
    """Keep ZeRO's optimizer state ('optimizer'), and at stage 3 the weights too ('all'), in the
    host's memory."""

    zero_secondary_partition: bool | Literal["auto"] = False
    """At stage 3, also shard the computing weights over the workers of each machine alone. They are
    gathered over the network once an optimizer step, then within the machine; this takes their
    bytes once more on each machine. Without machines of equally many workers it has no effect.
    'auto' chooses it together with the stage."""

    def __post_init__(self) -> None:
        workers, cpus = self.num_workers, self.cpus_per_worker
        rule = "a number from 1 on, or two of them as in '2-8', the smaller one first"
        try:
            least, most = self.worker_bounds or (1, 1)
        except ValueError:
            least, most = 1, 0
        require(1 <= least <= most, "cluster.num_workers", workers, rule)
        require(cpus >= 1, "cluster.cpus_per_worker", cpus, "at least 1")
        least_stage = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        offloads = self.offload != "none"
        rule = "'none' where cluster.zero_stage is 'auto', which does not predict offload's time"
        require(self.zero_stage != "auto" or not offloads, "cluster.offload", self.offload, rule)
        stage = 0 if self.zero_stage == "auto" else self.zero_stage
        rule = f"'none' unless cluster.zero_stage is at least {least_stage} (it is {stage})"
        require(stage >= least_stage, "cluster.offload", self.offload, rule)
        is_sharded = self.zero_stage == 3 and self.offload != "all"
        is_open = "auto" in (self.zero_stage, self.zero_secondary_partition)
        require(
            is_sharded or is_open or not self.zero_secondary_partition,
            "cluster.zero_secondary_partition",
            self.zero_secondary_partition,
            "false unless cluster.zero_stage is 3 and the weights stay on the devices (they are "
            f"those of stage {self.zero_stage}, cluster.offload '{self.offload}')",
        )

    @property
    def stage(self) -> int:
        """The ZeRO stage, once it is chosen."""
        assert self.zero_stage != "auto", "settings are chosen before they are used"
        return self.zero_stage

    @property
    def has_secondary_partition(self) -> bool:
        """Whether weights have a second partition, once that is chosen."""
        assert self.zero_secondary_partition != "auto", "settings are chosen before they are used"
        return self.zero_secondary_partition

    @property
    def worker_bounds(self) -> tuple[int, int] | None:
        """Return the least and the most workers; none where the cluster decides."""
        if self.num_workers is None:
            return None
        least, _, most = str(self.num_workers).partition("-")
        return int(least), int(most or least)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When the held-out pairs are scored, and how many of them are shown."""

    every_steps: int = 0
    """Evaluate after every so many steps; 0: not at intervals."""

    at_end: bool = True
    """Evaluate after the last step."""

    sample_rows: int = 16
    """Held-out pairs shown with their texts and rewards after each evaluation."""

    def __post_init__(self) -> None:
        every, rows = self.every_steps, self.sample_rows
        require(every >= 0, "evaluation.every_steps", every, "at least 0")
        require(rows >= 0, "evaluation.sample_rows", rows, "at least 0")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the whole training state is saved and which checkpoints stay."""

    every_steps: int = 0
    """Save after every so many steps; 0: only after the last one."""

    keep: int = 2
    """Checkpoints that stay, at least 2: the newest ones, or the newest and the best ones by
    keep_best_by."""

    keep_best_by: str | None = None
    """Metric by which checkpoints are the best ('eval/rm/accuracy', 'eval/rm/loss', ...); none:
    the newest stay. An eval metric is measured at each checkpoint."""

    storage_patience_s: float = 600.0
    """Seconds for which a checkpoint is copied again and again while run.storage_path fails. Then
    the run ends with an error, and its last state stays on the workers' disks."""

    def __post_init__(self) -> None:
        every, keep, metric = self.every_steps, self.keep, self.keep_best_by
        patience = self.storage_patience_s
        require(patience >= 0, "checkpoint.storage_patience_s", patience, "at least 0")
        require(every >= 0, "checkpoint.every_steps", every, "at least 0")
        require(keep >= 2, "checkpoint.keep", keep, "at least 2, one of them to fall back to")
        known = [f"{part}/rm/{name}" for part in ("eval", "train") for name in METRICS]
        rule = f"one of {', '.join(known)}"
        require(metric is None or metric in known, "checkpoint.keep_best_by", metric, rule)


@dataclass(frozen=True, kw_only=True)
class MlflowConfig:
    """Where metrics go."""

    tracking_uri: str | None = None
    """An MLflow server or database; none: an SQLite file in run.storage_path."""

    experiment: str = "rm_ray"
    """The MLflow experiment that the run is part of."""

    registered_model: str | None = None
    """Name in MLflow's model registry, under which the final model gets a version that refers to
    the weights where they are; none: it is not registered."""

    def __post_init__(self) -> None:
        where = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
        refuse_password("mlflow.tracking_uri", self.tracking_uri, where)


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """Which models of the run are published on the Hugging Face Hub, while it trains."""

    repo_id: str | None = None
    """The repository, as in 'me/reward-model', created where it is missing; none: nothing is
    published. The token is HF_TOKEN of the environment, or that of 'hf auth login'."""

    private: bool = True
    """Whether a repository that is created is private."""

    every: Literal["checkpoint", "best", "final"] = "final"
    """What is published: each checkpoint; each that is better by checkpoint.keep_best_by than all
    before; or only the end. In all cases the end puts the best model on main."""

    revision_prefix: str = ""
    """What the tags ('step-00000200') begin with, where several runs share a repository."""

    patience_s: float = 600.0
    """Seconds for which the end of the run waits until all is published; then it says what is not,
    and the command that goes on."""

    def __post_init__(self) -> None:
        repo, prefix, patience = self.repo_id, self.revision_prefix, self.patience_s
        legal = repo is None or bool(
            re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", repo)
            and not re.search(r"--|\.\.|\.git$", repo)
        )
        require(legal, "hub.repo_id", repo, "'NAMESPACE/NAME', of letters, digits and '_.-'")
        legal = re.fullmatch(r"(\w[\w.-]*)?", prefix) is not None
        require(legal, "hub.revision_prefix", prefix, "letters, digits, '.', '_' and '-'")
        require(0 <= patience < math.inf, "hub.patience_s", patience, "at least 0 and finite")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, whole."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mlflow: MlflowConfig = field(default_factory=MlflowConfig)
    hub: HubConfig = field(default_factory=HubConfig)

    def __post_init__(self) -> None:
        attention = self.model.attention
        rule = "'sdpa' under batch.layout 'packed' (set batch.layout to 'padded' for another)"
        packed = self.batch.layout == "packed"
        require(not packed or attention == "sdpa", "model.attention", attention, rule)
        metric = self.checkpoint.keep_best_by or ""
        require(
            bool(self.data.held_out) or not metric.startswith("eval/"),
            "checkpoint.keep_best_by",
            metric,
            "none or a train/rm/ metric where data.eval names no held-out pairs",
        )
        bounds = self.cluster.worker_bounds
        require(
            not self.run.deterministic or bounds is None or bounds[0] == bounds[1],
            "cluster.num_workers",
            self.cluster.num_workers,
            "a fixed number under run.deterministic: how many there are decides the order of sums",
        )
        every = self.hub.every
        rule = "'checkpoint' or 'final' without checkpoint.keep_best_by"
        require(every != "best" or bool(metric), "hub.every", every, rule)

    def to_dict(self) -> dict[str, Any]:
        """Return nested dictionaries; ``recipe.parse_config`` gives the same config back."""
        return asdict(self)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as they look after a round trip through JSON: tuples are lists."""
        settings: dict[str, Any] = json.loads(json.dumps(self.to_dict()))
        return settings


CHOSEN = (
    "cluster.zero_stage",
    "cluster.zero_secondary_partition",
    "model.gradient_checkpointing",
)
"""Settings that may be 'auto', which are chosen before a run begins, and stay."""


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"section.field": value}`` for nested settings."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
