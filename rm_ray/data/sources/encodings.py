"""The encoding of a text file: only UTF-8 is read, and others are named with the remedy."""

from __future__ import annotations

import io
from contextlib import suppress

from rm_ray.errors import InputError

BOM = b"\xef\xbb\xbf"

_WIDE_MARKS = {
    b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}  # fmt: skip
"""Byte-order marks; the longer ones first, since one begins with another."""


def refuse_wide_text(path: str, stream: io.BufferedReader) -> None:
    """Refuse text in UTF-16 or UTF-32, and pass over a byte-order mark of UTF-8.

    Raises:
        InputError: with the encoding and the command that converts it.
    """
    head = stream.peek(4)[:4]
    if encoding := find_encoding(head):
        raise InputError(
            f"{path} is {encoding} text, and only UTF-8 is read; convert it with "
            f"'iconv -f {encoding} -t UTF-8'"
        )
    if head.startswith(BOM):
        stream.read(len(BOM))


def find_encoding(head: bytes) -> str | None:
    """Return the encoding that the beginning of a text shows; None for UTF-8 and unmarked ones."""
    for mark, name in _WIDE_MARKS.items():
        if head.startswith(mark):
            return name
    if b"\0" in head[:4]:
        return "UTF-32" if head[:4].count(0) == 3 else "UTF-16"
    return None


def explain_encoding(where: str, error: UnicodeDecodeError) -> str:
    """Return the message for bytes that are not UTF-8."""
    guess = "WINDOWS-1252"
    with suppress(UnicodeDecodeError, AttributeError):
        error.object.decode("gb18030")
        guess = "GB18030 or WINDOWS-1252"
    return (
        f"{where}: not UTF-8 text ({error.reason}, byte 0x{error.object[error.start]:02x}); "
        f"convert it with 'iconv -f ENCODING -t UTF-8', where the encoding is perhaps {guess}"
    )
