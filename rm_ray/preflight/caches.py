"""The token caches of training and held-out pairs, and the prompts that they share."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerBase

from rm_ray.config.sections.checkpoint import LIST_METRICS, METRICS
from rm_ray.config.sections.evaluation import DEFAULT_SET
from rm_ray.config.sections.objective import Need
from rm_ray.config.train_config import TrainConfig
from rm_ray.data.cache.cache_build import build_token_cache
from rm_ray.data.cache.needs import find_lack
from rm_ray.data.cache.overlap import count_overlap, join_keys
from rm_ray.data.cache.token_cache import TokenCache
from rm_ray.data.rows.column_readings import (
    describe_all,
    refuse_lost_columns,
    refuse_missing_columns,
)
from rm_ray.data.rows.refusals import Reason
from rm_ray.errors import InputError
from rm_ray.evaluation.lists import LEAST_RESPONSES
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)


_NO_SETS: Mapping[str, TokenCache] = MappingProxyType({})


def build_caches(
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    storage: Storage,
    named: Mapping[str, TokenCache] = _NO_SETS,
) -> tuple[TokenCache, TokenCache | None]:
    """Tokenise training and held-out pairs, and log how many rows were kept and refused.

    ``named`` are the caches of the named sets.

    Raises:
        InputError: the data is not suitable for training.
    """
    held_out = build_cache(config, "eval", tokenizer, storage) if config.data.held_out else None
    apart = [*([held_out] if held_out else []), *named.values()]
    without = apart if config.data.drop_overlap else ()
    train = build_cache(config, "train", tokenizer, storage, without)
    if config.data.eval is None and not apart:
        logger.info(
            "no evaluation: data.eval is not set; pass held-out pairs with --data.eval SOURCE"
        )
    readings = [*train.readings, *(reading for cache in apart for reading in cache.readings)]
    refuse_missing_columns(config.data.rules.columns, readings)
    refuse_missing_labels(config, train, held_out)
    return train, held_out


def refuse_missing_labels(
    config: TrainConfig, train: TokenCache, held_out: TokenCache | None
) -> None:
    """Refuse settings that need labels which the data does not have.

    Raises:
        InputError: a tie parameter would be learned without ties, or no checkpoint would have the
            metric that ranks them.
    """
    if config.objective.tie_parameter == "learned" and not train.num_ties:
        raise InputError(
            "objective.tie_parameter is 'learned', but no training comparison is a tie: the "
            "parameter would only fall, and say nothing. Set it to a number, leave it out, or "
            "train on data with ties (equal ranks or scores, or 'tie: true')"
        )
    metric = config.checkpoint.keep_best_by
    if metric is None or config.checkpoint.ranking_set not in (None, DEFAULT_SET):
        return
    prefix, _, name = metric.rpartition("/")
    is_held_out = prefix == "eval/rm"
    cache, need = held_out if is_held_out else train, config.objective.need
    if cache is None or (lack := find_missing(name, cache, need)) is None:
        return
    kind = "held-out" if is_held_out else "training"
    names = (*METRICS, *(LIST_METRICS if is_held_out else ()))
    given = [f"{prefix}/{one}" for one in names if find_missing(one, cache, need) is None]
    raise InputError(
        f"checkpoint.keep_best_by is '{metric}', which the {kind} data never gives: {lack}. Choose "
        f"a metric that it gives ({', '.join(given) or 'there is none'}), leave the setting out, "
        f"or add data that gives this one to data.{'eval' if is_held_out else 'train'}"
    )


def find_missing(name: str, cache: TokenCache, need: Need) -> str | None:
    """Return what the data lacks for a metric, by its name without prefix; None if nothing."""
    labels: tuple[str, ...]
    if name == "loss":
        labels = ("score", "better", "margin", "probability")
        has_loss = any(find_lack(row, need) is None for row in _rows(cache, labels))
        return None if has_loss else f"no group has a label for the objective, which needs {need}"
    if name in LIST_METRICS:
        labels = ("better", "worse", "probability")
        is_found = any(_is_list(row, name) for row in _rows(cache, labels))
        return None if is_found else "no prompt ranks three or more responses"
    if cache.num_comparisons == cache.num_ties:
        return "no response is better than another one"
    return None


def _is_list(row: dict[str, Any], metric: str) -> bool:
    """Return whether a cache row is a list with this metric; see ``rm_ray.evaluation.lists``."""
    compared = {*row["better"], *row["worse"]}
    worse = {i for i, p in zip(row["worse"], row["probability"], strict=True) if p > 0.5}
    has_best = metric != "best_of_k" or compared > worse
    return len(compared) >= LEAST_RESPONSES and bool(worse) and has_best


def _rows(cache: TokenCache, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    for batch in cache.parts.scan(columns, refused=False):
        yield from batch.to_pylist()


def find_prompt_overlap(
    train: TokenCache, held_out: TokenCache | None, *, where: str = ""
) -> dict[str, int]:
    """Count by source the held-out pairs whose prompt is also trained on, and log a warning.

    ``where`` names a set in the warning, as in ' of evaluation.sets chat'.
    """
    if held_out is None:
        return {}
    batches = list(held_out.parts.scan(("prompt_hash", "source"), refused=False))
    keys = join_keys(batch["prompt_hash"] for batch in batches)
    sources: Iterator[str] = (name for batch in batches for name in batch["source"].to_pylist())
    overlap = count_overlap(keys, sources, train.prompt_keys)
    if overlap:
        logger.warning(
            "%s of %s held-out pairs%s have a prompt that is also trained on (%s), so accuracy on "
            "them says little about new prompts. Set data.drop_overlap to drop such pairs",
            f"{sum(overlap.values()):,}",
            f"{held_out.num_groups:,}",
            where,
            ", ".join(f"{name}: {count:,}" for name, count in overlap.items()),
        )
    return overlap


def build_cache(
    config: TrainConfig,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    storage: Storage,
    without: Sequence[TokenCache] = (),
) -> TokenCache:
    """Tokenise the set 'train', 'eval' or 'eval/NAME', and log what was kept and refused.

    Raises:
        InputError: nothing is left of it, or too little.
    """
    named = name.removeprefix("eval/")
    setting = f"data.{name}" if named == name else f"evaluation.sets {named}"
    data, specs = config.data, config.data.train if name == "train" else config.data.held_out
    if name != "train":
        data = replace(data, exclude=())
    if named != name:
        specs = config.evaluation.named_sets[named]
        data = replace(data, group_by_prompt=False)  # benchmarks count rows
    cache = build_token_cache(
        specs,
        data,
        tokenizer,
        seed=config.run.seed,
        storage=storage,
        need=config.objective.need if name == "train" else "labels",
        max_group_tokens=config.batch.tokens_per_micro_batch,
        layout=config.batch.layout,
        without=without,
    )
    rows = cache.num_rows + cache.num_refused
    kept = f"{cache.num_rows:,} of {rows:,} rows"
    logger.info("%s %s: %s", name, cache.unit, kept)
    if described := describe_groups(cache):
        logger.info("  %s", described)
    for line in describe_all(cache.readings):
        logger.info("  %s", line)
    refuse_lost_columns(cache.readings)
    for reason, count in cache.refused.items():
        logger.info("  refused %6d  %s", count, reason)
    if cache.refused:
        logger.info("  refused rows are in %s", cache.quarantine)
    warn_of_labels(name, cache)
    _refuse_too_little(cache, setting, config.data.max_refused_fraction)
    return cache


def _refuse_too_little(cache: TokenCache, setting: str, most: float) -> None:
    """Refuse a set of which nothing is left, or from which more than ``most`` was refused."""
    rows = cache.num_rows + cache.num_refused
    reasons = ", ".join(f"{count} {reason}" for reason, count in cache.refused.items())
    if cache.num_groups == 0:
        is_data = setting.startswith("data.")
        nothing = "nothing is left to train on" if is_data else "nothing is left to evaluate on"
        raise InputError(
            f"{setting}: {nothing}; all {rows} rows were refused ({reasons}). See "
            f"{cache.quarantine}"
        )
    num_refused = cache.num_refused - cache.refused.get(Reason.EXCLUDED, 0)
    if num_refused > most * rows:
        raise InputError(
            f"{setting}: {num_refused} of {rows} rows were refused ({reasons}), more than "
            f"data.max_refused_fraction {most} allows. See "
            f"{cache.quarantine}. Fix the data, or raise the fraction."
        )


def warn_of_labels(name: str, cache: TokenCache) -> None:
    """Log how many labels are repeated, or contradicted by another row or a column of their own."""
    if cache.duplicates or cache.contradictions:
        logger.warning(
            "  %s pairs: %s duplicate another pair (same prompt and responses), %s contradict one "
            "(opposite preference)",
            name,
            f"{cache.duplicates:,}",
            f"{cache.contradictions:,}",
        )
    if num_reversed := sum(sum(reading.reversals.values()) for reading in cache.readings):
        logger.warning(
            "  %s rows: %s have a column that says that the rejected response is the better one "
            "(see above). They are used as labelled; correct or remove them, or if the column "
            "means something else, leave it out with data.ignore_columns",
            name,
            f"{num_reversed:,}",
        )


def describe_groups(cache: TokenCache) -> str:
    """Return what the groups hold besides plain pairs; an empty text if they hold nothing else."""
    groups = cache.num_groups
    parts = [f"{groups:,} groups of {cache.num_responses / groups:.1f} responses"] if groups else []
    if cache.num_comparisons:
        parts.append(f"{cache.num_comparisons:,} comparisons")
    if cache.num_ties:
        parts.append(f"{cache.num_ties:,} of them ties")
    if cache.num_scores:
        parts.append(f"{cache.num_scores:,} scored responses")
    are_pairs = cache.num_responses == 2 * groups and cache.num_comparisons == groups
    is_plain = are_pairs and not cache.num_ties and not cache.num_scores
    return "" if is_plain else ", ".join(parts)
