"""How rows are read: their published form, their columns, and what makes up a score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from rm_ray.config.checks import require

ALIASES = {
    "chosen": ("chosen", "chosen_response", "preferred_output"),
    "rejected": ("rejected", "rejected_response", "non_preferred_output"),
    "prompt": ("prompt", "question", "query", "instruction", "input"),
    "messages": ("messages", "conversations", "conversation"),
    "response": ("response",),
    "responses": ("responses",),
    "history": ("history",),
    "system": ("system", "system_prompt", "system_message"),
    "tools": ("tools", "functions"),
    "documents": ("documents",),
    "ranks": ("ranks",),
    "scores": ("scores", "score"),
    "preference": ("preference",),
    "tie": ("tie",),
    "margin": ("margin",),
    "source": ("source",),
    "subset": ("subset",),
    "id": ("id",),
}
"""The parts of a row, and the columns that may hold them; the first non-empty one is read."""


Form = Literal[
    "auto", "documented", "ultrafeedback", "helpsteer2", "helpsteer2_preference", "helpsteer3",
    "nectar", "pku_saferlhf", "arena_55k", "arena_100k", "webgpt", "shp",
    "summarize_from_feedback", "stack_exchange", "skywork", "tulu3", "reward_bench_2",
]  # fmt: skip
"""A published form of rows; ``documented`` is only rm_ray's own, ``auto`` finds out."""

MAX_RESPONSES = 32
"""Default of the most responses of one row."""


@dataclass(frozen=True, kw_only=True)
class ColumnRules:
    """How the rows of a source are read."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Part -> column, or path in a column (``question.full_text``, ``completions.0.text``)."""
    ignore: tuple[str, ...] = ()
    """Columns to ignore."""
    form: Form = "auto"
    max_responses: int = MAX_RESPONSES
    """Rows with more responses are refused."""
    score_weights: tuple[tuple[str, float], ...] = ()
    """Attributes and their weights in a score; without any, a score is the attributes' mean."""

    @cached_property
    def _hash(self) -> int:
        columns = frozenset(self.columns.items())
        return hash((columns, self.ignore, self.form, self.max_responses, self.score_weights))

    def __hash__(self) -> int:
        """Hash the compared fields."""
        return self._hash

    @property
    def are_set(self) -> bool:
        """Whether any rule differs from its default."""
        return self != NO_RULES

    @property
    def key(self) -> list[Any]:
        """The rules as JSON, for the key of a cache; empty if none is set."""
        if not self.are_set:
            return []
        columns = sorted(map(list, self.columns.items()))
        weights = sorted(map(list, self.score_weights))
        return [columns, sorted(self.ignore), self.form, self.max_responses, weights]

    @classmethod
    def of(
        cls,
        columns: Sequence[str],
        ignore: Sequence[str],
        *,
        form: Form = "auto",
        max_responses: int = MAX_RESPONSES,
        score_weights: Sequence[str] = (),
    ) -> ColumnRules:
        """Parse settings; ``columns`` are ``part=column``, ``score_weights`` attribute=weight."""
        named = (text.partition("=") for text in columns)
        weights = (text.rpartition("=") for text in score_weights)
        return cls(
            columns={part: column for part, _, column in named},
            ignore=tuple(ignore),
            form=form,
            max_responses=max_responses,
            score_weights=tuple((name, float(weight)) for name, _, weight in weights),
        )


NO_RULES = ColumnRules()


def require_rules(prefix: str, columns: Sequence[str], ignore: Sequence[str]) -> None:
    """Reject unknown parts, parts mapped twice, and columns both mapped and ignored.

    Raises:
        InputError: a rule is broken; the message has the setting and the known parts.
    """
    rule = f"a list of PART=COLUMN, each PART at most once and one of {', '.join(ALIASES)}"
    named = [text.partition("=") for text in columns]
    are_parts = all(part in ALIASES and equals and column for part, equals, column in named)
    holds = are_parts and len({part for part, _, _ in named}) == len(named)
    require(holds, f"{prefix}columns", tuple(columns), rule)
    both = sorted({column.split(".")[0] for _, _, column in named} & set(ignore))
    rule = f"disjoint from {prefix}columns"
    require(not both, f"{prefix}ignore_columns", both, rule)


def require_score_weights(name: str, weights: Sequence[str]) -> None:
    """Reject weights that are no finite numbers, attributes given twice, and all weights zero.

    Raises:
        InputError: a rule is broken; the message has the setting and the rule.
    """
    named = [text.rpartition("=") for text in weights]
    numbers = [_number(weight) for _, _, weight in named]
    are_weights = all(attribute for attribute, _, _ in named) and None not in numbers
    holds = are_weights and len({attribute for attribute, _, _ in named}) == len(named)
    rule = "a list of ATTRIBUTE=WEIGHT, each ATTRIBUTE at most once and each WEIGHT a finite number"
    require(holds, name, tuple(weights), rule)
    require(not numbers or any(numbers), name, tuple(weights), "weights of which one is not 0")


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
