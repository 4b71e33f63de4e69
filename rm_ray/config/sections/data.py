"""Settings of the data: sources of pairs, length limits, columns, refusals."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from rm_ray.config.checks import refuse_password, require, require_date
from rm_ray.config.column_rules import ColumnRules, require_rules

BUILTIN = "builtin"
"""Name of the embedded pairs, tokenizer and model, which need no download."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which preference pairs to train on, and which to refuse."""

    train: tuple[str, ...] = (f"{BUILTIN}:train",)
    """Sources of training pairs, each 'path-or-dataset[:split][=share]': a .jsonl, .jsonl.gz or
    .parquet file, a folder or glob of them, a saved or Hub dataset, or 'builtin'. A share with a
    decimal point is a fraction of the rows (0.5), without one a number of rows (400)."""

    eval: tuple[str, ...] | None = None
    """Sources of held-out pairs, in the format of data.train; may be empty. By default the built-in
    test pairs if all of data.train is built-in, otherwise empty."""

    max_length: int = 2048
    """Maximum tokens per conversation (prompt and response)."""

    max_prompt_length: int | None = None
    """Maximum tokens per prompt; none: only max_length applies."""

    over_length: Literal["drop", "truncate"] = "drop"
    """What to do with a pair that is too long: drop it, or cut the oldest tokens of its prompt. A
    response is never cut: a pair whose response alone is too long is always dropped."""

    max_refused_fraction: float = 0.5
    """The run stops before training if more than this fraction of the rows is refused."""

    drop_overlap: bool = False
    """Refuse training pairs whose prompt also appears in the held-out pairs, ignoring case and
    whitespace. If false, the overlap is only counted."""

    chat_template: str | None = None
    """A Jinja chat template, the path of a file with one, or the name of one of the tokenizer's
    templates; by default the tokenizer's own, or its 'default' one if it has several."""

    template_date: str | None = None
    """Date, such as 2026-11-28, for chat templates that ask for today's; by default the day the run
    began. It is fixed in the exported template, so that texts stay the same."""

    columns: tuple[str, ...] = ()
    """Which column holds which part of a row: 'prompt=question chosen=response_j', in a recipe also
    '{prompt: question, chosen: response_j}'. A part is chosen, rejected, prompt, messages, history,
    system, tools, documents, margin, source, response, responses, subset or id. A column may be a
    path in one ('question.full_text', 'completions.0.text'). Other columns are found by name."""

    ignore_columns: tuple[str, ...] = ()
    """Columns to ignore, even if they may hold part of the conversation."""

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
        """The column rules."""
        return ColumnRules.of(self.columns, self.ignore_columns)

    @property
    def held_out(self) -> tuple[str, ...]:
        """Sources of held-out pairs; by default built-in ones only for built-in training pairs."""
        if self.eval is not None:
            return self.eval
        is_builtin = all(re.match(rf"{BUILTIN}(?![^:=])", source.strip()) for source in self.train)
        return (f"{BUILTIN}:test",) if is_builtin else ()
