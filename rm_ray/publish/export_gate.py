"""The export gate: a comparison of client rewards with training rewards."""

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
"""Largest allowed difference, in units of 1 + the largest absolute reward, by dtype. The bfloat16
spacing at 1 is 0.008, and clients use other kernels for layers and head than training; a reward's
error scales with its largest terms, not with the reward itself."""

PATIENCE_S = 3_600.0
"""Time limit in seconds; clients may score a large model on CPUs."""


class ClientsError(Exception):
    """The clients did not answer."""


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """Result of the comparison."""

    differences: dict[str, float]
    """Largest difference from the training rewards, by client."""
    num_conversations: int
    problem: str = ""
    """What differs and by how much; empty if all clients agree."""


def run_export_gate(folder: Path, reference: Mapping[str, Any], dtype: str) -> GateResult:
    """Score a run's reference conversations with transformers in a fresh process, and compare.

    ``reference`` has ``scored`` ids with their rewards, and ``conversations`` with their ids.

    Raises:
        ClientsError: the clients did not answer; a retry may succeed.
    """
    expected = [each["reward"] for each in reference["scored"]]
    conversations = reference["conversations"]
    asked = {
        "ids": [each["ids"] for each in reference["scored"]],
        "conversations": [each["messages"] for each in conversations],
    }
    answer = _ask(folder, asked)
    tokenized = answer.pop("conversations")
    problems = [
        f"the conversation {each['messages']!r} tokenizes to different ids"
        for each, ids in zip(conversations, tokenized, strict=True)
        if ids != each["ids"]
    ]
    differences = {}
    for client, rewards in answer.items():
        if all(reward is None for reward in rewards):
            continue  # the pipeline takes only text, and no text tokenizes to these ids
        differences[client], problem = compare(expected, rewards, TOLERANCE[dtype])
        problems += [f"{client}: {problem}"] if problem else []
    return GateResult(
        differences=differences, num_conversations=len(expected), problem="; ".join(problems)
    )


def compare(
    expected: Sequence[float], got: Sequence[float | None], tolerance: float
) -> tuple[float, str]:
    """Return the largest difference, and a description of it if it exceeds the tolerance.

    Rewards that a client could not compute are None.
    """
    if not all(map(math.isfinite, expected)):
        return math.inf, "the training rewards are not finite numbers"
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
                f"the reward of conversation {i} is {theirs:.6f}, but was {ours:.6f} in training: "
                f"they differ by {difference:.2g}, and {allowed:.2g} is allowed"
            )
    return largest, problem


def _ask(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Run the clients without network access and secrets; return their answer.

    Raises:
        ClientsError: the clients did not answer.
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
            start_new_session=True,  # keep Ctrl-C from reaching the clients
            env=environment | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [""]
            raise ValueError(f"exit status {done.returncode}: {lines[-1]}")
        answer: dict[str, Any] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ClientsError(f"plain transformers cannot score {folder}: {error}") from error
    return answer
