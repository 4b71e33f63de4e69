"""Column settings: which column holds which part of a row, and which columns to ignore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

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
    "margin": ("margin",),
    "source": ("source",),
    "subset": ("subset",),
    "id": ("id",),
}
"""The parts of a row, and the columns that may hold them; the first non-empty one is read."""


@dataclass(frozen=True, kw_only=True)
class ColumnRules:
    """The mapped columns and the ignored ones."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Part -> column, or path in a column (``question.full_text``, ``completions.0.text``)."""
    ignore: tuple[str, ...] = ()
    """Columns to ignore."""

    @cached_property
    def _hash(self) -> int:
        return hash((frozenset(self.columns.items()), self.ignore))

    def __hash__(self) -> int:
        """Hash the compared fields."""
        return self._hash

    @property
    def are_set(self) -> bool:
        """Whether there are any rules."""
        return bool(self.columns or self.ignore)

    @classmethod
    def of(cls, columns: Sequence[str], ignore: Sequence[str]) -> ColumnRules:
        """Parse settings; each entry of ``columns`` is ``part=column``."""
        named = (text.partition("=") for text in columns)
        return cls(columns={part: column for part, _, column in named}, ignore=tuple(ignore))


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
