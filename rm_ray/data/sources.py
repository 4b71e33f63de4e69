"""Where pairs come from: files, folders, Hub datasets or the built-in -> raw rows."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from rm_ray.config import BUILTIN
from rm_ray.data import synthetic
from rm_ray.data.raw_json import arrow_rows, to_json
from rm_ray.data.token_table import ROWS_PER_BATCH
from rm_ray.errors import InputError

if TYPE_CHECKING:
    import datasets

_SPEC = re.compile(r"^(?P<location>.+?)(?::(?P<split>[^:/=]+))?(?:=(?P<share>[0-9.]+))?$")
_SUFFIXES = {".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".parquet": "parquet"}

Kind = Literal["jsonl", "parquet", "hub", "saved", "builtin"]


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """A parsed entry of ``data.train`` or ``data.eval``."""

    text: str
    location: str
    split: str | None = None
    fraction: float | None = None
    count: int | None = None

    @classmethod
    def parse(cls, text: str) -> SourceSpec:
        """Read ``path-or-dataset[:split][=0.5|=400]``.

        Raises:
            InputError: it has another form, or the share is out of range.
        """
        match = _SPEC.match(text.strip())
        if match is None:
            raise InputError(f"data source '{text}' must look like path-or-dataset[:split][=share]")
        share = match["share"]
        if share and (share == "." or share.count(".") > 1):
            raise InputError(f"data source '{text}': the share '{share}' is no number")
        fraction = float(share) if share and "." in share else None
        count = int(share) if share and "." not in share else None
        if fraction is not None and not 0 < fraction <= 1:
            raise InputError(f"data source '{text}': a fraction must be above 0 and at most 1.0")
        if count is not None and count < 1:
            raise InputError(f"data source '{text}': a number of rows must be at least 1")
        return cls(
            text=text,
            location=match["location"],
            split=match["split"],
            fraction=fraction,
            count=count,
        )


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """One piece that is read in order: a file, or a split of a dataset."""

    kind: Kind
    location: str
    split: str | None = None

    @property
    def origin(self) -> str:
        """How tables and the quarantine file call it."""
        return f"{self.location}:{self.split}" if self.split else self.location


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A fragment and the ordinals of the rows taken from it; none: all of them."""

    fragment: Fragment
    rows: np.ndarray | None = None


def resolve(spec: SourceSpec) -> list[Fragment]:
    """Find the fragments of a source.

    Raises:
        InputError: there is no such file, folder or dataset, or it holds no pairs.
    """
    location = spec.location
    if location == BUILTIN:
        split = spec.split or "train"
        if split not in synthetic.SPLITS:
            raise InputError(f"data source '{spec.text}': splits are {', '.join(synthetic.SPLITS)}")
        return [Fragment(kind="builtin", location=BUILTIN, split=split)]
    if _is_path(location):
        return _resolve_path(spec)
    if "=" in location:
        raise InputError(
            f"data source '{spec.text}': a share must be a fraction like 0.5 or a number of rows "
            "like 400"
        )
    return [Fragment(kind="hub", location=location, split=spec.split or "train")]


def _is_path(location: str) -> bool:
    looks_like_one = location.startswith(("/", "./", "../", "~")) or "://" in location
    is_file = _kind_of(location) is not None or any(c in location for c in "*?[")
    return looks_like_one or is_file or Path(location).exists()


def _kind_of(path: str) -> Kind | None:
    for suffix, kind in _SUFFIXES.items():
        if path.endswith(suffix):
            return kind  # type: ignore[return-value]
    return None


def _resolve_path(spec: SourceSpec) -> list[Fragment]:
    location = spec.location if "://" in spec.location else str(Path(spec.location).expanduser())
    try:
        filesystem, path = fsspec.url_to_fs(location)
        found = _list_files(filesystem, path)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"data source '{spec.text}' cannot be opened: {error}") from None
    if found is None:
        where = location if "://" in location else path
        return [Fragment(kind="saved", location=where, split=spec.split)]
    if not found:
        raise InputError(
            f"data source '{spec.text}': no such file, or nothing in it that ends in "
            f"{', '.join(_SUFFIXES)}; relative paths start at {Path.cwd()}"
        )
    if spec.split:
        raise InputError(f"data source '{spec.text}': files have no split ':{spec.split}'")
    if _kind_of(found[0]) is None:
        raise InputError(f"data source '{spec.text}' must end in {', '.join(_SUFFIXES)}")
    if "://" in spec.location:
        found = [filesystem.unstrip_protocol(name) for name in found]
    return [Fragment(kind=_kind_of(name) or "jsonl", location=name) for name in sorted(found)]


