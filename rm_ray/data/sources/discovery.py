"""An entry of ``data.train`` or ``data.eval`` -> the files or splits it refers to."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem

from rm_ray.config.sections.data import BUILTIN
from rm_ray.data.sources import planted
from rm_ray.data.sources.folders import (
    HELD_OUT,
    DatasetCard,
    Files,
    list_dataset,
    list_folder,
    list_glob,
)
from rm_ray.data.sources.fragments import ENDINGS, Fragment, kind_of
from rm_ray.data.sources.readers import BUILTIN_SPLITS, sniff_kind
from rm_ray.data.sources.source_spec import SourceSpec, exists_locally
from rm_ray.data.sources.stored_datasets import is_saved, saved_splits
from rm_ray.errors import InputError

_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The fragments of an entry."""

    spec: SourceSpec
    fragments: tuple[Fragment, ...]
    read_as: str
    """One line on what was found and what is left out."""


def discover(spec: SourceSpec) -> list[Fragment]:
    """Find the fragments of a source.

    Raises:
        InputError: there is no such file, folder or dataset, or it holds no pairs.
    """
    return list(locate(spec).fragments)


def locate(spec: SourceSpec) -> Source:
    """Find the fragments of a source and describe how it is read.

    Raises:
        InputError: there is no such file, folder or dataset, or it holds no pairs.
    """
    location = spec.location
    if location == BUILTIN:
        split = spec.split or "train"
        if split not in BUILTIN_SPLITS:
            raise InputError(f"data source '{spec.text}': splits are {', '.join(BUILTIN_SPLITS)}")
        fragment = Fragment(kind="builtin", location=BUILTIN, split=split)
        rows = "planted preferences" if split in planted.SPLITS else "built-in pairs"
        return _source(spec, [fragment], f"{rows}, split '{split}'")
    if _is_path(location):
        return _locate_path(spec)
    if "=" in location:
        raise InputError(
            f"data source '{spec.text}': the share must be a fraction or a number of rows, "
            "as in =0.5 or =400"
        )
    fragment = Fragment(
        kind="hub", location=location, split=spec.split or "train", config=spec.config
    )
    return _source(spec, [fragment], f"dataset of the Hub, split '{fragment.split}'")


def _source(spec: SourceSpec, fragments: Sequence[Fragment], read_as: str) -> Source:
    return Source(spec=spec, fragments=tuple(fragments), read_as=read_as)


def _is_path(location: str) -> bool:
    looks_like_one = location.startswith(("/", "./", "../", "~")) or "://" in location
    is_file = kind_of(location) is not None or bool(_GLOB.search(location))
    return looks_like_one or is_file or exists_locally(location)


def _locate_path(spec: SourceSpec) -> Source:
    try:
        filesystem, path, prefix = _open_filesystem(spec.location)
        if filesystem.isfile(path):
            return _locate_file(spec, path if not prefix else spec.location)
        if filesystem.isdir(path):
            return _locate_folder(spec, filesystem, path, prefix)
        files = list_glob(filesystem, path) if _GLOB.search(path) else Files()
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"data source '{spec.text}' cannot be opened: {error}") from None
    if not any(files.by_split.values()):
        raise InputError(
            f"data source '{spec.text}': no such file, or nothing in it that ends in "
            f"{ENDINGS}; relative paths start at {Path.cwd()}{_hidden(files)}"
        )
    return _choose(spec, files, prefix)


def _open_filesystem(location: str) -> tuple[fsspec.AbstractFileSystem, str, str]:
    """Return a file system, the path on it, and its URL prefix ('' if local)."""
    if location.startswith("file://"):
        plain = location.removeprefix("file://")
        location = plain if os.path.lexists(plain) else unquote(plain)
    if "://" not in location:
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(location)), ""
    filesystem, path = fsspec.url_to_fs(location)
    return filesystem, path, filesystem.unstrip_protocol("").rstrip("/") or location.split("/")[0]


def _locate_file(spec: SourceSpec, path: str) -> Source:
    if spec.split:
        raise InputError(f"data source '{spec.text}': files have no split ':{spec.split}'")
    kind = kind_of(path) or sniff_kind(path)
    if kind is None:
        raise InputError(f"data source '{spec.text}' must end in {ENDINGS}")
    return _source(spec, [Fragment(kind=kind, location=path)], f"one file of {kind}")


