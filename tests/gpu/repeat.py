"""A run whose worker was killed beside one left alone, under ``run.deterministic``: the same?"""

from __future__ import annotations

import traceback
from collections.abc import Iterator

from gpu.bench import Bench
from gpu.finding import Finding
from gpu.jobs_here import Asked, Outcome, settings_of, train_all
from jobs import assert_same_outcome

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
    quiet, killed = outcomes = train_all(bench, asked)
    for outcome in outcomes:
        values = {"run": outcome.asked.name, **outcome.values}
        yield Finding(table="Both runs", values=values, ok=not outcome.problem)
    if not (quiet.problem or killed.problem):
        yield compare(quiet, killed)


def compare(quiet: Outcome, killed: Outcome) -> Finding:
    """Return whether both left the same behind, or what the first difference is."""
    try:
        assert_same_outcome(killed.asked.folder, quiet.asked.folder)
    except AssertionError as error:
        line = traceback.extract_tb(error.__traceback__)[-1].line
        difference = f"{line} {error}".splitlines()[0][:200]
        return Finding(table=TABLE, values={"first difference": difference}, ok=False)
    return Finding(table=TABLE, values={"first difference": "none"}, ok=True)
