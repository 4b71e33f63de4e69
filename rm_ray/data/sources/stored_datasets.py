"""Datasets from the Hub or from ``save_to_disk``: splits, rows and revisions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import fsspec

from rm_ray.data.sources.columnar_rows import ROWS_PER_BATCH
from rm_ray.data.sources.fragments import Fragment
from rm_ray.data.sources.raw_json import arrow_rows
from rm_ray.errors import InputError

if TYPE_CHECKING:
    import datasets


def is_saved(names: set[str]) -> bool:
    """Return whether a folder with these entries was written by ``save_to_disk``."""
    if "dataset_dict.json" in names:
        return True
    if "dataset_info.json" not in names:
        return False
    # The cache of `datasets` also has this file, next to Arrow files named after the splits.
    arrow = [name for name in names if name.endswith(".arrow")]
    return "state.json" in names or all(name.startswith("data-") for name in arrow)


def saved_splits(filesystem: fsspec.AbstractFileSystem, path: str) -> list[str]:
    """Return the splits of a saved dataset, an empty list if it has none.

    Raises:
        InputError: the list of splits is malformed.
    """
    place = f"{path.rstrip('/')}/dataset_dict.json"
    if not filesystem.exists(place):
        return []
    try:
        return [str(name) for name in json.loads(filesystem.cat_file(place))["splits"]]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{place} is not a valid list of splits: {error}") from None


def read_dataset(fragment: Fragment) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Hub or saved dataset from its Arrow data, ignoring any set format."""
    for table in load_dataset(fragment).with_format("arrow").iter(batch_size=ROWS_PER_BATCH):
        for batch in table.to_batches():
            yield from arrow_rows(batch)


def load_dataset(fragment: Fragment) -> datasets.Dataset:
    """Load a split of a Hub or saved dataset.

    Raises:
        InputError: it cannot be found or reached, or has no such split.
    """
    if fragment.kind == "saved":
        return _load_saved(fragment)
    import datasets  # takes seconds to import, and most runs read plain files

    config = {"name": fragment.config} if fragment.config else {}
    try:
        return datasets.load_dataset(fragment.location, split=fragment.split, **config)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0]
        choices = _choices(fragment) if isinstance(error, ValueError) else ""  # the Hub answered
        raise InputError(
            f"data source '{fragment.origin}' is not a local file or folder, and cannot be loaded "
            "from the Hugging Face Hub: check its spelling and split, and that this machine can "
            "reach the Hub (HF_TOKEN for a gated dataset, HF_ENDPOINT for a mirror)."
            f"{choices} {reason}"
        ) from None


def _load_saved(fragment: Fragment) -> datasets.Dataset:
    import datasets

    try:
        loaded = datasets.load_from_disk(fragment.location)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"data source '{fragment.origin}' is not an intact saved dataset: {error}"
        ) from None
    if isinstance(loaded, datasets.Dataset):
        if fragment.split:
            raise InputError(f"data source '{fragment.origin}': this dataset has no splits")
        return loaded
    if fragment.split not in loaded:
        raise InputError(f"data source '{fragment.origin}': splits are {', '.join(loaded)}")
    return loaded[fragment.split]


def _choices(fragment: Fragment) -> str:
    """Return a sentence on the Hub dataset's configurations and splits, '' if unknown."""
    import datasets

    try:
        configs = datasets.get_dataset_config_names(fragment.location)
        names = [name for name in configs if fragment.config in (name, None)] or configs
        splits = {c: datasets.get_dataset_split_names(fragment.location, c) for c in names[:8]}
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError):
        return ""
    return _name_choices(fragment.location, configs, splits)


def _name_choices(location: str, configs: Sequence[str], splits: dict[str, list[str]]) -> str:
    if len(configs) < 2:
        only = next(iter(splits.values()), [])
        return (
            f" It has the splits {', '.join(only)}, as in '{location}:{only[0]}'." if only else ""
        )
    listed = "; ".join(f"{config}: {', '.join(names)}" for config, names in splits.items())
    more = f" and {len(configs) - 8} more" if len(configs) > 8 else ""
    return (
        f" Name one of its configurations and a split, '{location}:CONFIG:SPLIT' ({listed}{more})."
    )


def find_revision(fragment: Fragment) -> str | None:
    """Return the commit that a Hub dataset was read at; None for other fragments."""
    if fragment.kind != "hub":
        return None
    loaded = load_dataset(fragment)
    places = [*(loaded.info.download_checksums or {}), *(f["filename"] for f in loaded.cache_files)]
    commits = (re.search(r"[@/]([0-9a-f]{40})/", place) for place in places)
    return next((commit[1] for commit in commits if commit), None)
