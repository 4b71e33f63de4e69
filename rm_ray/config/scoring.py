"""Settings of scoring: the model, the rows and the workers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from rm_ray.config.checks import refuse_password, require
from rm_ray.config.column_rules import ColumnRules, require_rules
from rm_ray.config.sections.cluster import ClusterConfig

Dtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ScoringModel:
    """The reward model, and how to run it."""

    model: str
    """Folder that a run exported, or a reward model on the Hugging Face Hub."""

    revision: str | None = None
    """Branch, tag or commit of a model on the Hub."""

    dtype: Dtype = "auto"
    """Precision of the computation; 'auto' uses the dtype of the weights."""

    max_length: int | None = None
    """Maximum tokens per conversation; longer ones are refused. By default the number of positions
    that the model supports."""

    tokens_per_forward: int = 16_384
    """Maximum tokens per forward pass. A longer conversation gets a pass of its own."""

    def __post_init__(self) -> None:
        require(bool(self.model), "model", self.model, "a folder or a name on the Hub")
        refuse_password("model", self.model, "the environment, as HF_TOKEN")
        longest = self.max_length
        require(longest is None or longest > 0, "max_length", longest, "positive")
        most = self.tokens_per_forward
        require(most > 0, "tokens_per_forward", most, "positive")


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

    seed: int = 0
    """Seed that samples the rows of a source with a share. A run's run.seed samples the same rows
    as the run."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")
        require(len(self.data) > 0, "data", self.data, "a list of at least one source")
        for source in self.data:
            refuse_password("data", source, "the environment")
        require_rules("", self.columns, self.ignore_columns)

    @property
    def rules(self) -> ColumnRules:
        """The column rules."""
        return ColumnRules.of(self.columns, self.ignore_columns)


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
