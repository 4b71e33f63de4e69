"""The command line that shows what would be trained on."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from rm_ray.config.recipe import parse_options
from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import INTERRUPTED, InputError
from rm_ray.logs import log_to_stdout

logger = logging.getLogger(__name__)

PROGRAM = "python jobs/inspect.py"


@dataclass(frozen=True, kw_only=True)
class InspectCommand:
    """Show what would be trained on: how sources are read, and rows as messages, text and tokens.

    Takes the settings of ``jobs/train.py``, and needs no cluster. The exit status is 0, also where
    rows are refused, or 2 where something given is wrong, a column of the conversation is not used,
    or no row has a column that data.columns names.
    """

    recipe: Path | None = None
    """YAML file with the settings of the run, by section."""

    data: tuple[str, ...] = ()
    """Sources to look at, written like data.train; none: those of data.train."""

    rows: int = 3
    """Rows of each source to show, from the first on; all of them are counted."""

    json: bool = False
    """Print one JSON object instead, and everything else to the standard error."""

    config: Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff] = field(
        default_factory=TrainConfig
    )

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise InputError(f"--rows must be at least 0, got {self.rows}")


def main_inspect(arguments: Sequence[str]) -> int:
    """Show the rows; return the exit status."""
    log_to_stdout()
    try:
        command = parse_options(InspectCommand, PROGRAM, arguments)
        if command.json:
            (handler,) = logging.getLogger("rm_ray").handlers
            assert isinstance(handler, logging.StreamHandler)
            handler.setStream(sys.stderr)
        _show(command)
    except (InputError, OSError) as error:
        logger.error("error: %s", error)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _show(command: InspectCommand) -> None:
    from rm_ray.data.rows.reading import refuse_missing_columns  # slow imports; --help needs none
    from rm_ray.data.tokens.tokenization import PairTokenizer
    from rm_ray.preflight.inspection import inspect_source, refuse_lost
    from rm_ray.preflight.resolve import read_tokenizer

    config = command.config
    tokenizer = PairTokenizer(read_tokenizer(config), config.data)
    findings = [
        inspect_source(text, config.data, tokenizer, seed=config.run.seed, num_shown=command.rows)
        for text in command.data or config.data.train
    ]
    if command.json:
        document = {
            "sources": [finding.to_json() for finding in findings],
            "rows": [row for finding in findings for row in finding.shown],
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        for finding in findings:
            logger.info("\n%s", finding.describe())
    refuse_lost(findings)
    columns = config.data.rules.columns
    if columns and not command.data:  # a column may be one of the held-out pairs alone
        findings += [
            inspect_source(text, config.data, tokenizer, seed=config.run.seed, num_shown=0)
            for text in config.data.held_out
        ]
    refuse_missing_columns(columns, [r for finding in findings for r in finding.readings])