def _list_files(filesystem: fsspec.AbstractFileSystem, path: str) -> list[str] | None:
    """Return the files of rows at a path; None where a dataset of ``save_to_disk`` is there."""
    if filesystem.isfile(path):
        return [path]
    if not filesystem.isdir(path):
        return [name for name in filesystem.glob(path) if _kind_of(name)]
    inside = {name.rsplit("/", 1)[-1] for name in filesystem.ls(path, detail=False)}
    if inside & {"dataset_info.json", "dataset_dict.json"}:
        return None
    return [name for name in filesystem.find(path) if _kind_of(name)]


def select(
    specs: Sequence[SourceSpec], seed: int, *, any_of: Sequence[str] = ()
) -> list[Selection]:
    """Choose the rows of a mixture; the same for the same seed and contents.

    Rows have the columns of a pair or, where given, ``any_of`` some.

    Raises:
        InputError: a source is missing, empty, has the wrong columns or too few rows.
    """
    selections = []
    for spec in specs:
        fragments = resolve(spec)
        _check_first_row(spec, fragments, any_of)
        if spec.fraction in (None, 1.0) and spec.count is None:
            selections += [Selection(fragment=fragment) for fragment in fragments]
            continue
        sizes = [count_rows(fragment) for fragment in fragments]
        total = sum(sizes)
        wanted = round((spec.fraction or 0) * total) if spec.count is None else spec.count
        if not wanted:
            raise InputError(f"data source '{spec.text}' comes to no row of {total}")
        if wanted > total:
            raise InputError(f"data source '{spec.text}' asks for {wanted} rows of {total}")
        rng = np.random.default_rng([seed, zlib.crc32(spec.location.encode())])
        chosen = np.sort(rng.permutation(total)[:wanted])
        starts = np.cumsum([0, *sizes])
        for fragment, start, stop in zip(fragments, starts, starts[1:], strict=False):
            rows = chosen[(chosen >= start) & (chosen < stop)] - start
            selections.append(Selection(fragment=fragment, rows=rows))
    return selections


def _check_first_row(spec: SourceSpec, fragments: list[Fragment], any_of: Sequence[str]) -> None:
    first = next((row for f in fragments for _, row in islice(read_rows(f), 1)), None)
    if first is None:
        raise InputError(f"data source '{spec.text}' is empty: it has no rows")
    row = json.loads(first)
    columns = list(row) if isinstance(row, dict) else [type(row).__name__]
    wanted = set(any_of) & set(columns) if any_of else {"chosen", "rejected"} <= set(columns)
    if not wanted:
        rule = (
            f"one of the columns {', '.join(any_of)}"
            if any_of
            else "the columns 'chosen' and 'rejected'"
        )
        raise InputError(
            f"data source '{spec.text}' must have {rule}; it has: {', '.join(columns)}"
        )


def read_rows(fragment: Fragment) -> Iterator[tuple[int, str]]:
    """Yield ``(row, JSON text)`` in order; ``row`` counts from 0 and is the line in JSON Lines.

    Raises:
        InputError: the file is broken; names the line.
    """
    if fragment.kind == "jsonl":
        yield from _read_json_lines(fragment.location)
        return
    for i, row in enumerate(_read_objects(fragment)):
        yield i, to_json(row)


def _read_json_lines(path: str) -> Iterator[tuple[int, str]]:
    for i, raw in _read_lines(path):
        yield i, _checked_json(raw, f"{path}, line {i + 1}")


