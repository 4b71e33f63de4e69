"""A folder or glob -> its data files by split; hidden files are left out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec
import yaml

from rm_ray.data.sources.fragments import kind_of
from rm_ray.errors import InputError

HELD_OUT = {
    "test", "tests", "testing", "validation", "valid", "val", "dev", "eval", "evals", "evaluation",
    "holdout", "heldout", "held", "benchmark",
}  # fmt: skip
"""Splits that must not be trained on unless named."""

_SAME_SPLIT = {
    "training": "train", "valid": "validation", "val": "validation", "dev": "validation",
    "testing": "test", "tests": "test", "evals": "eval", "heldout": "holdout", "held": "holdout",
    "held_out": "holdout",
}  # fmt: skip
"""Aliases of splits."""

_SPLIT_WORDS = {"train", "training", *HELD_OUT}

_CAMEL_CASE = re.compile(r"(?<=[A-Za-z])(?=(?:Set|Split|Data)(?![a-z]))")
"""Start of the second word in ``trainSet`` and ``TESTSet``; ``DevOps`` is a single word."""

_SHARD = re.compile(r"^(?P<name>.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?$")

_NO_DATA = {
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json",
    "croissant.json", "package.json", "data_files.json",
}  # fmt: skip
"""Files that describe a dataset and hold no rows."""

_SYSTEM_FOLDERS = {
    "$RECYCLE.BIN", "#recycle", "@eaDir", "lost+found", "System Volume Information", "Trash"
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Files:
    """The data files of a folder or glob, by split."""

    by_split: dict[str, list[str]] = field(default_factory=dict)
    """Paths in order; ``""`` holds files without a split."""
    hidden: tuple[str, ...] = ()
    """Data files left out because they, or a folder above them, are hidden."""
    others: tuple[str, ...] = ()
    """Files of unknown format."""

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return [name for name in self.by_split if name]

    def find_split(self, wanted: str) -> list[str] | None:
        """Return the files of a split, by its name or an alias; None if unknown."""
        same = _SAME_SPLIT.get(wanted, wanted)
        alike = [s for s in self.splits if s == wanted or _SAME_SPLIT.get(s, s) == same]
        exact = [wanted] if wanted in self.by_split else alike
        return sorted(f for split in exact for f in self.by_split[split]) if exact else None


def is_hidden(parts: Sequence[str]) -> bool:
    """Return whether a relative path is hidden, in a hidden folder, or in the trash."""
    return any(
        part.startswith((".", "_", "~$")) or part.endswith("~") or part in _SYSTEM_FOLDERS
        for part in parts
    ) or bool(re.match(r"cache-[0-9a-f]+.*\.arrow$", parts[-1]))


def list_folder(filesystem: fsspec.AbstractFileSystem, path: str) -> Files:
    """Find the data files below a folder; file and folder names give the splits."""
    path = path.rstrip("/") or "/"
    return _sort(path, filesystem.find(path))


def list_glob(filesystem: fsspec.AbstractFileSystem, pattern: str) -> Files:
    """Find the data files that match; hidden ones only if the pattern names them."""
    parts = pattern.split("/")
    first = next((i for i, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts) - 1)
    asks_for_hidden = any(is_hidden([part]) for part in parts[first:])
    found = [name for name in filesystem.glob(pattern) if filesystem.isfile(name)]
    return _sort("/".join(parts[:first]), found, keep_hidden=asks_for_hidden)


def _sort(base: str, found: Iterable[str], *, keep_hidden: bool = False) -> Files:
    data, hidden, others = [], [], []
    for name in sorted(found):
        below = name[len(base) :].lstrip("/").split("/")
        if kind_of(name) is None or below[-1] in _NO_DATA:
            others.append(name)
        elif is_hidden(below) and not keep_hidden:
            hidden.append("/".join(below))
        else:
            data.append((name, tuple(below)))
    by_split: dict[str, list[str]] = {}
    for name, split in zip([n for n, _ in data], _splits([b for _, b in data]), strict=True):
        by_split.setdefault(split, []).append(name)
    return Files(by_split=by_split, hidden=tuple(hidden), others=tuple(others))


def _splits(paths: Sequence[Sequence[str]]) -> list[str]:
    """Return the split of each file ('' for none), by words in its name or its folders' names.

    If any file has such a word, shards (``NAME-00000-of-00002``) have the split NAME.
    """
    by_word = [_split_word(path) for path in paths]
    if not any(by_word):
        return by_word
    shards = [_SHARD.match(path[-1].split(".")[0]) for path in paths]
    names = [shard["name"] if shard else "" for shard in shards]
    return [
        name if re.fullmatch(r"\w+", name) and not _depends_on_case(name) else word
        for name, word in zip(names, by_word, strict=True)
    ]


def _depends_on_case(name: str) -> bool:
    return _split_word([name]) != _split_word([name.lower()])


def _split_word(path: Sequence[str]) -> str:
    for part in reversed(path):
        words = re.split(r"[^a-z]+", _CAMEL_CASE.sub("_", part).lower())
        if found := next((word for word in words if word in _SPLIT_WORDS), None):
            return found
    return ""


@dataclass(frozen=True, kw_only=True)
class DatasetCard:
    """File patterns by configuration and split, from a dataset's README.md."""

    configs: dict[str, dict[str, list[str]]]
    default: str | None

    @classmethod
    def read(cls, filesystem: fsspec.AbstractFileSystem, path: str) -> DatasetCard | None:
        """Read the ``configs`` of a folder's README.md, or return None if it has none.

        Raises:
            InputError: they are malformed.
        """
        place = f"{path.rstrip('/')}/README.md"
        if not filesystem.isfile(place):
            return None
        text = filesystem.cat_file(place).decode("utf-8-sig", "replace").replace("\r\n", "\n")
        if not (front := re.match(r"\s*---\n(.*?)\n---\s*(?:\n|$)", text, re.DOTALL)):
            return None
        try:
            settings = yaml.safe_load(front[1])
            configs = settings.get("configs") if isinstance(settings, dict) else None
            if not configs:
                return None
            named = {str(c.get("config_name", "default")): _patterns(c) for c in configs}
            marked = [str(c["config_name"]) for c in configs if c.get("default")]
        except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{place}: cannot read its 'configs': {reason}") from None
        default = next(
            iter(marked or [n for n in named if n == "default" or len(named) == 1]), None
        )
        return cls(configs=named, default=default)


