"""Settings of scoring: the model, the rows and the workers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rm_ray.config.checks import refuse_password, require
from rm_ray.config.column_rules import (
    MAX_RESPONSES,
    ColumnRules,
    Form,
    require_rules,
    require_score_weights,
)
from rm_ray.config.sections.cluster import ClusterConfig

Dtype = Literal["auto", "float32", "bfloat16"]

RewardScale = Literal["raw", "standardized"]


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """How to run reward models."""

    revision: str | None = None
    """Branch, tag or commit of a model on the Hub; not with several models."""

    dtype: Dtype = "auto"
    """Precision of the computation; 'auto' uses the dtype of the weights."""

    max_length: int | None = None
    """Maximum tokens per conversation; longer ones are refused. By default the number of positions
    that the model supports."""

    tokens_per_forward: int | None = None
    """Maximum tokens per forward pass. A longer conversation gets a pass of its own. By default
    16,384 on a GPU, and 4,096 on a CPU, where longer passes are not faster."""

    rewards: RewardScale = "raw"
    """'raw': as the model gives them; 'standardized': minus their mean, divided by their standard
    deviation on held-out responses, from the model's reward_statistics.json."""

    def __post_init__(self) -> None:
        longest = self.max_length
        require(longest is None or longest > 0, "max_length", longest, "positive")
        most = self.tokens_per_forward
        require(most is None or most > 0, "tokens_per_forward", most, "positive")

    def tokens_per_pass(self, *, use_gpu: bool) -> int:
        """Return the maximum tokens per forward pass on a GPU or a CPU."""
        return self.tokens_per_forward or (16_384 if use_gpu else 4_096)


@dataclass(frozen=True, kw_only=True)
class ScoringModel(ScoringOptions):
    """The reward model, and how to run it."""

    model: str
    """Folder that a run exported, or a reward model on the Hugging Face Hub."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.model), "model", self.model, "a folder or a name on the Hub")
        refuse_password("model", self.model, "the environment, as HF_TOKEN")


@dataclass(frozen=True, kw_only=True)
class ScoringModels(ScoringOptions):
    """One reward model, or several that judge together, and how to run them."""

    model: tuple[str, ...]
    """Folder that a run exported, or a reward model on the Hugging Face Hub. With several, such as
    the seeds of a sweep, rewards are their means, and gain the spread over the models."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = self.model
        require(len(names) > 0, "model", names, "at least one folder or name on the Hub")
        is_once = len(set(map(_identify, names))) == len(names)
        require(is_once, "model", names, "a list without repetitions")
        is_clear = self.revision is None or len(names) == 1
        require(is_clear, "revision", self.revision, "none with several models")
        self.each()  # checks the names

    def each(self) -> list[ScoringModel]:
        """Return the models one by one."""
        return [ScoringModel(**{**vars(self), "model": name}) for name in self.model]


def _identify(model: str) -> str:
    """Return a folder's path, however it was written; a name on the Hub as it is."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows to score."""

    data: tuple[str, ...]
    """Sources, each 'path-or-dataset[:split][=share]': .jsonl, .jsonl.gz or .parquet files, a
    folder or glob of them, a saved or Hub dataset, or 'builtin'."""

    columns: tuple[str, ...] = ()
    """Which column holds which part of a row ('prompt=question response=answer'), as in a run's
    data.columns; other columns are found by name."""

    ignore_columns: tuple[str, ...] = ()
    """Columns to ignore, even if they may hold part of the conversation."""

    form: Form = "auto"
    """The published form of all rows. 'auto' finds it for each source by the columns, and the log
    says which; 'documented' reads every row by rm_ray's own columns."""

    max_responses: int = MAX_RESPONSES
    """Most responses of a comparison group. A row with more is scored, but not compared."""

    score_weights: tuple[str, ...] = ()
    """Where a response has a score for each of several attributes, the weights that make one score:
    'helpfulness=0.65 correctness=0.8 verbosity=-0.4', as in a run's data.score_weights. Other
    attributes are left out, and single numbers stay as they are. Empty: the mean of all attributes.
    Columns with these names are attributes too."""

    seed: int = 0
    """Seed that samples the rows of a source with a share. A run's run.seed samples the same rows
    as the run."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")
        require(len(self.data) > 0, "data", self.data, "a list of at least one source")
        for source in self.data:
            refuse_password("data", source, "the environment")
        require_rules("", self.columns, self.ignore_columns)
        require(self.max_responses >= 2, "max_responses", self.max_responses, "at least 2")
        require_score_weights("score_weights", self.score_weights)

    @property
    def rules(self) -> ColumnRules:
        """How rows are read."""
        return ColumnRules.of(
            self.columns,
            self.ignore_columns,
            form=self.form,
            max_responses=self.max_responses,
            score_weights=self.score_weights,
        )


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Number and resources of the scoring workers."""

    num_workers: int | None = None
    """Number of scoring processes; by default one per GPU of the cluster, or 1 without GPUs."""

    use_gpu: bool | None = None
    """Give each worker a GPU; by default if the cluster has GPUs."""

    cpus_per_worker: int = 1
    """CPU cores, and compute threads, per worker."""

    @property
    def cluster(self) -> ClusterConfig:
        """The same settings as a run's cluster section."""
        return ClusterConfig(**asdict(self))
