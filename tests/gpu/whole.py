"""``jobs/train.py`` through Ray Train: the debug recipe in bfloat16 at every ZeRO stage, a killed
worker in one of them, the export, and plain transformers' rewards on it."""

from __future__ import annotations

from collections.abc import Iterator

from gpu.bench import Bench
from gpu.finding import Finding
from gpu.jobs_here import Asked, settings_of, train_all

LEAST_ACCURACY = 0.9
"""What the recipe's model has learnt after so many steps."""

STEPS = 240

KILLED = 3
"""The stage in which the worker is killed after a checkpoint; ``repeat`` does so at stage 0."""

TABLE = (
    "Runs through Ray; goals: the end is reached, held-out accuracy, and an export that plain "
    "transformers scores as training did"
)


def measure(bench: Bench) -> Iterator[Finding]:
    """Run all stages, together where there are cores for it."""
    stages = bench.pick((0, 1, 2, 3), (0, 3))
    asked = [
        Asked(
            name=f"zero-{stage}",
            settings=settings_of(
                bench, f"zero-{stage}", zero_stage=stage, steps=bench.pick(STEPS, 20)
            ),
            killed=stage == KILLED,
        )
        for stage in stages
    ]
    for outcome in train_all(bench, asked):
        values = outcome.values
        ok = not outcome.problem
        if not bench.is_dry and ok:
            ok = values["held-out accuracy"] >= LEAST_ACCURACY
        yield Finding(table=TABLE, values={"run": outcome.asked.name, **values}, ok=ok)
