"""Raw rows -> token ids in Parquet, once; with a manifest and a quarantine of refused rows."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from pyarrow import fs as pafs
from ray.exceptions import RayError
from transformers import PreTrainedTokenizerBase

from rm_ray.config.train_config import DataConfig
from rm_ray.data.cache.cache_rows import parse_pair_row, tokenize_block
from rm_ray.data.cache.overlap import (
    NO_KEYS,
    count_contradictions,
    count_duplicates,
    join_keys,
    pair_up,
)
from rm_ray.data.cache.token_table import ROWS_PER_BATCH, TokenParts
from rm_ray.data.rows.columns import ColumnRules
from rm_ray.data.rows.reading import Reading, refuse_lost_columns, sum_up
from rm_ray.data.sources import mixture
from rm_ray.data.sources.mixture import Selection
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.data.sources.stored_datasets import find_revision
from rm_ray.data.tokens.tokenization import PairTokenizer, tokenizer_fingerprint
from rm_ray.errors import InputError, find_final_error
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)

FORMAT = 5
"""Raised whenever the same rows would be stored as something else."""

FIRST_ROWS = 4
"""Rows of each file that are looked at before all are tokenised."""

ABANDONED_AFTER_S = 3_600.0
"""A build folder untouched for so long belongs to nobody (a build writes every few seconds)."""


@dataclass(frozen=True, kw_only=True)
class TokenCache:
    """A finished build: Parquet parts, quarantine file and the counts of its manifest."""

    identity: str
    """Hash of contents, tokenizer, template and limits, wherever the files lie."""
    parts: TokenParts
    folder: Storage
    data_hash: str
    """Hash of the contents alone."""
    num_pairs: int
    num_tokens: int
    """Tokens of both conversations of all pairs."""
    pairs_by_source: dict[str, int]
    refused: dict[str, int]
    """Refused rows by reason."""
    duplicates: int
    """Pairs that repeat one before them: same prompt, same responses, same preference."""
    contradictions: int
    """Pairs whose preference is turned around in another one."""
    revisions: dict[str, str]
    """Commits that datasets of the Hub were read at."""
    readings: tuple[Reading, ...]
    """How the rows of each file or split were read."""

    @property
    def num_refused(self) -> int:
        """Rows in the quarantine file."""
        return sum(self.refused.values())

    @property
    def quarantine(self) -> str:
        """Path of the refused rows: JSON Lines of origin, row, reason, detail and raw row."""
        return self.folder.join("quarantine.jsonl")

    @property
    def prompt_keys(self) -> np.ndarray:
        """Hashes of the pairs' prompts: ``[N]``, in the order of the parts."""
        batches = self.parts.scan(("prompt_hash",), refused=False)
        return join_keys(batch["prompt_hash"] for batch in batches)


