"""The metrics of a named set that can rank checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rm_ray.config.sections.checkpoint import LIST_METRICS, METRICS
from rm_ray.config.train_config import TrainConfig
from rm_ray.data.cache.token_table import open_table
from rm_ray.errors import InputError
from rm_ray.evaluation.held_out_set import benchmark_names, source_metrics
from rm_ray.preflight.caches import find_missing
from rm_ray.preflight.held_out.named_sets import NamedSet


def refuse_missing_metric(config: TrainConfig, named: Sequence[NamedSet]) -> None:
    """Refuse to rank checkpoints by a metric that a named set never gives.

    Raises:
        InputError: names the metric, what the data lacks, and the metrics that it gives.
    """
    metric = config.checkpoint.keep_best_by or ""
    ranking = next((one for one in named if one.name == config.checkpoint.ranking_set), None)
    if ranking is None:
        return
    given = [f"{ranking.dataset}/{name}" for name in given_metrics(config, ranking)]
    if metric not in given:
        raise InputError(
            f"checkpoint.keep_best_by is '{metric}', which the set '{ranking.name}' never gives. "
            f"Choose a metric that it gives ({', '.join(given) or 'there is none'}), leave the "
            "setting out, or add data that gives this one to evaluation.sets"
        )


def given_metrics(config: TrainConfig, named: NamedSet) -> Iterator[str]:
    """Yield the names, without prefix, of a set's metrics that can rank checkpoints."""
    for name in (*METRICS, *LIST_METRICS):
        if find_missing(name, named.cache, config.objective.need) is None:
            yield name
    table = open_table(named.cache.parts)
    compared = np.repeat(np.asarray(table.source), np.asarray(table.columns.num_comparisons))
    for source, name in source_metrics(table.sources).items():
        if (compared == table.sources.index(source)).any():
            yield name
    yield from benchmark_names(named.prompts or ())
