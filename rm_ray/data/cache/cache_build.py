"""Building a token cache from raw rows with Ray Data, on all CPUs of the cluster."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayError
from transformers import PreTrainedTokenizerBase

from rm_ray.config.column_rules import ColumnRules
from rm_ray.config.sections.batch import Layout
from rm_ray.config.sections.data import DataConfig
from rm_ray.config.sections.objective import Need
from rm_ray.data.cache.cache_rows import tokenize_block
from rm_ray.data.cache.exclusions import Exclusions
from rm_ray.data.cache.group_counts import count_groups
from rm_ray.data.cache.grouped_parts import write_grouped_parts
from rm_ray.data.cache.grouping import GroupLimits
from rm_ray.data.cache.overlap import NO_KEYS
from rm_ray.data.cache.quarantine import write_quarantine
from rm_ray.data.cache.token_cache import MANIFEST, TokenCache, read_manifest, write_manifest
from rm_ray.data.cache.token_parts import TokenParts
from rm_ray.data.preferences.group_reading import parse_row
from rm_ray.data.rows.column_readings import refuse_lost_columns, sum_up
from rm_ray.data.rows.refusals import Reason
from rm_ray.data.sources import mixture
from rm_ray.data.sources.mixture import Selection
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.data.sources.stored_datasets import find_revision
from rm_ray.data.tokens.group_tokenizer import GroupTokenizer
from rm_ray.data.tokens.tokenizer import tokenizer_fingerprint
from rm_ray.errors import find_final_error
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)

FORMAT = 9
"""Version of the cache contents; increase it whenever the same rows would be stored differently."""

FIRST_ROWS = 4
"""Rows per file that are checked before tokenisation starts."""

ABANDONED_AFTER_S = 3_600.0
"""Age at which an untouched build folder is deleted; a live build writes every few seconds."""


def build_token_cache(
    specs: Sequence[str],
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    storage: Storage,
    need: Need = "labels",
    max_group_tokens: int = 16_384,
    layout: Layout = "packed",
    without: Sequence[TokenCache] = (),
) -> TokenCache:
    """Tokenise the sources on all CPUs of the cluster, or return the cache of an earlier build.

    Groups that lack what the objective needs are refused, and those whose prompt also occurs in a
    cache of ``without``, and rows that ``data.exclude`` names. With ``data.group_by_prompt``, a
    group of several rows takes at most ``max_group_tokens`` positions of a micro-batch in this
    layout.

    Raises:
        InputError: a source or a file of excluded rows cannot be read.
    """
    selections = mixture.select(
        [SourceSpec.parse(text) for text in specs], seed, rules=config.rules
    )
    data_hash = mixture.mixture_fingerprint(selections)
    origins = tuple(selection.fragment.origin for selection in selections)
    exclusions = Exclusions.read(config.exclude, origins)
    limits = GroupLimits(
        max_responses=config.max_responses, max_tokens=max_group_tokens, layout=layout, need=need
    )
    settings = (
        _limits(config),
        config.rules.key,
        need,
        *(_grouping(limits, selections) if config.group_by_prompt else []),
        *(each.identity for each in without),
        *([["excluded", exclusions.hash]] if exclusions.hash else []),
    )
    identity = _hash(data_hash, tokenizer_fingerprint(tokenizer), *settings)
    key = _hash(FORMAT, identity, origins)[:16]
    home = storage.folder(f"token_cache/{key}")
    if (manifest := home.read_json(MANIFEST)) is not None:
        cache = read_manifest(home, manifest)
        logger.info("token cache %s: reused, %s %s", key, f"{cache.num_groups:,}", cache.unit)
        exclusions.warn_of_missing(cache.refused.get(Reason.EXCLUDED, 0))
        return cache
    _check_first_rows(selections, config.rules)
    _remove_abandoned(home)
    started = time.monotonic()
    held_out = np.unique(np.concatenate([NO_KEYS, *(each.prompt_keys for each in without)]))
    tokenizes = GroupTokenizer(tokenizer, config)
    refused = Refused(held_out=held_out, exclusions=exclusions)
    hashes = {"identity": identity, "data_hash": data_hash}
    cache = _build(home, selections, tokenizes, limits, refused, **hashes)
    seconds = time.monotonic() - started
    counted = f"{cache.num_groups:,} {cache.unit}"
    logger.info("token cache %s: %s in %.1f s", key, counted, seconds)
    exclusions.warn_of_missing(cache.refused.get(Reason.EXCLUDED, 0))
    return cache


def _build(
    home: Storage,
    selections: Sequence[Selection],
    group_tokenizer: GroupTokenizer,
    limits: GroupLimits,
    refused_rows: Refused,
    **hashes: str,
) -> TokenCache:
    """Tokenise the selected rows into a new folder of a cache."""
    groups_rows = group_tokenizer.config.group_by_prompt
    build = f"build-{uuid.uuid4().hex[:8]}"
    folder = home.folder(build)
    origins = tuple(selection.fragment.origin for selection in selections)
    key = f"{Path(home.path).name}-{build}"
    parts = TokenParts(key=key, parts=folder.folder("parts"), origins=origins)
    rows = replace(parts, parts=folder.folder("rows")) if groups_rows else parts
    _write_parts(selections, group_tokenizer, rows, refused_rows, limits.need)
    written = [rows]
    if groups_rows:
        write_grouped_parts(rows, parts, limits, [each.entry for each in selections])
        written.append(parts)
    refused = write_quarantine(written, folder)
    manifest = write_manifest(
        home,
        build=build,
        refused=dict(refused.most_common()),
        origins=origins,
        counts=count_groups(parts, rows),
        revisions=_find_revisions(selections),
        **hashes,
    )
    if groups_rows:
        folder.delete("rows")
    return read_manifest(home, manifest)


def _limits(config: DataConfig) -> list[int | str | None]:
    return [config.max_length, config.max_prompt_length, config.over_length]


def _grouping(limits: GroupLimits, selections: Sequence[Selection]) -> list[object]:
    entries = [each.entry for each in selections]
    return [limits.max_responses, limits.max_tokens, limits.layout, entries]


def _check_first_rows(selections: Sequence[Selection], rules: ColumnRules) -> None:
    """Check a few rows for lost columns before any work starts.

    Raises:
        InputError: an unused column seems to hold part of the conversation.
    """
    for selection in selections:
        origin = selection.fragment.origin
        rows = (text for _, text in islice(mixture.read_selected(selection), FIRST_ROWS))
        parsed = (parse_row(text, origin, rules)[1] for text in rows)
        counts = Counter(reading.to_json() for reading in parsed if reading is not None)
        refuse_lost_columns([sum_up(origin, counts)])


def _find_revisions(selections: Sequence[Selection]) -> dict[str, str]:
    """Return the commit that each Hub dataset is read at, by origin."""
    fragments = {selection.fragment.origin: selection.fragment for selection in selections}
    found = {origin: find_revision(fragment) for origin, fragment in fragments.items()}
    return {origin: revision for origin, revision in found.items() if revision}


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _remove_abandoned(home: Storage) -> None:
    """Delete the leftovers of interrupted builds; builds in progress stay."""
    for entry in home.list():
        files = home.list(entry.name, recursive=True) if entry.is_folder else []
        newest = max((each.modified or 0 for each in [entry, *files]), default=0)
        if files and time.time() - newest > ABANDONED_AFTER_S:
            home.delete(entry.name)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """What a build refuses besides rows that break the contract."""

    held_out: np.ndarray
    """The sorted hashes of the held-out prompts."""
    exclusions: Exclusions


@dataclass(frozen=True)
class _SharedTokenizer:
    """A reference to data that is too large to send with every task."""

    reference: ray.ObjectRef
    """A group tokenizer and what the build refuses."""


@functools.lru_cache(maxsize=1)
def _unpack(shared: _SharedTokenizer) -> tuple[GroupTokenizer, Refused]:
    """Fetch the tokenizer and what is refused, once per process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core has a task already
    found: tuple[GroupTokenizer, Refused] = ray.get(shared.reference)
    return found


def _tokenize_batch(
    batch: dict[str, np.ndarray], shared: _SharedTokenizer, origins: Sequence[str], need: Need
) -> pa.Table:
    """Turn a block of raw rows into cache rows; runs in a Ray Data task."""
    group_tokenizer, refused = _unpack(shared)
    return tokenize_block(
        batch, group_tokenizer, origins, refused.held_out, need, refused.exclusions
    )


def _write_parts(
    selections: Sequence[Selection],
    group_tokenizer: GroupTokenizer,
    parts: TokenParts,
    refused: Refused,
    need: Need,
) -> None:
    filesystem, path = parts.parts.filesystem, parts.parts.path
    filesystem.create_dir(path, recursive=True)
    shared = _SharedTokenizer(ray.put((group_tokenizer, refused)))
    try:
        mixture.to_ray_dataset(selections).map_batches(
            _tokenize_batch,
            fn_kwargs={"shared": shared, "origins": parts.origins, "need": need},
            batch_size=mixture.ROWS_PER_BLOCK,
        ).write_parquet(path, filesystem=filesystem)
    except RayError as error:
        raise find_final_error(error) or error from None
