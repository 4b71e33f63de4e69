"""The evaluations of a run so far, read from its folder while it trains."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from rm_ray.config.sections.evaluation import DEFAULT_SET
from rm_ray.runs.layout import EVALUATIONS
from rm_ray.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The metrics of a held-out set after a step."""

    step: int
    metrics: dict[str, float]
    file: str
    """Name of the file, by which it need not be read again."""


def read_evaluations(
    run_folder: Storage, metric: str, *, seen: Collection[str] = ()
) -> Iterator[Evaluated]:
    """Yield the evaluations on the set of ``metric`` ('eval/SET/...') in the order of their steps.

    Those of files in ``seen`` are left out.

    An attempt that was lost may have evaluated steps that the run has yet to take again. They come
    out the same.
    """
    name = metric.split("/")[1]
    folder = EVALUATIONS if name == DEFAULT_SET else f"{EVALUATIONS}/{name}"
    for entry in run_folder.list(folder):
        if entry.name.endswith(".json") and entry.name not in seen:
            report = run_folder.read_json(f"{folder}/{entry.name}")
            if "metrics" in report:  # reports of earlier versions have none
                yield Evaluated(step=report["step"], metrics=report["metrics"], file=entry.name)
