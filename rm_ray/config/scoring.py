"""What scoring is told: which model, and how it is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rm_ray.config.checks import refuse_password, require
from rm_ray.data.rows.columns import ColumnRules, require_rules

Dtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ScoringModel:
    """Which model scores, and how."""

    model: str
    """A folder that a run exported, or a reward model on the Hugging Face Hub."""

    revision: str | None = None
    """Branch, tag or commit of a model on the Hub."""

    dtype: Dtype = "auto"
    """Precision of the arithmetic; 'auto' is that of the weights."""

    max_length: int | None = None
    """Most tokens of a conversation; longer ones are refused. None: as many as the model has
    positions for."""

    tokens_per_forward: int = 16_384
    """Upper bound on the tokens of one forward pass. A larger conversation stands alone."""

    def __post_init__(self) -> None:
        require(bool(self.model), "model", self.model, "a folder or a name on the Hub")
        refuse_password("model", self.model, "the environment, as HF_TOKEN")
        longest = self.max_length
        require(longest is None or longest > 0, "max_length", longest, "positive")
        most = self.tokens_per_forward
        require(most > 0, "tokens_per_forward", most, "positive")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What is scored."""

    data: tuple[str, ...]
    """Sources, each 'path-or-dataset[:split][=share]': .jsonl, .jsonl.gz or .parquet files, a
    folder or glob of them, a saved or Hub dataset, or 'builtin'."""

    columns: tuple[str, ...] = ()
    """Which column holds which part of a row ('prompt=question response=answer'), as data.columns
    of a run; others are found by their names."""

    ignore_columns: tuple[str, ...] = ()
    """Columns that are left out on purpose, though they may hold part of the conversation."""

    seed: int = 0
    """Draws the rows of a source with a share; run.seed gives those that a run drew."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")
        require(len(self.data) > 0, "data", self.data, "a list of at least one source")
        for source in self.data:
            refuse_password("data", source, "the environment")
        require_rules("", self.columns, self.ignore_columns)

    @property
    def rules(self) -> ColumnRules:
        """What is said of columns."""
        return ColumnRules.of(self.columns, self.ignore_columns)


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many workers score, and on what."""

    num_workers: int | None = None
    """Scoring processes; none: one for each GPU of the cluster, or 1 where there is none."""

    use_gpu: bool | None = None
    """One GPU for each worker; none: where the cluster has GPUs."""

    cpus_per_worker: int = 1
    """CPU cores (and threads of arithmetic) of each worker."""
