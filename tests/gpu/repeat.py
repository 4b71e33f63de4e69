"""A run whose worker was killed beside one left alone, under ``run.deterministic``: the same?"""

from __future__ import annotations

import traceback
from collections.abc import Iterator

from outcomes import assert_same_outcome

from gpu.bench import Bench
from gpu.finding import Finding
from gpu.jobs_here import Asked, settings_of, train_all

STEPS_AN_EPOCH = 10
"""What ``assert_same_outcome`` counts the ledger by."""

TABLE = "Weights, optimizer, random numbers, history and ledger, bit for bit"


def measure(bench: Bench) -> Iterator[Finding]:
    """Run both, together where there are cores for it, and compare."""
    steps = bench.pick(160, 20)
    asked = [
        Asked(
            name=name,
            settings=settings_of(
                bench,
                name,
                zero_stage=0,
                steps=steps,
                epochs=steps // STEPS_AN_EPOCH,
                run={"deterministic": True},
            ),
            killed=name == "killed",
        )
        for name in ("quiet", "killed")
    ]
    ended: dict[str, Asked] = {}
    for outcome in train_all(bench, asked):
        values = {"run": outcome.asked.name, **outcome.values}
        yield Finding(table="Both runs", values=values, ok=not outcome.problem)
        if not outcome.problem:
            ended[outcome.asked.name] = outcome.asked
    if len(ended) == len(asked):
        yield compare(ended["quiet"], ended["killed"])


def compare(quiet: Asked, killed: Asked) -> Finding:
    """Return whether both left the same behind, or what the first difference is."""
    try:
        assert_same_outcome(killed.folder, quiet.folder)
    except AssertionError as error:
        line = traceback.extract_tb(error.__traceback__)[-1].line
        difference = f"{line} {error}".splitlines()[0][:200]
        return Finding(table=TABLE, values={"first difference": difference}, ok=False)
    return Finding(table=TABLE, values={"first difference": "none"}, ok=True)
