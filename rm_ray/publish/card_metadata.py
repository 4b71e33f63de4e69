"""Metadata at the top of a model card, for the Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from rm_ray.config.sections.checkpoint import LIST_METRICS
from rm_ray.publish.card_objective import TAGS, read_objective

Sets = Mapping[str, Mapping[str, Any]]
"""Evaluations on named sets, by name."""

NO_SETS: Sets = MappingProxyType({})


def card_metadata(
    config: Mapping[str, Any], evaluation: Mapping[str, Any] | None, sets: Sets = NO_SETS
) -> ModelCardData:
    """Return the metadata of a run's model, from its settings and its evaluations, if any."""
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["reward-model", "preference", TAGS[read_objective(config).loss]],
        base_model=_on_hub(config["model"]["name_or_path"]),
        datasets=_datasets(config["data"]["train"]),
        model_name=config["run"]["name"],
        eval_results=[
            EvalResult(
                task_type="text-classification",
                task_name="Reward modeling",
                dataset_type=name,  # huggingface_hub groups the results by dataset type
                dataset_name=name,
                dataset_split="held out",
                metric_type=metric,
                metric_name=_METRICS[metric],
                metric_value=round(value, 4),
            )
            for name, figures in [*figures_by_group(evaluation), *figures_of_sets(sets)]
            for metric, value in _results(figures).items()
        ]
        or None,
    )


_METRICS = {
    "accuracy": "pairwise accuracy", "best_of_k": "best of K", "kendall_tau": "Kendall's tau",
    "score": "the benchmark's own average",
}  # fmt: skip


def _results(figures: Mapping[str, Any]) -> dict[str, float]:
    lists = figures.get("lists") or {}
    found = {"accuracy": figures["accuracy"], **{name: lists.get(name) for name in LIST_METRICS}}
    found["score"] = figures.get("score")
    return {metric: value for metric, value in found.items() if value is not None}


def figures_by_group(
    evaluation: Mapping[str, Any] | None,
) -> list[tuple[str, dict[str, Any]]]:
    """Return the figures of all held-out pairs and, if there are several sources, of each."""
    if evaluation is None:
        return []
    by_source = evaluation["by_source"]
    return [("all", evaluation["overall"]), *(by_source.items() if len(by_source) > 1 else ())]


def figures_of_sets(sets: Sets) -> list[tuple[str, dict[str, Any]]]:
    """Return the figures of each named set and, if it has several sources, of each of these.

    The figures of a benchmark have its own average as their ``score``.
    """
    found = []
    for name, evaluation in sets.items():
        (_, overall), *by_source = figures_by_group(evaluation)
        score = (evaluation.get("benchmark") or {}).get("Score")
        found.append((name, overall if score is None else {**overall, "score": score}))
        found += [(f"{name}: {source}", figures) for source, figures in by_source]
    return found


def _datasets(sources: Sequence[str]) -> list[str] | None:
    names = [re.sub(r"(:[^:/=]+){0,2}(=[0-9.]+)?$", "", source) for source in sources]
    is_file = (".jsonl", ".jsonl.gz", ".parquet")
    found = [name for name in names if _on_hub(name) and not name.endswith(is_file)]
    return sorted(set(found)) or None


def _on_hub(name: str) -> str | None:
    """Return the name if it names a Hub repository, else None."""
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None
