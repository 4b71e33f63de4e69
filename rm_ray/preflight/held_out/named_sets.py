"""The named sets of held-out pairs: their token caches, labels and overlap with training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from rm_ray.batches.plan import PlanSettings, Steps
from rm_ray.config.sections.evaluation import DEFAULT_SET
from rm_ray.config.train_config import TrainConfig
from rm_ray.data.cache.token_cache import TokenCache
from rm_ray.data.cache.token_table import open_table
from rm_ray.evaluation.held_out_set import (
    MOST_SOURCES,
    HeldOutSet,
    PromptLabel,
    benchmark_names,
    why_no_benchmark,
)
from rm_ray.evaluation.pairwise import Labels
from rm_ray.preflight.caches import build_cache, find_prompt_overlap
from rm_ray.scoring.prompt_labels import read_prompt_labels
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """A set of ``evaluation.sets`` before any worker starts."""

    name: str
    cache: TokenCache
    prompts: tuple[PromptLabel, ...] | None = None
    """What its rows say besides their preferences; None if they name no subsets."""
    overlap: dict[str, int] = field(default_factory=dict)
    """Pairs whose prompt is also trained on, by source."""

    @property
    def dataset(self) -> str:
        """The name of its stream and of its part of a run's record."""
        return dataset_name(self.name)


def dataset_name(name: str) -> str:
    """Return the name of a named set's stream and of its part of a run's record."""
    return f"eval/{name}"


def build_named_caches(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, storage: Storage
) -> dict[str, TokenCache]:
    """Tokenise the named sets; return their caches by name.

    Raises:
        InputError: a set is not suitable.
    """
    return {
        name: build_cache(config, dataset_name(name), tokenizer, storage)
        for name in config.evaluation.named_sets
    }


def label_named_sets(
    config: TrainConfig, caches: Mapping[str, TokenCache], train: TokenCache
) -> tuple[NamedSet, ...]:
    """Return the named sets with what their rows say, and warn of prompts that are trained on."""
    return tuple(_label(config, name, cache, train) for name, cache in caches.items())


def _label(config: TrainConfig, name: str, cache: TokenCache, train: TokenCache) -> NamedSet:
    table = open_table(cache.parts)
    prompts = read_prompt_labels(
        config.evaluation.named_sets[name], table, seed=config.run.seed, rules=config.data.rules
    )
    if prompts is not None:
        if found := benchmark_names(prompts):
            logger.info("eval/%s has a benchmark's averages: %s", name, ", ".join(found))
        else:
            logger.info("eval/%s has no benchmark's averages: %s", name, why_no_benchmark(prompts))
    if len(table.sources) > MOST_SOURCES:
        logger.info(
            "eval/%s has %d sources: their accuracies are in its reports, and are no metrics",
            name,
            len(table.sources),
        )
    overlap = find_prompt_overlap(train, cache, where=f" of evaluation.sets {name}")
    return NamedSet(name=name, cache=cache, prompts=prompts, overlap=overlap)


def held_out_set(
    cache: TokenCache,
    settings: PlanSettings,
    *,
    name: str = DEFAULT_SET,
    prompts: tuple[PromptLabel, ...] | None = None,
) -> HeldOutSet:
    """Return what workers need to know of a set, for one pass over it in order."""
    table = open_table(cache.parts)
    return HeldOutSet(
        name=name,
        steps=Steps(num_groups=cache.num_groups, settings=settings),
        unit=cache.unit,
        sources=Labels(names=table.sources, codes=np.asarray(table.source)),
        prompts=prompts,
    )
