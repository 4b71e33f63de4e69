"""A finished token cache and its manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rm_ray.data.cache.group_counts import GroupCounts
from rm_ray.data.cache.overlap import join_keys
from rm_ray.data.cache.quarantine import QUARANTINE
from rm_ray.data.cache.token_parts import TokenParts
from rm_ray.data.rows.column_readings import ColumnReading
from rm_ray.errors import InputError
from rm_ray.storage import Storage

MANIFEST = "manifest.json"

_COUNTS = (
    "num_rows", "num_groups", "num_responses", "num_comparisons", "num_ties", "num_scores",
    "num_tokens",
)  # fmt: skip
"""Fields of both ``GroupCounts`` and ``TokenCache``."""


@dataclass(frozen=True, kw_only=True)
class TokenCache:
    """A finished build: its Parquet parts, quarantine file and manifest."""

    identity: str
    """Hash of contents, tokenizer, template and limits, independent of file locations."""
    parts: TokenParts
    folder: Storage
    data_hash: str
    """Hash of the contents alone."""
    num_rows: int
    """Rows that became groups."""
    num_groups: int
    num_responses: int
    num_comparisons: int
    num_ties: int
    num_scores: int
    """Responses with a score."""
    num_tokens: int
    """Tokens of all groups, in all their conversations."""
    groups_by_source: dict[str, int]
    refused: dict[str, int]
    """Refused rows by reason."""
    duplicates: int
    """Comparisons that repeat an earlier one: same prompt, same responses, same preference."""
    contradictions: int
    """Comparisons that another one reverses."""
    revisions: dict[str, str]
    """Commit that each Hub dataset was read at, by origin."""
    readings: tuple[ColumnReading, ...]
    """One reading per file or split."""

    @property
    def unit(self) -> str:
        """What its groups are called: 'pairs' if each compares two responses, else 'groups'."""
        are_pairs = self.num_responses == 2 * self.num_groups
        return "pairs" if are_pairs and self.num_comparisons == self.num_groups else "groups"

    @property
    def num_refused(self) -> int:
        """Rows in the quarantine file."""
        return sum(self.refused.values())

    @property
    def quarantine(self) -> str:
        """Path of the quarantine file: JSON Lines of origin, row, reason, detail and raw."""
        return self.folder.join(QUARANTINE)

    @property
    def prompt_keys(self) -> np.ndarray:
        """Hashes of the groups' prompts: ``[N]``, in the order of the parts."""
        batches = self.parts.scan(("prompt_hash",), refused=False)
        return join_keys(batch["prompt_hash"] for batch in batches)


def write_manifest(
    home: Storage,
    *,
    build: str,
    identity: str,
    data_hash: str,
    revisions: Mapping[str, str],
    origins: Sequence[str],
    counts: GroupCounts,
    refused: Mapping[str, int],
) -> dict[str, Any]:
    """Write and return the manifest, which marks a build as the finished one of its cache."""
    manifest = {
        "build": build,
        "revisions": dict(revisions),
        "identity": identity,
        "data_hash": data_hash,
        "duplicates": counts.duplicates,
        "contradictions": counts.contradictions,
        "origins": list(origins),
        **{name: vars(counts)[name] for name in _COUNTS},
        "groups_by_source": counts.by_source,
        "refused": dict(refused),
        "readings": [reading.to_json() for reading in counts.readings],
    }
    home.write_json(MANIFEST, manifest)
    return manifest


def read_manifest(home: Storage, manifest: dict[str, Any]) -> TokenCache:
    """Return the finished build that a manifest in ``home`` names.

    Raises:
        InputError: the manifest does not name a valid build.
    """
    key, build = Path(home.path).name, str(manifest.get("build"))
    if not re.fullmatch(r"build-[0-9a-f]{8}", build):  # becomes part of folder names
        raise InputError(
            f"{home.join(MANIFEST)} names the build {build!r}, which is not a valid build name; "
            f"delete {home.path} to tokenise the rows again"
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
        **{name: manifest[name] for name in _COUNTS},
        groups_by_source=manifest["groups_by_source"],
        refused=manifest["refused"],
        duplicates=manifest["duplicates"],
        contradictions=manifest["contradictions"],
        revisions=manifest.get("revisions", {}),
        readings=tuple(map(ColumnReading.from_json, manifest["readings"])),
    )
