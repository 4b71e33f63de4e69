"""Contestants in processes of their own that compute in turn: while one does, the others wait."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

Figures = dict[str, Any]
"""What a contestant measured in one turn."""


class Turn:
    """A contestant's own side: the end of each turn, and the wait for the next."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def over(self, **figures: Any) -> None:
        """Hand in what a turn measured and wait for the next one; the first is the warm-up."""
        self._pipe.send(figures)
        self._pipe.recv()


Play = Callable[[Any, Turn], None]
"""Takes turns with a setting until its process is ended."""


class Contestant:
    """The process of one contestant; it takes its warm-up turn when it is made."""

    def __init__(self, play: Play, setting: Any, *, threads: int) -> None:
        from rm_ray.allocator import keep_freed_memory  # callers set the path

        keep_freed_memory()  # as a local Ray does for its workers
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_run, args=(play, setting, threads, other), daemon=True
        )
        self._process.start()
        other.close()
        self._receive()

    def take_turn(self) -> Figures:
        """Let it compute and return what it measured."""
        self._pipe.send(None)
        return self._receive()

    def leave(self) -> None:
        """End its process."""
        self._process.terminate()
        self._process.join()

    def _receive(self) -> Figures:
        try:
            figures: Figures = self._pipe.recv()
        except EOFError:
            self._process.join()
            status = self._process.exitcode
            raise RuntimeError(f"a contestant ended with status {status}; see above") from None
        return figures


def _run(play: Play, setting: Any, threads: int, pipe: Connection) -> None:
    import torch  # in the contestant's process, not in the one that only waits for it

    os.dup2(2, 1)  # what a trainer prints is no part of the report
    torch.set_num_threads(threads)
    play(setting, Turn(pipe))


def take_turns(
    contestants: Sequence[tuple[Play, Any]], *, turns: int, threads: int, together: bool = True
) -> list[list[Figures]]:
    """Return the figures of each contestant's turns.

    Not ``together``, a contestant takes all its turns before the next one starts: for a device
    that has no room for all of them.
    """
    everyone = list(range(len(contestants)))
    results: list[list[Figures]] = [[] for _ in everyone]
    for group in [everyone] if together else [[i] for i in everyone]:
        with ExitStack() as stack:
            players = {}
            for i in group:
                players[i] = Contestant(*contestants[i], threads=threads)
                stack.callback(players[i].leave)
            for _ in range(turns):
                for i, player in players.items():
                    results[i].append(player.take_turn())
    return results


def steps_as_turns(turn: Turn, *, pairs: int) -> Any:
    """Return a callback of transformers' Trainer that ends a turn with each step's log.

    That log is the last thing a step does.
    """
    from transformers import TrainerCallback

    class StepsAsTurns(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            if "loss" not in logs:
                return
            turn.over(
                seconds=time.perf_counter() - self.started,
                pairs=pairs,
                loss=logs["loss"],
                peak_memory=resident_bytes("VmHWM"),
            )
            self.started = time.perf_counter()

    return StepsAsTurns()


def resident_bytes(field: str) -> int:
    """Return this process's ``VmRSS`` (memory held now) or ``VmHWM`` (the most held so far)."""
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines[field].split()[0]) * 1024
