"""Text encodings: only UTF-8 is read; others are refused with the command that converts them."""

from __future__ import annotations

import io
from contextlib import suppress

from rm_ray.errors import InputError

BOM = b"\xef\xbb\xbf"

_WIDE_MARKS = {
    b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}  # fmt: skip
"""Byte-order marks, longest first: the UTF-32 mark begins with the UTF-16 one."""


def refuse_wide_text(path: str, stream: io.BufferedReader) -> None:
    """Refuse text in UTF-16 or UTF-32, and skip a UTF-8 byte-order mark.

    Raises:
        InputError: names the encoding and the command that converts it.
    """
    head = stream.peek(4)[:4]
    if encoding := find_encoding(head):
        raise InputError(
            f"{path} is {encoding} text, but only UTF-8 is supported; convert it with "
            f"'iconv -f {encoding} -t UTF-8'"
        )
    if head.startswith(BOM):
        stream.read(len(BOM))


def find_encoding(head: bytes) -> str | None:
    """Return UTF-16 or UTF-32 if the first bytes of a text show it, else None."""
    for mark, name in _WIDE_MARKS.items():
        if head.startswith(mark):
            return name
    if b"\0" in head[:4]:
        return "UTF-32" if head[:4].count(0) == 3 else "UTF-16"
    return None


def explain_encoding(where: str, error: UnicodeDecodeError) -> str:
    """Return an error message for bytes that are not UTF-8."""
    guess = "WINDOWS-1252"
    with suppress(UnicodeDecodeError, AttributeError):
        error.object.decode("gb18030")
        guess = "GB18030 or WINDOWS-1252"
    return (
        f"{where}: not UTF-8 text ({error.reason}, byte 0x{error.object[error.start]:02x}); "
        f"convert it with 'iconv -f ENCODING -t UTF-8' (the encoding may be {guess})"
    )
