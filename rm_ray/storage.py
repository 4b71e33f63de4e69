"""A folder that every machine of the cluster reaches: local, network mount, or object store."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
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
"""Suffix of a file that is being written; a kill may leave one."""


def keep_trying(
    action: Callable[[], T],
    *,
    what: str,
    patience_s: float,
    on_wait: Callable[[], None] = lambda: None,
) -> T:
    """Do something with a storage that may fail for a while, ``what`` in the log.

    ``on_wait`` is called every second in between.

    Raises:
        OSError: the last failure, once patience is over.
    """
    give_up, delay = time.monotonic() + patience_s, 1
    while True:
        try:
            return action()
        except OSError as error:
            if time.monotonic() > give_up:
                raise
            if delay == 1:
                logger.warning("%s fails, and is tried again: %s", what, error)
        for _ in range(delay):
            time.sleep(1)
            on_wait()
        delay = min(2 * delay, 30)


def local_home() -> Path:
    """Return the folder of this machine for this user's tables and staged checkpoints.

    Raises:
        InputError: it cannot be made, or belongs to someone else, who could read them and put in
            others.
    """
    try:
        return private_folder(Path(tempfile.gettempdir()))
    except OSError as error:
        raise InputError(
            "this user can make no folder for tables and checkpoints at "
            f"'{error.filename or 'TMPDIR'}': {error.strerror or error}; set TMPDIR to a folder "
            "that it may write to"
        ) from None


def private_folder(parent: Path) -> Path:
    """Return the folder of this user alone in a folder that others share, made if need be.

    Raises:
        InputError: it belongs to someone else.
        OSError: it cannot be made.
    """
    home = parent / f"rm_ray-{os.getuid()}"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = home.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
        raise InputError(
            f"{home} belongs to another user, or others may write to it; remove it, or set TMPDIR "
            "to another folder"
        )
    home.chmod(0o700)
    return home


@dataclass(frozen=True)
class Storage:
    """A folder on a pyarrow filesystem; names passed to its methods are relative to it."""

    filesystem: pafs.FileSystem
    path: str

    @classmethod
    def open(cls, uri: str) -> Storage:
        """Open a local path or a URI of a scheme that pyarrow or fsspec knows.

        Raises:
            InputError: the scheme is unknown or its package is not installed.
        """
        if "://" not in uri:
            return cls(pafs.LocalFileSystem(), str(Path(uri).expanduser().resolve()))
        try:
            return cls(*pafs.FileSystem.from_uri(uri))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass  # a scheme that fsspec may know
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
        """Return the full path of a name, in the filesystem's own form."""
        return f"{self.path.rstrip('/')}/{name}"

    @property
    def is_local(self) -> bool:
        """Whether paths can be opened as ordinary files on this machine."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def free_bytes(self) -> int | None:
        """Return how much room is left; None where that is not known, as in an object store."""
        return shutil.disk_usage(self.path).free if self.is_local else None

    def check_writable(self, option: str = "run.storage_path") -> None:
        """Write, read and delete a small file in what the ``option`` gives.

        Raises:
            InputError: one of them failed.
        """
        try:
            self.probe()
        except OSError as error:
            raise InputError(
                f"{option} '{self.path}' cannot be written: {error}. Choose a folder or URI that "
                f"this user may write, with --{option}"
            ) from None

    def probe(self) -> None:
        """Write a small file and read it again, whatever is wrong with others.

        Raises:
            OSError: one of them failed.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        self.write_text(probe, probe)
        if self.read_text(probe) != probe:
            raise OSError("what was written does not read back")
        self.filesystem.delete_file(self.join(probe))

    def exists(self, name: str) -> bool:
        """Tell whether a file or folder is there."""
        return bool(self.filesystem.get_file_info(self.join(name)).type != pafs.FileType.NotFound)

    def modified(self, name: str) -> float | None:
        """Return when a file was written last, by the storage's clock, in seconds since 1970."""
        written: int | None = self.filesystem.get_file_info(self.join(name)).mtime_ns
        return None if written is None else written / 1e9

    def list(self, name: str = "") -> list[pafs.FileInfo]:
        """Return what lies directly in a folder, by name; nothing where it is missing."""
        selector = pafs.FileSelector(self.join(name).rstrip("/"), allow_not_found=True)
        return sorted(self.filesystem.get_file_info(selector), key=lambda info: info.base_name)

    def read_text(self, name: str) -> str:
        """Return a file's text."""
        with self.filesystem.open_input_stream(self.join(name)) as stream:
            text: str = stream.read().decode()
            return text

    def write_text(self, name: str, text: str) -> None:
        """Write a file at once: readers see the old text or the new one, never a part.

        So it is on this machine's file systems and network mounts, and in object stores.
        """
        self.write_pieces(name, [text])

    def write_pieces(self, name: str, pieces: Iterable[str]) -> None:
        """Write a file at once, as ``write_text`` does, of a text that comes piece by piece."""
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
        """Return a file's JSON value, or None where there is no such file.

        Raises:
            InputError: what is there is not JSON, as after a disk was full.
        """
        if not self.exists(name):
            return None
        try:
            return json.loads(self.read_text(name))
        except ValueError as error:
            raise InputError(
                f"{self.join(name)} is not whole ({error}); restore it, or remove what it is part "
                "of"
            ) from None

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON value at once."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def delete_file(self, name: str) -> None:
        """Delete a file, if it is there."""
        if self.exists(name):
            self.filesystem.delete_file(self.join(name))

    def delete_drafts(self) -> None:
        """Delete what kills left of files of this folder that were being written."""
        for info in self.list():
            if info.base_name.endswith(DRAFT):
                self.filesystem.delete_file(info.path)

    def delete(self, name: str) -> None:
        """Delete a folder and what is in it."""
        self.filesystem.delete_dir(self.join(name))

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """Give a file as one of this machine: itself, or a copy that is deleted afterwards."""
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

    def download(self, local: Path) -> None:
        """Copy this folder to one of this machine."""
        pafs.copy_files(
            self.path,
            str(local),
            source_filesystem=self.filesystem,
            destination_filesystem=pafs.LocalFileSystem(),
        )

    def upload(self, local: Path, name: str) -> None:
        """Copy a local folder here, so that a loss of power does not take it back."""
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
    """Return the path or URI of what is below a folder; a URI's query stays at its end."""
    if "://" not in place:
        return f"{place.rstrip('/')}/{name}"
    path, mark, query = place.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def _sync(path: str) -> None:
    """Have the disk keep a file's contents, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