def build_token_cache(
    specs: Sequence[str],
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    storage: Storage,
    without: TokenCache | None = None,
) -> TokenCache:
    """Tokenise the sources over all CPUs of the cluster, or find that it was done before.

    Pairs whose prompt is one of the cache ``without`` are refused.

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
    if (manifest := home.read_json("manifest.json")) is not None:
        logger.info("token cache %s: found, %s pairs", key, f"{manifest['num_pairs']:,}")
        return _from_manifest(home, manifest)
    _try_first_rows(selections, config.rules)
    _remove_abandoned(home)
    started = time.monotonic()
    build = f"build-{uuid.uuid4().hex[:8]}"
    parts = TokenParts(
        key=f"{key}-{build}",
        parts=home.folder(f"{build}/parts"),
        origins=origins,
    )
    held_out = np.unique(without.prompt_keys) if without else NO_KEYS
    _write_parts(selections, PairTokenizer(tokenizer, config), parts, held_out)
    counts = _write_quarantine(parts, home.folder(build))
    hashes = {"identity": identity, "data_hash": data_hash}
    fragments = {selection.fragment.origin: selection.fragment for selection in selections}
    found = {origin: find_revision(fragment) for origin, fragment in fragments.items()}
    revisions = {origin: revision for origin, revision in found.items() if revision}
    manifest = {"build": build, "revisions": revisions, **hashes, **counts}
    home.write_json("manifest.json", manifest)
    seconds = time.monotonic() - started
    logger.info("token cache %s: %s pairs in %.1f s", key, f"{counts['num_pairs']:,}", seconds)
    return _from_manifest(home, manifest)


def _limits(config: DataConfig) -> list[int | str | None]:
    return [config.max_length, config.max_prompt_length, config.over_length]


def _rules(config: DataConfig) -> list[object]:
    """Return the settings that decide what a row becomes; nothing where there are none."""
    return [sorted(config.columns), sorted(config.ignore_columns)] if config.rules.are_set else []


def _try_first_rows(selections: Sequence[Selection], rules: ColumnRules) -> None:
    """See from a few rows, before any work, whether a column is not used that should be.

    Raises:
        InputError: one is not.
    """
    for selection in selections:
        origin = selection.fragment.origin
        rows = (text for _, text in islice(mixture.read_selected(selection), FIRST_ROWS))
        parsed = (parse_pair_row(text, origin, rules)[1] for text in rows)
        counts = Counter(reading.to_json() for reading in parsed if reading is not None)
        refuse_lost_columns([sum_up(origin, counts)])


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _from_manifest(home: Storage, manifest: dict[str, Any]) -> TokenCache:
    key, build = Path(home.path).name, str(manifest.get("build"))
    if not re.fullmatch(r"build-[0-9a-f]{8}", build):  # it names folders, here and on workers
        raise InputError(
            f"{home.join('manifest.json')} names the build {build!r}, which is none; delete "
            f"{home.path}, and the pairs are tokenised again"
        )
    return TokenCache(
        identity=manifest["identity"],
        parts=TokenParts(
            key=f"{key}-{build}",
            parts=home.folder(f"{build}/parts"),
            origins=tuple(manifest["origins"]),
        ),
        folder=home.folder(build),
        data_hash=manifest["data_hash"],
        num_pairs=manifest["num_pairs"],
        num_tokens=manifest["num_tokens"],
        pairs_by_source=manifest["pairs_by_source"],
        refused=manifest["refused"],
        duplicates=manifest["duplicates"],
        contradictions=manifest["contradictions"],
        revisions=manifest.get("revisions", {}),
        readings=tuple(map(Reading.from_json, manifest["readings"])),
    )


def _remove_abandoned(home: Storage) -> None:
    """Delete what interrupted builds left; a build that is still being written stays."""
    for info in home.list():
        selector = pafs.FileSelector(info.path, recursive=True)
        is_folder = info.type == pafs.FileType.Directory
        files = home.filesystem.get_file_info(selector) if is_folder else []
        newest = max((f.mtime_ns or 0 for f in [info, *files]), default=0)
        if files and time.time() - newest / 1e9 > ABANDONED_AFTER_S:
            home.delete(info.base_name)


@dataclass(frozen=True)
class _SharedTokenizer:
    """What is in Ray's object store, too large to travel with every task."""

    reference: ray.ObjectRef
    """A pair tokenizer and the held-out prompts' sorted hashes."""


@functools.lru_cache(maxsize=1)
def _unpack(shared: _SharedTokenizer) -> tuple[PairTokenizer, np.ndarray]:
    """Fetch the tokenizer, once in each process that uses it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a task for each core
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
            batch_size=ROWS_PER_BATCH,
        ).write_parquet(path, filesystem=filesystem)
    except RayError as error:
        raise find_final_error(error) or error from None


def _write_quarantine(parts: TokenParts, folder: Storage) -> dict[str, Any]:
    """Write the refused rows as JSON Lines; return all the counts of the manifest."""
    refused: Counter[str] = Counter()
    with folder.filesystem.open_output_stream(folder.join("quarantine.jsonl")) as file:
        columns = ("fragment", "row", "reason", "detail", "raw")
        for batch in parts.scan(columns, refused=True):
            for row in batch.to_pylist():
                refused[row["reason"]] += 1
                line = {"origin": parts.origins[row.pop("fragment")], **row}
                file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
    by_source: Counter[str] = Counter()
    readings: dict[int, Counter[str]] = {}
    num_tokens = 0
    columns = ("source", "chosen_ids", "rejected_ids", "fragment", "reading")
    for batch in parts.scan(columns, refused=False):
        numbered = pa.table({"fragment": batch["fragment"], "reading": batch["reading"]})
        for each in (
            numbered.group_by(["fragment", "reading"]).aggregate([([], "count_all")]).to_pylist()
        ):
            counts = readings.setdefault(each["fragment"], Counter())
            counts[each["reading"]] += each["count_all"]
        by_source.update(batch.column("source").to_pylist())
        num_tokens += len(batch.column("chosen_ids").flatten())
        num_tokens += len(batch.column("rejected_ids").flatten())
    return {
        **_count_repeats(parts),
        "origins": list(parts.origins),
        "num_pairs": by_source.total(),
        "num_tokens": num_tokens,
        "pairs_by_source": dict(sorted(by_source.items())),
        "refused": dict(refused.most_common()),
        "readings": [
            sum_up(parts.origins[number], counts).to_json()
            for number, counts in sorted(readings.items())
        ],
    }


def _count_repeats(parts: TokenParts) -> dict[str, int]:
    """Count duplicates and contradictions; memory: about 128 bytes for each pair."""
    names = ("chosen_hash", "rejected_hash")
    batches = list(parts.scan(names, refused=False))
    chosen, rejected = (join_keys(batch[name] for batch in batches) for name in names)
    pairs, swaps = pair_up(chosen, rejected), pair_up(rejected, chosen)
    return {
        "duplicates": count_duplicates(pairs),
        "contradictions": count_contradictions(pairs, swaps),
    }
