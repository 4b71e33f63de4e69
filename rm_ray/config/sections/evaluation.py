"""Settings of the evaluations on held-out pairs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from rm_ray.config.checks import refuse_password, require
from rm_ray.config.fields import MAY_CHANGE

DEFAULT_SET = "rm"
"""The set of data.eval in names of metrics, as in 'eval/rm/accuracy'."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When to score the held-out pairs, on which further sets, and how many pairs to show."""

    every_steps: int = 0
    """Evaluate every N steps; 0 disables it. With evaluation.where 'beside', 0 evaluates every
    checkpoint of checkpoint.every_steps, and N is a multiple of it."""

    at_end: bool = True
    """Evaluate after the last step."""

    sets: Annotated[tuple[str, ...], MAY_CHANGE] = ()
    """Named sets to evaluate on besides data.eval, each 'NAME=SOURCE' with a source in the format
    of data.train: 'chat=chat.jsonl bench=bench.parquet', in a recipe also '{chat: chat.jsonl,
    bench: [a.parquet, b.parquet=400]}'. A name may have several sources; its metrics are
    'eval/NAME/accuracy' and so on. Rows are not grouped by prompt. A resumed run may add sets or
    leave some out, but not change the rows of one; with data.drop_overlap they must stay."""

    where: Annotated[Literal["within", "beside"], MAY_CHANGE] = "within"
    """'within': the workers evaluate between two steps. 'beside': an evaluator on other resources
    evaluates the checkpoints while training goes on; the results arrive late under their own steps,
    and the end of the run waits for them. It takes a GPU if cluster.num_workers leaves one free,
    otherwise evaluation.cpus."""

    cpus: Annotated[int, MAY_CHANGE] = 1
    """CPU cores, and compute threads, of the evaluator that evaluation.where 'beside' adds."""

    sample_rows: int = 16
    """Number of held-out pairs of each set to show after each evaluation, with texts and
    rewards."""

    def __post_init__(self) -> None:
        every, rows = self.every_steps, self.sample_rows
        require(every >= 0, "evaluation.every_steps", every, "at least 0")
        require(rows >= 0, "evaluation.sample_rows", rows, "at least 0")
        require(self.cpus >= 1, "evaluation.cpus", self.cpus, "at least 1")
        for entry in self.sets:
            refuse_password("evaluation.sets", entry, "the environment")
            name, _, source = entry.partition("=")
            is_legal = re.fullmatch(r"[a-z0-9_-]+", name) is not None and bool(source.strip())
            rule = (
                "a list of NAME=SOURCE, whose names have letters from a to z, digits, '_' and '-'"
            )
            require(is_legal, "evaluation.sets", entry, rule)
            rule = f"other names than '{DEFAULT_SET}', which is data.eval"
            require(name != DEFAULT_SET, "evaluation.sets", entry, rule)
        gauges = {name.replace("-", "_") for name in self.named_sets}
        rule = "names that differ in more than '_' and '-', which are the same in Prometheus"
        require(len(gauges) == len(self.named_sets), "evaluation.sets", self.sets, rule)

    @property
    def named_sets(self) -> dict[str, tuple[str, ...]]:
        """The sources of each named set, in the order of their first mention."""
        found: dict[str, tuple[str, ...]] = {}
        for entry in self.sets:
            name, _, source = entry.partition("=")
            found[name] = (*found.get(name, ()), source)
        return found
