"""The preflight command: checks, counts, memory and time of a run before it starts."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence

from rm_ray.commands.exits import ExitStatus, run_command
from rm_ray.config.recipe import parse_options
from rm_ray.logs import log_to_stderr
from rm_ray.preflight.options import PreflightCommand

logger = logging.getLogger(__name__)

PROGRAM = "python jobs/preflight.py"


def parse_command(arguments: Sequence[str]) -> PreflightCommand:
    """Parse the command line, which overrides the recipe; exit with 2 if an option is wrong.

    Raises:
        InputError: the recipe is missing, or one of its settings is unknown or wrong.
    """
    return parse_options(PreflightCommand, PROGRAM, arguments)


def main(arguments: Sequence[str]) -> int:
    """Check, count and estimate; return the exit status."""
    return run_command(_check, arguments, on_interrupt="interrupted; no run was started")


def _check(arguments: Sequence[str]) -> int:
    command = parse_command(arguments)
    if command.json:
        log_to_stderr()
    from rm_ray.preflight.preflight import run_preflight  # keep --help fast: this imports Ray

    findings = run_preflight(command)
    if command.json:
        sys.stdout.write(json.dumps(findings.to_json(), indent=2) + "\n")
    else:
        logger.info("%s", findings.describe())
    if findings.error:
        logger.error("error: %s", findings.error)
        return ExitStatus.WRONG_INPUT
    return ExitStatus.FAILED if findings.has_failed else ExitStatus.DONE
