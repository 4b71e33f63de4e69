"""The command line of the preflight: checks, counts, memory, time."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence

from rm_ray.config.recipe import parse_options
from rm_ray.errors import INTERRUPTED, InputError
from rm_ray.logs import log_to_stdout
from rm_ray.preflight.options import PreflightCommand

logger = logging.getLogger(__name__)

PROGRAM = "python jobs/preflight.py"


def parse_command(arguments: Sequence[str]) -> PreflightCommand:
    """Read the command line over its recipe over the defaults; exit with 2 where it is wrong.

    Raises:
        InputError: the recipe is missing, or a setting in it is unknown or wrong.
    """
    return parse_options(PreflightCommand, PROGRAM, arguments)


def main_preflight(arguments: Sequence[str]) -> int:
    """Check, count and estimate; return the exit status."""
    log_to_stdout()
    try:
        command = parse_command(arguments)
        if command.json:
            (handler,) = logging.getLogger("rm_ray").handlers
            assert isinstance(handler, logging.StreamHandler)
            handler.setStream(sys.stderr)
        from rm_ray.preflight.preflight import (
            run_preflight,  # imports Ray, which --help does without
        )

        findings = run_preflight(command)
    except (InputError, OSError) as error:
        logger.error("error: %s", error)
        return 2
    except KeyboardInterrupt:
        logger.info("interrupted; nothing was claimed")
        return INTERRUPTED
    if command.json:
        sys.stdout.write(json.dumps(findings.to_json(), indent=2) + "\n")
    else:
        logger.info("%s", findings.describe())
    if findings.error:
        logger.error("error: %s", findings.error)
        return 2
    return 1 if findings.has_failed else 0
