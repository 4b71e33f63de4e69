"""The command that shows what a run would train on."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from rm_ray.commands.exits import ExitStatus, run_command
from rm_ray.config.recipe import parse_options
from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import InputError
from rm_ray.logs import log_to_stderr

logger = logging.getLogger(__name__)

PROGRAM = "python jobs/inspect.py"


@dataclass(frozen=True, kw_only=True)
class InspectCommand:
    """Show what a run would train on: how sources are read, and rows as messages, text and tokens.

    Takes the settings of ``jobs/train.py`` and needs no cluster. Exits with 0 even if some rows
    are refused; with 2 if all are, an option is wrong, a column of the conversation is unused, or
    no row has a column named in data.columns.
    """

    recipe: Path | None = None
    """YAML file with the settings of the run, by section."""

    data: tuple[str, ...] = ()
    """Sources to inspect, in the format of data.train; by default data.train."""

    rows: int = 3
    """Number of rows to show from the start of each source; all rows are counted."""

    json: bool = False
    """Print one JSON object, and everything else to standard error."""

    config: Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff] = field(
        default_factory=TrainConfig
    )

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise InputError(f"--rows must be at least 0, got {self.rows}")


def main(arguments: Sequence[str]) -> int:
    """Show the rows; return the exit status."""
    return run_command(_inspect, arguments)


def _inspect(arguments: Sequence[str]) -> int:
    command = parse_options(InspectCommand, PROGRAM, arguments)
    if command.json:
        log_to_stderr()
    _show(command)
    return ExitStatus.DONE


def _show(command: InspectCommand) -> None:
    from rm_ray.data.cache.exclusions import Exclusions
    from rm_ray.data.cache.grouping import GroupLimits
    from rm_ray.data.rows.column_readings import (
        refuse_missing_columns,
    )
    from rm_ray.data.sources.discovery import discover
    from rm_ray.data.sources.source_spec import SourceSpec
    from rm_ray.data.tokens.group_tokenizer import GroupTokenizer
    from rm_ray.preflight.inspection import inspect_source, refuse_empty, refuse_lost
    from rm_ray.preflight.planning import read_tokenizer

    config = command.config
    tokenizer = GroupTokenizer(read_tokenizer(config), config.data)
    limits = GroupLimits(
        max_responses=config.data.max_responses,
        max_tokens=config.batch.tokens_per_micro_batch,
        layout=config.batch.layout,
        need=config.objective.need,
    )
    inspect = partial(inspect_source, data=config.data, tokenizer=tokenizer, seed=config.run.seed)
    sources = command.data or config.data.train
    origins = [each.origin for text in sources for each in discover(SourceSpec.parse(text))]
    excluded = Exclusions.read(config.data.exclude, origins)
    trained = [
        inspect(text, limits=limits, num_examples=command.rows, exclusions=excluded)
        for text in sources
    ]
    if command.json:
        document = {
            "sources": [finding.to_json() for finding in trained],
            "rows": [row for finding in trained for row in finding.examples],
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        for finding in trained:
            logger.info("\n%s", finding.describe())
    refuse_lost(trained)
    columns, findings = config.data.rules.columns, trained
    if columns and not command.data:  # only the held-out pairs may have a column
        named = (text for each in config.evaluation.named_sets.values() for text in each)
        findings = trained + [
            inspect(text, limits=replace(limits, need="labels"), num_examples=0)
            for text in (*config.data.held_out, *named)
        ]
    refuse_missing_columns(columns, [r for finding in findings for r in finding.readings])
    refuse_empty(trained)
