"""Settings of the data: sources of pairs, length limits, columns, refusals."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from rm_ray.config.checks import refuse_password, require, require_date
from rm_ray.config.column_rules import (
    MAX_RESPONSES,
    ColumnRules,
    Form,
    require_rules,
    require_score_weights,
)

BUILTIN = "builtin"
"""Name of the embedded pairs, tokenizer and model, which need no download."""

_BUILTIN_SOURCE = re.compile(rf"{BUILTIN}(?::(?P<split>[^:=]*))?(?:[:=]|$)")
_HELD_OUT = {"": "test", "train": "test", "test": "test"}
"""The held-out split of a built-in one; of any other, ``truth``."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which preference pairs to train on, and which to refuse."""

    train: tuple[str, ...] = (f"{BUILTIN}:train",)
    """Sources of training pairs, each 'path-or-dataset[:split][=share]': a .jsonl, .jsonl.gz or
    .parquet file, a folder or glob of them, a saved or Hub dataset, or 'builtin'. A share with a
    decimal point is a fraction of the rows (0.5), without one a number of rows (400)."""

    eval: tuple[str, ...] | None = None
    """Sources of held-out pairs, in the format of data.train; may be empty. If all of data.train
    is built-in, by default 'builtin:test', and 'builtin:truth' for planted splits; otherwise
    empty."""

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
    """Refuse training pairs whose prompt also appears in the held-out pairs, those of
    evaluation.sets included, ignoring case and whitespace. If false, the overlap is only
    counted."""

    exclude: tuple[str, ...] = ()
    """Files of rows never to train on: JSON Lines with 'origin' and 'row' as in quarantine files,
    and perhaps 'reason'. jobs/audit.py writes such files. The rows go to the quarantine, and do not
    count for data.max_refused_fraction. If their contents change, so does the data of the run."""

    chat_template: str | None = None
    """A Jinja chat template, the path of a file with one, or the name of one of the tokenizer's
    templates; by default the tokenizer's own, or its 'default' one if it has several."""

    template_date: str | None = None
    """Date, such as 2026-11-28, for chat templates that ask for today's; by default the day the run
    began. It is fixed in the exported template, so that texts stay the same."""

    columns: tuple[str, ...] = ()
    """Which column holds which part of a row: 'prompt=question chosen=response_j', in a recipe also
    '{prompt: question, chosen: response_j}'. A part is chosen, rejected, prompt, messages, history,
    system, tools, documents, response, responses, ranks, scores, preference, tie, margin, source,
    subset or id. A column may be a path in one ('question.full_text', 'completions.0.text'). Other
    columns are found by name."""

    group_by_prompt: bool = False
    """Make one comparison group of all rows of a source that have the same prompt, with each
    distinct response once: datasets of exploded pairs then compute a response once an epoch. A
    group stays within data.max_responses and batch.tokens_per_micro_batch; its rows weigh 1
    together. Needs data.over_length drop."""

    ignore_columns: tuple[str, ...] = ()
    """Columns to ignore, even if they may hold part of the conversation."""

    form: Form = "auto"
    """The published form of all rows. 'auto' finds it for each source by the columns, and the log
    says which; 'documented' reads every row by rm_ray's own columns."""

    max_responses: int = MAX_RESPONSES
    """Most responses of a comparison group. A row with more is refused."""

    score_weights: tuple[str, ...] = ()
    """Where a response has a score for each of several attributes, the weights that make one score:
    'helpfulness=0.65 correctness=0.8 verbosity=-0.4', in a recipe also '{helpfulness: 0.65}'. Other
    attributes are left out. Columns with these names are attributes too, and win over a column of
    single numbers; rows without any keep their single numbers. Empty: the mean of all attributes,
    and in data.form helpsteer2 helpfulness alone."""

    def __post_init__(self) -> None:
        for name, sources in (("data.train", self.train), ("data.eval", self.held_out)):
            for source in sources:
                refuse_password(name, source, "the environment")
        for file in self.exclude:
            refuse_password("data.exclude", file, "the environment")
            require(bool(file.strip()), "data.exclude", file, "a list of files")
        require(len(self.train) > 0, "data.train", self.train, "a list of at least one source")
        require(self.max_length >= 2, "data.max_length", self.max_length, "at least 2")
        limit = self.max_prompt_length
        require(limit is None or limit >= 1, "data.max_prompt_length", limit, "at least 1")
        share = self.max_refused_fraction
        require(0 <= share <= 1, "data.max_refused_fraction", share, "between 0 and 1")
        require_rules("data.", self.columns, self.ignore_columns)
        groups_cut_prompts = self.group_by_prompt and self.over_length == "truncate"
        rule = "false where data.over_length is truncate, which cuts one prompt in several ways"
        require(not groups_cut_prompts, "data.group_by_prompt", self.group_by_prompt, rule)
        most = self.max_responses
        require(most >= 2, "data.max_responses", most, "at least 2")
        require_score_weights("data.score_weights", self.score_weights)
        require_date("data.template_date", self.template_date)

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

    @property
    def held_out(self) -> tuple[str, ...]:
        """Sources of held-out pairs; by default built-in ones only for built-in training pairs."""
        if self.eval is not None:
            return self.eval
        found = [_BUILTIN_SOURCE.match(source.strip()) for source in self.train]
        splits = [_HELD_OUT.get(match["split"] or "", "truth") for match in found if match]
        if len(splits) < len(found):
            return ()
        return tuple(f"{BUILTIN}:{split}" for split in dict.fromkeys(splits))
