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
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayError
from transformers import PreTrainedTokenizerBase

from rm_ray.config.column_rules import ColumnRules
from rm_ray.config.sections.data import DataConfig
from rm_ray.data.cache.cache_rows import parse_pair_row, tokenize_block
from rm_ray.data.cache.overlap import NO_KEYS
from rm_ray.data.cache.pair_counts import count_pairs
from rm_ray.data.cache.quarantine import write_quarantine
from rm_ray.data.cache.token_cache import MANIFEST, TokenCache, read_manifest, write_manifest
from rm_ray.data.cache.token_parts import TokenParts
from rm_ray.data.rows.column_readings import refuse_lost_columns, sum_up
from rm_ray.data.sources import mixture
from rm_ray.data.sources.mixture import Selection
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.data.sources.stored_datasets import find_revision
from rm_ray.data.tokens.pair_tokenizer import PairTokenizer
from rm_ray.data.tokens.tokenizer import tokenizer_fingerprint
from rm_ray.errors import find_final_error
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)

FORMAT = 5
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
    without: TokenCache | None = None,
) -> TokenCache:
    """Tokenise the sources on all CPUs of the cluster, or return the cache of an earlier build.

    Pairs whose prompt also occurs in the cache ``without`` are refused.

    Raises:
        InputError: a source cannot be read.
    """
    selections = mixture.select(
        [SourceSpec.parse(text) for text in specs], seed, rules=config.rules
    )
    data_hash = mixture.mixture_fingerprint(selections)
    origins = tuple(selection.fragment.origin for selection in selections)
    settings = (_limits(config), _rules(config), *([without.identity] if without else []))
    identity = _hash(data_hash, tokenizer_fingerprint(tokenizer), *settings)
    key = _hash(FORMAT, identity, origins)[:16]
    home = storage.folder(f"token_cache/{key}")
    if (manifest := home.read_json(MANIFEST)) is not None:
        logger.info("token cache %s: reused, %s pairs", key, f"{manifest['num_pairs']:,}")
        return read_manifest(home, manifest)
    _check_first_rows(selections, config.rules)
    _remove_abandoned(home)
    started = time.monotonic()
    build = f"build-{uuid.uuid4().hex[:8]}"
    parts = TokenParts(key=f"{key}-{build}", parts=home.folder(f"{build}/parts"), origins=origins)
    held_out = np.unique(without.prompt_keys) if without else NO_KEYS
    _write_parts(selections, PairTokenizer(tokenizer, config), parts, held_out)
    manifest = write_manifest(
        home,
        build=build,
        identity=identity,
        data_hash=data_hash,
        refused=dict(write_quarantine(parts, home.folder(build)).most_common()),
        origins=origins,
        counts=count_pairs(parts),
        revisions=_find_revisions(selections),
    )
    seconds = time.monotonic() - started
    logger.info("token cache %s: %s pairs in %.1f s", key, f"{manifest['num_pairs']:,}", seconds)
    return read_manifest(home, manifest)


def _limits(config: DataConfig) -> list[int | str | None]:
    return [config.max_length, config.max_prompt_length, config.over_length]


def _rules(config: DataConfig) -> list[object]:
    """Return the settings that change how a row is read, or an empty list for the defaults."""
    return [sorted(config.columns), sorted(config.ignore_columns)] if config.rules.are_set else []


def _check_first_rows(selections: Sequence[Selection], rules: ColumnRules) -> None:
    """Check a few rows for lost columns before any work starts.

    Raises:
        InputError: an unused column seems to hold part of the conversation.
    """
    for selection in selections:
        origin = selection.fragment.origin
        rows = (text for _, text in islice(mixture.read_selected(selection), FIRST_ROWS))
        parsed = (parse_pair_row(text, origin, rules)[1] for text in rows)
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


@dataclass(frozen=True)
class _SharedTokenizer:
    """A reference to data that is too large to send with every task."""

    reference: ray.ObjectRef
    """A pair tokenizer and the sorted hashes of the held-out prompts."""


@functools.lru_cache(maxsize=1)
def _unpack(shared: _SharedTokenizer) -> tuple[PairTokenizer, np.ndarray]:
    """Fetch the tokenizer and the hashes, once per process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core has a task already
    found: tuple[PairTokenizer, np.ndarray] = ray.get(shared.reference)
    return found


def _tokenize_batch(
    batch: dict[str, np.ndarray], shared: _SharedTokenizer, origins: Sequence[str]
) -> pa.Table:
    """Turn a block of raw rows into cache rows; runs in a Ray Data task."""
    pair_tokenizer, held_out = _unpack(shared)
    return tokenize_block(batch, pair_tokenizer, origins, held_out)


def _write_parts(
    selections: Sequence[Selection],
    pair_tokenizer: PairTokenizer,
    parts: TokenParts,
    held_out: np.ndarray,
) -> None:
    filesystem, path = parts.parts.filesystem, parts.parts.path
    filesystem.create_dir(path, recursive=True)
    shared = _SharedTokenizer(ray.put((pair_tokenizer, held_out)))
    try:
        mixture.to_ray_dataset(selections).map_batches(
            _tokenize_batch,
            fn_kwargs={"shared": shared, "origins": parts.origins},
            batch_size=mixture.ROWS_PER_BLOCK,
        ).write_parquet(path, filesystem=filesystem)
    except RayError as error:
        raise find_final_error(error) or error from None
