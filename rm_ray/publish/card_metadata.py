"""Metadata at the top of a model card, for the Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData


def card_metadata(config: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> ModelCardData:
    """Return the metadata of a run's model, from its settings and its evaluation, if any."""
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["reward-model", "preference", "bradley-terry"],
        base_model=_on_hub(config["model"]["name_or_path"]),
        datasets=_datasets(config["data"]["train"]),
        model_name=config["run"]["name"],
        eval_results=[
            EvalResult(
                task_type="text-classification",
                task_name="Reward modeling",
                dataset_type=name,  # huggingface_hub keeps one result per dataset type
                dataset_name=name,
                dataset_split="held out",
                metric_type="accuracy",
                metric_name="pairwise accuracy",
                metric_value=round(figures["accuracy"], 4),
            )
            for name, figures in figures_by_group(evaluation)
        ]
        or None,
    )


def figures_by_group(
    evaluation: Mapping[str, Any] | None,
) -> list[tuple[str, dict[str, float]]]:
    """Return the figures of all held-out pairs and, if there are several sources, of each."""
    if evaluation is None:
        return []
    by_source = evaluation["by_source"]
    return [("all", evaluation["overall"]), *(by_source.items() if len(by_source) > 1 else ())]


def _datasets(sources: Sequence[str]) -> list[str] | None:
    names = [re.sub(r"(:[^:/=]+){0,2}(=[0-9.]+)?$", "", source) for source in sources]
    is_file = (".jsonl", ".jsonl.gz", ".parquet")
    found = [name for name in names if _on_hub(name) and not name.endswith(is_file)]
    return sorted(set(found)) or None


def _on_hub(name: str) -> str | None:
    """Return the name if it names a Hub repository, else None."""
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None
