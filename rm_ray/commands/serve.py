"""The command that serves a reward model over HTTP."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from rm_ray.commands.exits import ExitStatus, run_command
from rm_ray.config.scoring import ScoringModels
from rm_ray.config.serving import Server

if TYPE_CHECKING:  # keep --help fast: this imports Ray and torch
    from rm_ray.serving.server import Totals

logger = logging.getLogger(__name__)

FLAT = tyro.conf.arg(name="")
"""Marks a group of options whose names get no prefix."""

EXAMPLE = """{"prompt": "What colour is snow?", "responses": ["White.", "Snow is a colour."]}"""


@dataclass(frozen=True, kw_only=True)
class ServeCommand:
    """Serve a reward model, or several that judge together, to RLHF trainers over HTTP.

    It answers OpenRLHF, verl, slime, and clients of vLLM, SGLang and LLaMA-Factory in their own
    protocols, and its own POST /v1/rewards. ``--model`` is a folder that a run exported, a run's
    folder, whose best model is served, or a reward model on the Hugging Face Hub. Ctrl-C ends it
    once all accepted requests are answered: ``python jobs/serve.py --model ~/rm_ray/RUN --follow``.
    Several models of one tokenizer, such as the seeds of a sweep, give mean rewards, and
    /v1/rewards their spread over the models.
    """

    model: Annotated[ScoringModels, FLAT]
    server: Annotated[Server, FLAT] = field(default_factory=Server)


def main(arguments: Sequence[str]) -> int:
    """Serve a model; return the exit status."""
    return run_command(_serve, arguments, on_interrupt="stopped at once")


def _serve(arguments: Sequence[str]) -> int:
    command = tyro.cli(
        ServeCommand, prog="python jobs/serve.py", args=list(arguments), use_underscores=True
    )
    with stop_signal() as stop:
        from rm_ray.serving.server import serving

        with serving(command.model, command.server) as running:
            stop.answers()
            logger.info("%s", describe_start(running.model, command.server))
            stop.wait()
            logger.info("answering the requests that were accepted; Ctrl-C again stops at once")
            totals = running.drain()
    logger.info("%s", describe_end(totals))
    return ExitStatus.FAILED if totals.unanswered else ExitStatus.DONE


@contextmanager
def stop_signal() -> Iterator[_Stop]:
    """Yield an event that the first Ctrl-C or SIGTERM sets; the second interrupts.

    Before anything is served there is nothing to answer, so the first one interrupts too.
    """
    stop = _Stop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stop.on_signal) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stop(threading.Event):
    """Set by a signal, which interrupts unless it is the first one to a server that answers."""

    def __init__(self) -> None:
        super().__init__()
        self._does_answer = False

    def answers(self) -> None:
        """Have the first signal interrupt no more."""
        self._does_answer = True

    def on_signal(self, _number: int, _frame: Any) -> None:
        is_first = not self.is_set()
        self.set()
        if not (is_first and self._does_answer):
            raise KeyboardInterrupt


def describe_start(model: str, server: Server) -> str:
    """Say what is served where, and how to ask."""
    from rm_ray.serving.app import TOKEN

    token = f' \\\n      -H "Authorization: Bearer ${TOKEN}"' if os.environ.get(TOKEN) else ""
    return (
        f"serving {model} at {server.url}; Ctrl-C ends it\n"
        f"  curl {server.url}/v1/rewards{token} -H 'Content-Type: application/json' \\\n"
        f"      -d '{EXAMPLE}'"
    )


def describe_end(totals: Totals) -> str:
    """Sum up what the server did."""
    minutes, seconds = divmod(round(totals.seconds), 60)
    lines = [
        f"  served for        {minutes}:{seconds:02} minutes",
        f"  requests          {totals.requests:,}, {totals.refused:,} of them refused, "
        f"{totals.failed:,} failed",
        f"  rewards           {totals.rewards:,}",
        f"  tokens            {totals.tokens:,}, of which shared prefixes saved {totals.saved:.0%}",
    ]
    if totals.unanswered:
        lines.append(f"  not answered      {totals.unanswered:,} accepted requests, in --drain_s")
    return "\n".join(lines)
