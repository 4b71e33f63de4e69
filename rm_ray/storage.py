"""A folder that every machine of the cluster can reach: local, network mount, or object store."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
from pyarrow import fs as pafs

from rm_ray.errors import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")

DRAFT = ".tmp"
"""Suffix of a file that is being written; a kill may leave one behind."""

BLOCK = 2**20
"""Bytes read from a file at a time."""


def keep_trying(
    action: Callable[[], T],
    *,
    what: str,
    patience_s: float,
    on_wait: Callable[[], None] = lambda: None,
) -> T:
    """Retry a storage operation for up to ``patience_s`` seconds; the log calls it ``what``.

    ``on_wait`` is called every second between tries.

    Raises:
        OSError: the last failure, once ``patience_s`` has passed.
    """
    give_up, delay = time.monotonic() + patience_s, 1
    while True:
        try:
            return action()
        except OSError as error:
            if time.monotonic() > give_up:
                raise
            if delay == 1:
                logger.warning("%s failed, retrying: %s", what, error)
        for _ in range(delay):
            time.sleep(1)
            on_wait()
        delay = min(2 * delay, 30)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file or folder of a storage."""

    name: str
    """Relative to the listed folder, or as requested."""
    path: str
    size: int | None
    """Bytes of a file; None for a folder."""
    is_file: bool
    is_folder: bool
    modified: float | None
    """Last write by the storage's clock, in Unix seconds."""


