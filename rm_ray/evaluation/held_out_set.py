"""A set of held-out groups: its steps, its labels, and the averages of its own.

The default set is that of ``data.eval``; the others are named in ``evaluation.sets``, and have
averages by source and, if their rows are a benchmark's, the benchmark's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rm_ray.batches.plan import Steps
from rm_ray.config.sections.evaluation import DEFAULT_SET
from rm_ray.evaluation.metric_names import metric_names
from rm_ray.evaluation.pairwise import Labels
from rm_ray.evaluation.reports.group_report import group_metrics_by
from rm_ray.evaluation.reward_bench import ScoredPrompt, find_obstacle, score_benchmark
from rm_ray.evaluation.scored_groups import ScoredGroups

MOST_SOURCES = 20
"""Sources of a set that get metrics of their own; the reports have any number."""


@dataclass(frozen=True, kw_only=True)
class PromptLabel:
    """What a row says besides its preferences, as benchmarks do."""

    subset: str = ""
    id: str = ""
    num_correct: int = 0
    """The first ``num_correct`` responses of the row are correct; 0 if unknown."""
    places: tuple[int, ...] = ()
    """The group's response that each response of the row became: identical ones become one."""


@dataclass(frozen=True, kw_only=True)
class HeldOutSet:
    """A set of N held-out groups that a run is evaluated on."""

    name: str = DEFAULT_SET
    steps: Steps
    """The steps of one pass over the set, in order."""
    unit: str = "pairs"
    """What the groups are called in messages."""
    sources: Labels | None = None
    """The source of each group; None for no report."""
    prompts: tuple[PromptLabel, ...] | None = None
    """``[N]``; None if the rows name no subsets."""

    @property
    def is_default(self) -> bool:
        """Whether it is the set of ``data.eval``."""
        return self.name == DEFAULT_SET

    @property
    def prefix(self) -> str:
        """The beginning of its metrics' names."""
        return f"eval/{self.name}"

    @property
    def dataset(self) -> str:
        """The name of its stream and of its part of a run's record."""
        return "eval" if self.is_default else self.prefix

    @property
    def folder(self) -> str:
        """Its folder of reports, below that of the default set."""
        return "" if self.is_default else f"{self.name}/"

    def subsets(self, order: np.ndarray) -> list[str]:
        """Return the subsets of the given groups; empty if the rows name none."""
        return [] if self.prompts is None else [self.prompts[group].subset for group in order]

    def benchmark(self, order: np.ndarray, groups: ScoredGroups) -> dict[str, float]:
        """Return the benchmark's own averages; empty if the rows are of none.

        ``order`` names the set's group that each of ``groups`` is; the result is the same for any.
        """
        if self.prompts is None:
            return {}
        return score_benchmark(
            scored_prompts(self.prompts, order, groups), {label.subset for label in self.prompts}
        )

    def averages(self, order: np.ndarray, groups: ScoredGroups) -> dict[str, float]:
        """Return the metrics that only named sets have, as ``{eval/NAME/...: value}``.

        These are the accuracy of each of several sources, and the benchmark's own averages. No
        name continues another after a slash: MLflow's file store keeps each metric in a file.
        """
        if self.is_default:
            return {}
        by_source = self._accuracy_by_source(order, groups)
        scores = benchmark_metrics(self.benchmark(order, groups))
        return {f"{self.prefix}/{name}": value for name, value in (by_source | scores).items()}

    def _accuracy_by_source(self, order: np.ndarray, groups: ScoredGroups) -> dict[str, float]:
        names = source_metrics(() if self.sources is None else self.sources.names)
        if self.sources is None or not names:
            return {}
        in_order = np.argsort(order)
        labels = self.sources.of(order[in_order])
        found = group_metrics_by(groups[in_order], labels)
        return {
            names[source]: figures["accuracy"]
            for source, figures in found.items()
            if figures["accuracy"] is not None
        }


def source_metrics(sources: Sequence[str]) -> dict[str, str]:
    """Return the name of each source's accuracy, without prefix; of 2 to ``MOST_SOURCES``."""
    if not 2 <= len(sources) <= MOST_SOURCES:
        return {}
    return {source: f"accuracy_on/{name}" for source, name in metric_names(sources).items()}


def benchmark_metrics(scores: dict[str, float]) -> dict[str, float]:
    """Return a benchmark's averages by the names of their metrics, without prefix."""
    names = metric_names(name for name in scores if name != "Score")
    parts = {f"score_on/{names[name]}": scores[name] for name in scores if name in names}
    return ({"score": scores["Score"]} if "Score" in scores else {}) | parts


def scored_prompts(
    labels: Sequence[PromptLabel], order: np.ndarray, groups: ScoredGroups
) -> list[ScoredPrompt]:
    """Return the rewards of the rows with correct and incorrect responses, in the set's order."""
    bounds = np.searchsorted(groups.response_group, np.arange(groups.num_groups + 1))
    prompts = []
    for position in np.argsort(order):
        label = labels[order[position]]
        if not 0 < label.num_correct < len(label.places):
            continue
        rewards = groups.rewards[bounds[position] : bounds[position + 1]].tolist()
        prompts.append(
            ScoredPrompt(
                subset=label.subset,
                id=label.id,
                num_correct=label.num_correct,
                rewards=[rewards[place] for place in label.places],
            )
        )
    return prompts


def why_no_benchmark(labels: Sequence[PromptLabel]) -> str:
    """Return why a set whose rows name subsets has no benchmark's averages."""
    unfit = "no row has correct and incorrect responses as RewardBench or RewardBench 2 has them"
    return find_obstacle({label.subset for label in labels}) or unfit


def benchmark_names(labels: Sequence[PromptLabel]) -> list[str]:
    """Return the names of the benchmark metrics that a set gives, without prefix."""
    prompts = [
        ScoredPrompt(
            subset=label.subset,
            id=label.id,
            num_correct=label.num_correct,
            rewards=[0.0] * len(label.places),
        )
        for label in labels
        if 0 < label.num_correct < len(label.places)
    ]
    return list(benchmark_metrics(score_benchmark(prompts, {label.subset for label in labels})))
