"""The export gate: what clients make of a folder, beside the rewards of training."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLIENTS = Path(__file__).with_name("clients.py")

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.04}
"""How far a reward may be off, for each 1 + the largest of them. In bfloat16 numbers lie 0.008
apart for each 1, and layers and head are computed by other kernels than in training; what that
does to a reward goes with the size of what is added up to it, and not with its own."""

PATIENCE_S = 3_600.0
"""How long the clients may take, where a large model is scored on CPUs."""


class ClientsError(Exception):
    """The clients did not answer."""


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """What came of it."""

    differences: dict[str, float]
    """How far each client's rewards are from those of training, at most."""
    num_conversations: int
    problem: str = ""
    """What differs, and by how much; empty where all agree."""


def run_export_gate(folder: Path, probes: Mapping[str, Any], dtype: str) -> GateResult:
    """Score a run's probes in a fresh process, with plain transformers, and compare.

    ``probes`` has the ``pairs`` with their ids and rewards, and the ``conversations`` with theirs.

    Raises:
        ClientsError: the clients did not answer, which may be an accident.
    """
    sides = [(pair, side) for pair in probes["pairs"] for side in ("chosen", "rejected")]
    expected = [pair[f"{side}_reward"] for pair, side in sides]
    conversations = probes["conversations"]
    asked = {
        "ids": [pair[f"{side}_ids"] for pair, side in sides],
        "conversations": [each["messages"] for each in conversations],
    }
    answer = _ask(folder, asked)
    tokenized = answer.pop("conversations")
    problems = [
        f"the conversation {each['messages']!r} becomes other ids"
        for each, ids in zip(conversations, tokenized, strict=True)
        if ids != each["ids"]
    ]
    differences = {}
    for client, rewards in answer.items():
        if all(reward is None for reward in rewards):
            continue  # it takes text alone, and no text becomes these ids
        differences[client], problem = compare(expected, rewards, TOLERANCE[dtype])
        problems += [f"{client}: {problem}"] if problem else []
    return GateResult(
        differences=differences, num_conversations=len(sides), problem="; ".join(problems)
    )


def compare(
    expected: Sequence[float], got: Sequence[float | None], tolerance: float
) -> tuple[float, str]:
    """Return the largest difference, and what is said of the worst one that is too large.

    Rewards that a client could not be asked for are None.
    """
    if not all(map(math.isfinite, expected)):
        return math.inf, "rewards of training itself are no finite numbers"
    largest, worst, problem = 0.0, 0.0, ""
    allowed = tolerance * (1 + max(map(abs, expected)))
    for i, (ours, theirs) in enumerate(zip(expected, got, strict=True)):
        if theirs is None:
            continue
        difference = abs(ours - theirs)
        if not math.isfinite(difference):
            difference = math.inf
        largest = max(largest, difference)
        if difference > allowed and difference > worst:
            worst = difference
            problem = (
                f"the reward of conversation {i} is {theirs:.6f} and was {ours:.6f} in training, "
                f"{difference:.2g} apart where {allowed:.2g} is allowed"
            )
    return largest, problem


def _ask(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Run the clients, without a network and without secrets.

    Raises:
        ClientsError: they did not answer.
    """
    secret = ("TOKEN", "KEY", "SECRET", "PASSWORD")
    environment = {
        name: value for name, value in os.environ.items() if not name.upper().endswith(secret)
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(CLIENTS), str(folder)],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            start_new_session=True,  # Ctrl-C is for the command, which then ends it
            env=environment | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [""]
            raise ValueError(f"exit status {done.returncode}: {lines[-1]}")
        answer: dict[str, Any] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ClientsError(f"plain transformers cannot score {folder}: {error}") from error
    return answer