@dataclass(frozen=True)
class Storage:
    """A folder on a pyarrow filesystem; its methods take names relative to the folder."""

    filesystem: pafs.FileSystem
    path: str

    @classmethod
    def open(cls, uri: str) -> Storage:
        """Open a local path, or a URI whose scheme pyarrow or fsspec supports.

        Raises:
            InputError: the scheme is unknown or its package is not installed.
        """
        if "://" not in uri:
            return cls(pafs.LocalFileSystem(), str(Path(uri).expanduser().resolve()))
        try:
            return cls(*pafs.FileSystem.from_uri(uri))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass  # fsspec may support the scheme
        except OSError as error:
            raise InputError(f"run.storage_path '{uri}' cannot be opened: {error}") from None
        try:
            filesystem, path = fsspec.url_to_fs(uri)
        except (ValueError, ImportError) as error:
            raise InputError(f"run.storage_path '{uri}' cannot be opened: {error}") from None
        return cls(pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path)

    def folder(self, name: str) -> Storage:
        """Return a folder below this one."""
        return Storage(self.filesystem, self.join(name))

    def join(self, name: str) -> str:
        """Return the full path of a name, in the filesystem's own format."""
        return f"{self.path.rstrip('/')}/{name}"

    @property
    def is_local(self) -> bool:
        """Whether paths can be opened as ordinary files on this machine."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def free_bytes(self) -> int | None:
        """Return the free bytes; None if unknown, as in an object store."""
        return shutil.disk_usage(self.path).free if self.is_local else None

    def check_writable(self, option: str = "run.storage_path") -> None:
        """Write, read and delete a small file; ``option`` names the folder in errors.

        Raises:
            InputError: an operation failed.
        """
        try:
            self.probe()
        except OSError as error:
            raise InputError(
                f"{option} '{self.path}' cannot be written: {error}. Set --{option} to a folder or "
                "URI that this user can write to"
            ) from None

    def probe(self) -> None:
        """Write a small file, read it back and delete it.

        Raises:
            OSError: an operation failed.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        self.write_text(probe, probe)
        if self.read_text(probe) != probe:
            raise OSError("a test file does not read back as written")
        self.filesystem.delete_file(self.join(probe))

    def exists(self, name: str) -> bool:
        """Return whether a file or folder exists."""
        return bool(self.filesystem.get_file_info(self.join(name)).type != pafs.FileType.NotFound)

    def modified(self, name: str) -> float | None:
        """Return the time of a file's last write by the storage's clock, in Unix seconds."""
        return self.look_up([name])[0].modified

    def look_up(self, names: Sequence[str]) -> Sequence[Entry]:
        """Return the entry of each name in one call; a missing one is neither file nor folder."""
        found = self.filesystem.get_file_info([self.join(name) for name in names])
        return [_entry(name, info) for name, info in zip(names, found, strict=True)]

    def list(self, name: str = "", *, recursive: bool = False) -> Sequence[Entry]:
        """Return a folder's entries, sorted by name; nothing if it is missing.

        With ``recursive``, entries of nested folders are included under their base names.
        """
        selector = pafs.FileSelector(
            self.join(name).rstrip("/"), allow_not_found=True, recursive=recursive
        )
        found = (_entry(info.base_name, info) for info in self.filesystem.get_file_info(selector))
        return sorted(found, key=lambda entry: entry.name)

    def read_blocks(self, name: str) -> Iterator[bytes]:
        """Yield a file's bytes, up to 1 MiB at a time."""
        with self.filesystem.open_input_stream(self.join(name)) as stream:
            while block := stream.read(BLOCK):
                yield block

    def read_text(self, name: str) -> str:
        """Return a file's text."""
        with self.filesystem.open_input_stream(self.join(name)) as stream:
            text: str = stream.read().decode()
            return text

    def write_text(self, name: str, text: str) -> None:
        """Write a file atomically: readers see the old text or the new text, never a part.

        This holds on local file systems, network mounts and object stores.
        """
        self.write_pieces(name, [text])

    def write_pieces(self, name: str, pieces: Iterable[str]) -> None:
        """Write a text that arrives in pieces, atomically like ``write_text``."""
        self.filesystem.create_dir(os.path.dirname(self.join(name)), recursive=True)
        target = self.join(name)
        if not self.is_local:
            with self.filesystem.open_output_stream(target) as stream:
                for piece in pieces:
                    stream.write(piece.encode())
            return
        draft = Path(f"{target}.{uuid.uuid4().hex}{DRAFT}")
        try:
            with draft.open("wb") as file:
                for piece in pieces:
                    file.write(piece.encode())
            _sync(str(draft))
            draft.rename(target)
        finally:
            draft.unlink(missing_ok=True)

    def read_json(self, name: str) -> Any:
        """Return a file's JSON value, or None if the file is missing.

        Raises:
            InputError: the file is not JSON, for example because a disk was full.
        """
        if not self.exists(name):
            return None
        try:
            return json.loads(self.read_text(name))
        except ValueError as error:
            raise InputError(
                f"{self.join(name)} is not valid JSON ({error}); restore it, or delete its folder"
            ) from None

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON value atomically."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def delete_file(self, name: str) -> None:
        """Delete a file, if it exists."""
        if self.exists(name):
            self.filesystem.delete_file(self.join(name))

    def delete_drafts(self) -> None:
        """Delete this folder's drafts, left behind by kills."""
        for entry in self.list():
            if entry.name.endswith(DRAFT):
                self.filesystem.delete_file(entry.path)

    def delete(self, name: str) -> None:
        """Delete a folder and its contents."""
        self.filesystem.delete_dir(self.join(name))

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """Yield a local path to a file: the file itself, or a temporary copy."""
        if self.is_local:
            yield Path(self.join(name))
            return
        with tempfile.TemporaryDirectory(prefix="rm_ray-copy-") as folder:
            copy = Path(folder) / Path(name).name
            pafs.copy_files(
                self.join(name),
                str(copy),
                source_filesystem=self.filesystem,
                destination_filesystem=pafs.LocalFileSystem(),
            )
            yield copy

    def local_copies(self, names: Iterable[str]) -> Iterator[Path]:
        """Yield files like ``local_copy``, with at most one copy on disk at a time."""
        for name in names:
            with self.local_copy(name) as path:
                yield path

    @contextmanager
    def local_folder(self) -> Iterator[Path]:
        """Yield a local path to this folder: the folder itself, or a temporary copy."""
        if self.is_local:
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory(prefix="rm_ray-copy-") as copy:
            self.download(Path(copy))
            yield Path(copy)

    def download(self, local: Path) -> None:
        """Copy this folder to a local one."""
        pafs.copy_files(
            self.path,
            str(local),
            source_filesystem=self.filesystem,
            destination_filesystem=pafs.LocalFileSystem(),
        )

    def upload(self, local: Path, name: str) -> None:
        """Copy a local folder here, synced to disk if this storage is local."""
        target = self.join(name)
        self.filesystem.create_dir(target, recursive=True)
        pafs.copy_files(
            str(local),
            target,
            source_filesystem=pafs.LocalFileSystem(),
            destination_filesystem=self.filesystem,
        )
        if self.is_local:
            for copied in local.rglob("*"):
                _sync(os.path.join(target, copied.relative_to(local)))
            _sync(target)


def below(place: str, name: str) -> str:
    """Append a name to a folder's path or URI; a URI's query stays at the end."""
    if "://" not in place:
        return f"{place.rstrip('/')}/{name}"
    path, mark, query = place.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def _entry(name: str, info: pafs.FileInfo) -> Entry:
    written: int | None = info.mtime_ns
    return Entry(
        name=name,
        path=info.path,
        size=info.size,
        is_file=info.type == pafs.FileType.File,
        is_folder=info.type == pafs.FileType.Directory,
        modified=None if written is None else written / 1e9,
    )


def _sync(path: str) -> None:
    """Flush a file's contents, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