def _patterns(config: dict[str, Any]) -> dict[str, list[str]]:
    """Return a configuration's patterns by split; {} if it names no files."""
    files, base = config.get("data_files"), str(config.get("data_dir") or "")
    prefix = f"{base.strip('/')}/" if base.strip("/.") else ""
    if files is None:
        return {"": [f"{prefix}**"]} if prefix else {}
    if isinstance(files, dict):
        entries = [{"split": split, "path": path} for split, path in files.items()]
    else:
        listed = files if isinstance(files, list) else [files]
        entries = [e if isinstance(e, dict) else {"split": "train", "path": e} for e in listed]
    patterns: dict[str, list[str]] = {}
    for entry in entries:
        paths = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
        patterns.setdefault(str(entry["split"]), []).extend(prefix + str(p) for p in paths)
    return patterns


def list_dataset(
    filesystem: fsspec.AbstractFileSystem, path: str, patterns: dict[str, list[str]]
) -> Files:
    """Find the files of one configuration in a dataset's folder.

    Raises:
        InputError: a split has no file.
    """
    base = path.rstrip("/")
    everything = filesystem.find(base)
    by_split: dict[str, list[str]] = {}
    for split, wanted in patterns.items():
        matched = [f for p in wanted for f in everything if _matches(f[len(base) + 1 :], p)]
        found = _sort(base, dict.fromkeys(matched), keep_hidden=True)
        for part, names in found.by_split.items():
            by_split.setdefault(split or part, []).extend(names)
        if split and not by_split.get(split):
            raise InputError(
                f"{base}/README.md says that the split '{split}' is in {', '.join(wanted)}, but "
                "no such file of a known format exists; download the whole dataset"
            )
    return Files(by_split={split: sorted(set(names)) for split, names in by_split.items()})


def _matches(name: str, pattern: str) -> bool:
    pattern = pattern.removeprefix("./").rstrip("/")
    is_named = name == pattern or name.startswith(f"{pattern}/")
    return is_named or bool(re.match(fsspec.utils.glob_translate(pattern), name))
