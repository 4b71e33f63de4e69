"""A run whose worker was killed beside one left alone, under ``run.deterministic``: the same?"""

from __future__ import annotations

from collections.abc import Iterator

from gpu.bench import Bench
from gpu.finding import Finding
from gpu.jobs_here import Asked, Outcome, settings_of, train_all
from jobs import assert_same_outcome

TABLE = "Weights, optimizer, random numbers, history and ledger, bit for bit"


def measure(bench: Bench) -> Iterator[Finding]:
    """Run both, together where there are cores for it, and compare."""
    steps = bench.pick(160, 24)
    asked = [
        Asked(
            name=name,
            settings=settings_of(
                bench, name, zero_stage=0, steps=steps, run={"deterministic": True}
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
        difference = (str(error).strip() or "no word").splitlines()[0]
        return Finding(table=TABLE, values={"first difference": difference}, ok=False)
    return Finding(table=TABLE, values={"first difference": "none"}, ok=True)
