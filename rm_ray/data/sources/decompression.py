"""Opening files decompressed, and refusing placeholders that hold no data."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, cast

import fsspec
import pyarrow as pa

from rm_ray.data.sources.encodings import BOM
from rm_ray.data.sources.fragments import codec_of
from rm_ray.errors import InputError

_PEEKED = 256
"""Leading bytes that identify a file."""

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ\0": "xz"}


def open_raw(path: str) -> BinaryIO:
    """Open a file for reading as-is; local names are taken literally.

    Raises:
        OSError: it is missing, a folder, or not readable.
    """
    if "://" in path:
        return cast(BinaryIO, fsspec.open(path, "rb").open())
    return open(path, "rb")


@contextmanager
def open_bytes(path: str) -> Iterator[io.BufferedReader]:
    """Open a file decompressed, by its ending or else by its first bytes.

    Raises:
        InputError: it cannot be read, is an incomplete compressed file, or is a placeholder.
    """
    codec = codec_of(path)
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(open_raw(path))
            head = _peek(raw)
            _refuse_placeholders(path, head)
            codec = codec or next((c for m, c in _MAGIC.items() if head.startswith(m)), None)
            opened = cast(io.RawIOBase, stack.enter_context(_decompress(raw, codec)))
            buffered: io.BufferedReader = io.BufferedReader(opened, buffer_size=1 << 20)
            _refuse_placeholders(path, buffered.peek(_PEEKED)[:_PEEKED])
            yield buffered
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(_explain_damage(path, codec, error)) from None
    except OSError as error:
        if codec and error.errno is None:  # raised by the codec, not by the system
            raise InputError(_explain_damage(path, codec, error)) from None
        raise InputError(f"{path} cannot be read: {error}") from None


def _peek(raw: BinaryIO) -> bytes:
    head = raw.read(_PEEKED)
    raw.seek(0)
    return head


def _decompress(raw: BinaryIO, codec: str | None) -> BinaryIO | _DecompressedStream:
    if codec == "gzip":
        return _DecompressedStream(gzip.GzipFile(fileobj=raw).read)
    if codec == "bz2":
        return _DecompressedStream(bz2.BZ2File(raw).read)
    if codec == "xz":
        return _DecompressedStream(lzma.LZMAFile(raw).read)
    if codec == "zstd":
        return _DecompressedStream(pa.CompressedInputStream(pa.PythonFile(raw), "zstd").read)
    return raw


class _DecompressedStream(io.RawIOBase):
    """A decompressed stream that can only be read forwards."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer, in several reads if needed; return less only at the end."""
        filled = 0
        while filled < len(buffer) and (data := self._read(len(buffer) - filled)):
            buffer[filled : filled + len(data)] = data
            filled += len(data)
        return filled


def _explain_damage(path: str, codec: str | None, error: Exception) -> str:
    return f"{path} is not an intact {codec or 'compressed'} file: {error}; copy it again"


def _refuse_placeholders(path: str, head: bytes) -> None:
    """Refuse files that are found in place of data: pointers, web pages and archives."""
    text = head.removeprefix(BOM).lstrip()
    if text.startswith(b"version https://git-lfs.github.com/spec/"):
        raise InputError(
            f"{path} is a Git LFS pointer without the data; run 'git lfs pull' in its "
            "repository, or download the file itself"
        )
    if b"/annex/objects/" in text[:80]:
        raise InputError(f"{path} is a git-annex pointer without data; run 'git annex get' there")
    if text[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise InputError(f"{path} is a web page, not data; download the file itself")
    if text.startswith(b"PK\x03\x04"):
        raise InputError(
            f"{path} is a zip archive (or a spreadsheet); unpack it, or save it as CSV"
        )