def _read_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank."""
    try:
        with fsspec.open(path, "rb", compression="infer") as lines:
            yield from ((i, raw) for i, raw in enumerate(lines) if raw.strip())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _checked_json(raw: bytes, where: str) -> str:
    try:
        text = raw.decode()
        json.loads(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text ({error})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where}: not valid JSON ({_reason(error)}); each line must be one object with "
            "'chosen' and 'rejected'"
        ) from None
    return text


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return str(error)


def _read_objects(fragment: Fragment) -> Iterator[dict[str, Any]]:
    if fragment.kind == "builtin":
        yield from synthetic.generate_pairs(fragment.split or "train")
    elif fragment.kind == "parquet":
        with _open_parquet(fragment.location) as file:
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH):
                yield from arrow_rows(batch)
    else:
        loaded = load_dataset(fragment).with_format("arrow")
        for table in loaded.iter(batch_size=ROWS_PER_BATCH):
            for batch in table.to_batches():
                yield from arrow_rows(batch)


@contextmanager
def _open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    try:
        with fsspec.open(path, "rb") as file:
            yield pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a Parquet file, or a damaged one: {error}") from None


def load_dataset(fragment: Fragment) -> datasets.Dataset:
    """Load a split of a Hub or saved dataset.

    Raises:
        InputError: it cannot be found or reached, or has no such split.
    """
    import datasets  # seconds to import, and most runs read plain files

    if fragment.kind == "saved":
        try:
            loaded = datasets.load_from_disk(fragment.location)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"data source '{fragment.origin}' is not a whole saved dataset: {error}"
            ) from None
        if isinstance(loaded, datasets.Dataset):
            if fragment.split:
                raise InputError(f"data source '{fragment.origin}': this dataset has no splits")
            return loaded
        split = fragment.split or "train"
        if split not in loaded:
            raise InputError(f"data source '{fragment.origin}': splits are {', '.join(loaded)}")
        return loaded[split]
    try:
        return datasets.load_dataset(fragment.location, split=fragment.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"data source '{fragment.origin}' is no file or folder here and cannot be loaded from "
            "the Hugging Face Hub: check its spelling and split, and that this machine reaches the "
            f"Hub (HF_TOKEN for a gated one, HF_ENDPOINT for a mirror). {reason}"
        ) from None


def count_rows(fragment: Fragment) -> int:
    """Return the number of rows, read as cheaply as the format allows."""
    if fragment.kind == "builtin":
        return synthetic.SPLITS[fragment.split or "train"]
    if fragment.kind == "parquet":
        with _open_parquet(fragment.location) as file:
            return int(file.metadata.num_rows)
    if fragment.kind == "jsonl":
        return sum(1 for _ in _read_lines(fragment.location))
    return len(load_dataset(fragment))


def find_revision(fragment: Fragment) -> str | None:
    """Return the commit that a dataset of the Hub was read at; None for others."""
    if fragment.kind != "hub":
        return None
    loaded = load_dataset(fragment)
    places = [*(loaded.info.download_checksums or {}), *(f["filename"] for f in loaded.cache_files)]
    commits = (re.search(r"[@/]([0-9a-f]{40})/", place) for place in places)
    return next((commit[1] for commit in commits if commit), None)


def fingerprint(selections: Sequence[Selection]) -> str:
    """Hash the contents of what is selected; moving a file does not change it."""
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
        for row in synthetic.generate_pairs(fragment.split or "train"):
            digest.update(json.dumps(row).encode())
    else:
        with fsspec.open(fragment.location, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def to_ray_dataset(selections: Sequence[Selection]) -> ray.data.Dataset:
    """Stream the selected rows as ``{fragment, row, json}``, in order, by blocks of few rows."""

    def read(batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        for number in batch["fragment"]:
            yield from _blocks(int(number), selections[int(number)])

    items = [{"fragment": i} for i in range(len(selections))]
    return (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(read, batch_size=1, num_cpus=0.5)
        .repartition(target_num_rows_per_block=ROWS_PER_BATCH)
    )


def read_selected(selection: Selection) -> Iterator[tuple[int, str]]:
    """Yield the rows of a selection, as ``read_rows`` does."""
    rows = read_rows(selection.fragment)
    if selection.rows is None:
        yield from rows
        return
    wanted = set(selection.rows.tolist())
    yield from (row for ordinal, row in enumerate(rows) if ordinal in wanted)


def _blocks(number: int, selection: Selection) -> Iterator[dict[str, np.ndarray]]:
    rows = read_selected(selection)
    while block := list(islice(rows, ROWS_PER_BATCH)):
        yield {
            "fragment": np.full(len(block), number, dtype=np.int32),
            "row": np.array([row for row, _ in block], dtype=np.int64),
            "json": np.array([text for _, text in block], dtype=object),
        }
