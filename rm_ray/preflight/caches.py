"""The token caches of training and held-out pairs, and the prompts that they share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from rm_ray.config.train_config import TrainConfig
from rm_ray.data.cache.cache_build import build_token_cache
from rm_ray.data.cache.overlap import count_overlap, join_keys
from rm_ray.data.cache.token_cache import TokenCache
from rm_ray.data.rows.column_readings import (
    describe_all,
    refuse_lost_columns,
    refuse_missing_columns,
)
from rm_ray.errors import InputError
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)


def build_caches(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, storage: Storage
) -> tuple[TokenCache, TokenCache | None]:
    """Tokenise training and held-out pairs, and log how many rows were kept and refused.

    Raises:
        InputError: the data is not suitable for training.
    """
    held_out = _cache(config, "eval", tokenizer, storage) if config.data.held_out else None
    without = held_out if config.data.drop_overlap else None
    train = _cache(config, "train", tokenizer, storage, without)
    if config.data.eval is None and held_out is None:
        logger.info(
            "no evaluation: data.eval is not set; pass held-out pairs with --data.eval SOURCE"
        )
    readings = [*train.readings, *(held_out.readings if held_out else ())]
    refuse_missing_columns(config.data.rules.columns, readings)
    return train, held_out


def find_prompt_overlap(train: TokenCache, held_out: TokenCache | None) -> dict[str, int]:
    """Count by source the held-out pairs whose prompt is also trained on, and log a warning."""
    if held_out is None:
        return {}
    batches = list(held_out.parts.scan(("prompt_hash", "source"), refused=False))
    keys = join_keys(batch["prompt_hash"] for batch in batches)
    sources: Iterator[str] = (name for batch in batches for name in batch["source"].to_pylist())
    overlap = count_overlap(keys, sources, train.prompt_keys)
    if overlap:
        logger.warning(
            "%s of %s held-out pairs have a prompt that is also trained on (%s), so accuracy on "
            "them says little about new prompts. Set data.drop_overlap to drop such pairs",
            f"{sum(overlap.values()):,}",
            f"{held_out.num_pairs:,}",
            ", ".join(f"{name}: {count:,}" for name, count in overlap.items()),
        )
    return overlap


def _cache(
    config: TrainConfig,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    storage: Storage,
    without: TokenCache | None = None,
) -> TokenCache:
    specs = config.data.train if name == "train" else config.data.held_out
    cache = build_token_cache(
        specs, config.data, tokenizer, seed=config.run.seed, storage=storage, without=without
    )
    rows = cache.num_pairs + cache.num_refused
    logger.info("%s pairs: %s of %s rows", name, f"{cache.num_pairs:,}", f"{rows:,}")
    for line in describe_all(cache.readings):
        logger.info("  %s", line)
    refuse_lost_columns(cache.readings)
    for reason, count in cache.refused.items():
        logger.info("  refused %6d  %s", count, reason)
    if cache.refused:
        logger.info("  refused rows are in %s", cache.quarantine)
    if cache.duplicates or cache.contradictions:
        logger.warning(
            "  %s pairs: %s duplicate another pair (same prompt and responses), %s contradict one "
            "(opposite preference)",
            name,
            f"{cache.duplicates:,}",
            f"{cache.contradictions:,}",
        )
    reasons = ", ".join(f"{count} {reason}" for reason, count in cache.refused.items())
    if cache.num_pairs == 0:
        raise InputError(
            f"data.{name}: nothing is left to train on; all {rows} rows were refused ({reasons}). "
            f"See {cache.quarantine}"
        )
    if cache.num_refused > config.data.max_refused_fraction * rows:
        raise InputError(
            f"data.{name}: {cache.num_refused} of {rows} rows were refused ({reasons}), more than "
            f"data.max_refused_fraction {config.data.max_refused_fraction} allows. See "
            f"{cache.quarantine}. Fix the data, or raise the fraction."
        )
    return cache