def _locate_folder(
    spec: SourceSpec, filesystem: fsspec.AbstractFileSystem, path: str, prefix: str
) -> Source:
    if not prefix and not os.access(path, os.R_OK | os.X_OK):
        raise InputError(
            f"data source '{spec.text}': no permission to read the folder {path}; see 'ls -ld'"
        )
    names = {name.rstrip("/").rsplit("/", 1)[-1] for name in filesystem.ls(path, detail=False)}
    if is_saved(names):
        where = spec.location if prefix else path
        splits = saved_splits(filesystem, path)
        if spec.split and not splits:
            raise InputError(f"data source '{spec.text}': this dataset has no splits")
        split = _choose_split(spec, splits) if splits else None
        fragment = Fragment(kind="saved", location=where, split=split)
        return _source(spec, [fragment], "saved dataset" + (f", split '{split}'" if split else ""))
    if card := DatasetCard.read(filesystem, path):
        spec, patterns = _choose_config(spec, card)
        if patterns:
            return _choose(spec, list_dataset(filesystem, path, patterns), prefix)
    elif spec.config:
        raise InputError(f"data source '{spec.text}': this folder has no configuration")
    files = list_folder(filesystem, path)
    if not any(files.by_split.values()):
        raise InputError(
            f"data source '{spec.text}': no such file, or nothing in it that ends in {ENDINGS}; "
            f"{path} contains: {_listed(sorted(names))}"
            f"{_hidden(files)}"
        )
    return _choose(spec, files, prefix)


def _choose_config(spec: SourceSpec, card: DatasetCard) -> tuple[SourceSpec, dict[str, list[str]]]:
    """Return the chosen configuration's patterns, and the spec relative to it."""
    known = {name: [s for s in patterns if s] for name, patterns in card.configs.items()}
    config = spec.config or card.default
    if (
        spec.config is None
        and spec.split in known
        and spec.split not in known.get(config or "", [])
    ):
        config, spec = spec.split, replace(spec, split=None, config=spec.split)
    if config not in known:
        listed = "; ".join(f"{name}: {', '.join(splits)}" for name, splits in known.items())
        raise InputError(
            f"data source '{spec.text}' has several configurations; name one and a split, as in "
            f"'{spec.location}:CONFIG:SPLIT' ({listed})"
        )
    return spec, card.configs[config]


def _choose(spec: SourceSpec, files: Files, prefix: str) -> Source:
    """Select the files of the requested split, or all files if there is only one choice."""
    if spec.split is None and (not files.splits or not _is_a_choice(files.splits)):
        chosen = sorted(name for names in files.by_split.values() for name in names)
        split = None
    else:
        split = _choose_split(spec, files.splits, files)
        chosen = files.find_split(split) or []
    fragments = [Fragment(kind=kind_of(name) or "jsonl", location=prefix + name) for name in chosen]
    kinds = ", ".join(sorted({fragment.kind for fragment in fragments}))
    count = f"{len(chosen)} files" if len(chosen) > 1 else "one file"
    notes = [f"{count} of {kinds}" + (f", split '{split}'" if split else "")]
    notes[0] += _hidden(files)
    if split and files.by_split.get(""):
        notes.append(f"of no split, and left out: {_listed(files.by_split[''])}")
    if alike := _same_names(chosen):
        notes.append(f"of one name, so perhaps the same pairs twice: {_listed(alike)}")
    return _source(spec, fragments, "; ".join(notes))


def _is_a_choice(splits: Sequence[str]) -> bool:
    return len(splits) > 1 or bool(HELD_OUT.intersection(re.split(r"[^a-z]+", splits[0].lower())))


def _choose_split(spec: SourceSpec, splits: Sequence[str], files: Files | None = None) -> str:
    files = files or Files(by_split={split: [split] for split in splits})
    if spec.split is None and not _is_a_choice(splits):
        return splits[0]
    if spec.split is not None and files.find_split(spec.split) is not None:
        return spec.split if spec.split in splits else _namesake(files, spec.split)
    place = ":".join(part for part in (spec.location, spec.config) if part)
    if not splits:
        raise InputError(
            f"data source '{spec.text}': there is no split '{spec.split}': no README.md lists it "
            "under 'configs', and no file or folder has it in its name"
        )
    if spec.split is not None:
        raise InputError(f"data source '{spec.text}': splits are {', '.join(splits)}")
    unnamed = files.by_split.get("", [])
    loose = f"; name files without a split on their own: {_listed(unnamed)}" if unnamed else ""
    raise InputError(
        f"data source '{spec.text}' has the splits {', '.join(splits)}: name the one to read, "
        f"as in '{place}:{splits[0]}'{loose}"
    )


def _namesake(files: Files, wanted: str) -> str:
    ours = files.find_split(wanted)
    return next(s for s in files.splits if files.find_split(s) == ours)


def _same_names(names: Sequence[str]) -> list[str]:
    stems = [re.sub(r"(\.[A-Za-z0-9]{2,7}){1,2}$", "", name) for name in names]
    return [Path(n).name for n, stem in zip(names, stems, strict=True) if stems.count(stem) > 1]


def _hidden(files: Files) -> str:
    return f"; hidden, and left out: {_listed(files.hidden)}" if files.hidden else ""


def _listed(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more
