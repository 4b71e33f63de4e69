"""A mixture of sources: selection of rows, fingerprint, and a Ray dataset."""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import ray.data

from rm_ray.config.column_rules import NO_RULES, ColumnRules
from rm_ray.data.preferences.group_reading import has_preference
from rm_ray.data.published.forms import FORMS, find_form
from rm_ray.data.rows.column_hints import is_written_by_column, suggest_columns
from rm_ray.data.rows.columns import RowColumns
from rm_ray.data.sources.decompression import open_raw
from rm_ray.data.sources.discovery import locate
from rm_ray.data.sources.fragments import Fragment
from rm_ray.data.sources.readers import count_rows, generate_builtin, read_rows
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.data.sources.stored_datasets import load_dataset
from rm_ray.errors import InputError

logger = logging.getLogger(__name__)

ROWS_PER_BLOCK = 1_024
"""Rows that are tokenised in one batch."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A fragment and the ordinals of its selected rows; None selects all."""

    fragment: Fragment
    rows: np.ndarray | None = None
    entry: int = 0
    """Position of its source in the mixture."""


def select(
    specs: Sequence[SourceSpec],
    seed: int,
    *,
    any_of: Sequence[str] = (),
    rules: ColumnRules = NO_RULES,
) -> list[Selection]:
    """Select the rows of a mixture; deterministic for a seed and contents.

    Each source must have columns for a comparison group or, if given, for at least one part of
    ``any_of``; ``rules`` say how its rows are read.

    Raises:
        InputError: a source is missing or empty, or has the wrong columns or too few rows.
    """
    selections = []
    for entry, spec in enumerate(specs):
        source = locate(spec)
        fragments = source.fragments
        logger.info("data source '%s': %s", spec.text, source.read_as)
        _check_first_row(spec, fragments, any_of, rules)
        if spec.fraction in (None, 1.0) and spec.count is None:
            selections += [Selection(fragment=each, entry=entry) for each in fragments]
            continue
        sizes = [count_rows(fragment) for fragment in fragments]
        total = sum(sizes)
        wanted = round((spec.fraction or 0) * total) if spec.count is None else spec.count
        if not wanted:
            raise InputError(f"data source '{spec.text}' selects none of its {total} rows")
        if wanted > total:
            raise InputError(f"data source '{spec.text}' requests {wanted} of only {total} rows")
        rng = np.random.default_rng([seed, zlib.crc32(spec.location.encode())])
        chosen = np.sort(rng.permutation(total)[:wanted])
        starts = np.cumsum([0, *sizes])
        for fragment, start, stop in zip(fragments, starts, starts[1:], strict=False):
            rows = chosen[(chosen >= start) & (chosen < stop)] - start
            selections.append(Selection(fragment=fragment, rows=rows, entry=entry))
    return selections


def _check_first_row(
    spec: SourceSpec, fragments: Sequence[Fragment], any_of: Sequence[str], rules: ColumnRules
) -> None:
    first = next((row for f in fragments for _, row in islice(read_rows(f), 1)), None)
    if first is None:
        raise InputError(f"data source '{spec.text}' is empty: it has no rows")
    row = json.loads(first)
    names = list(row) if isinstance(row, dict) else [type(row).__name__]
    fields = row if isinstance(row, dict) else {}
    columns = RowColumns(fields, rules)
    if any_of:
        has_part = any(any(columns.candidates(part)) for part in any_of)
        is_known = has_part or find_form(tuple(fields), rules) is not None
    else:
        is_known = has_preference(fields, rules) and not is_written_by_column(row)
    if not is_known:
        wanted = f"one of the columns {', '.join(any_of)}" if any_of else _wanted(rules)
        hint = suggest_columns(fields)
        if any_of:
            hint = f"If they have other names, name them with --columns, as in {any_of[0]}=COLUMN"
        raise InputError(
            f"data source '{spec.text}' must have {wanted}; it has: {', '.join(names)}. {hint}"
        )


def _wanted(rules: ColumnRules) -> str:
    """Return which columns a source must have."""
    if rules.form in FORMS:
        form = FORMS[rules.form]
        return f"the columns of {form.dataset}, {', '.join(form.columns)} (data.form {form.name})"
    return "the columns 'chosen' and 'rejected', or 'responses' with 'ranks' or 'scores'"


def mixture_fingerprint(selections: Sequence[Selection]) -> str:
    """Hash the selected contents, independent of file locations."""
    digest = hashlib.sha256()
    for selection in selections:
        digest.update(_content_hash(selection.fragment).encode())
        digest.update(b"all" if selection.rows is None else selection.rows.tobytes())
    return digest.hexdigest()


def _content_hash(fragment: Fragment) -> str:
    if fragment.kind in ("hub", "saved"):
        return str(load_dataset(fragment)._fingerprint)
    digest = hashlib.sha256()
    if fragment.kind == "builtin":
        for row in generate_builtin(fragment.split or "train"):
            digest.update(json.dumps(row).encode())
    else:
        with open_raw(fragment.location) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def to_ray_dataset(selections: Sequence[Selection]) -> ray.data.Dataset:
    """Stream the selected rows as ``{fragment, row, json}``, in order, in small blocks."""

    def read(batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        for number in batch["fragment"]:
            yield from _blocks(int(number), selections[int(number)])

    items = [{"fragment": i} for i in range(len(selections))]
    return (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(read, batch_size=1, num_cpus=0.5)
        .repartition(target_num_rows_per_block=ROWS_PER_BLOCK)
    )


def read_selected(selection: Selection) -> Iterator[tuple[int, str]]:
    """Yield the selected rows as ``(row, JSON text)``."""
    rows = read_rows(selection.fragment)
    if selection.rows is None:
        yield from rows
        return
    wanted = set(selection.rows.tolist())
    yield from (row for ordinal, row in enumerate(rows) if ordinal in wanted)


def _blocks(number: int, selection: Selection) -> Iterator[dict[str, np.ndarray]]:
    rows = read_selected(selection)
    while block := list(islice(rows, ROWS_PER_BLOCK)):
        yield {
            "fragment": np.full(len(block), number, dtype=np.int32),
            "row": np.array([row for row, _ in block], dtype=np.int64),
            "json": np.array([text for _, text in block], dtype=object),
        }
