"""Text -> the text to compare: the same whatever its typography, with each number as it reads."""

from __future__ import annotations

import re
import unicodedata

_RAISED = (
    "\u00b2\u00b3\u00b9\u2070\u2071\u2074-\u207f\u02b0-\u02b8\u02e1-\u02e3"
    "\u1d2c-\u1d2e\u1d30-\u1d3a\u1d3c-\u1d4d\u1d4f-\u1d61\u1d9c-\u1dbf"
)
"""Raised digits, letters, signs and brackets."""

_LOWERED = "\u1d62-\u1d6a\u2080-\u208e\u2090-\u209c\u2c7c"

_SIGNS = frozenset("\u207a\u207b\u207c\u208a\u208b\u208c")
"""Raised and lowered plus, minus and equals."""

_IN_ONE_SIGN = (
    "\u00bc-\u00be\u2150-\u215e\u2189\u2460-\u249b\u24ea-\u24ff\u2776-\u2793"
    "\u3248-\u324f\u3251-\u325f\u32b1-\u32bf\u32c0-\u32cb\u3358-\u3370\u33e0-\u33fe"
    "\U0001f100-\U0001f10a"
)
"""Fractions, and numbers in circles, with a point or with a unit."""

_FRACTION = re.compile(
    "(?<![\u00b9\u00b2\u00b3\u2070\u2074-\u2079])([\u00b9\u00b2\u00b3\u2070\u2074-\u2079]+)\u2044([\u2080-\u2089]+)"
)
_POWER = re.compile(f"([{_RAISED}]+)(?=([^\\W_]?))")
_INDEX = re.compile(f"(?<=([\\w)\\]|]))([{_LOWERED}]+)(?=(\\w?))")
_BEFORE = re.compile(f"(?<=\\w)([{_IN_ONE_SIGN}\u215f])")
_AFTER = re.compile(f"([{_IN_ONE_SIGN}])(?=\\w)")
_DIGIT = re.compile(r"(?![0-9])\d")
"""Of scripts with digits of their own."""

_WRITTEN_OUT = str.maketrans(
    {
        "\u339f": "mm\u00b2", "\u33a0": "cm\u00b2", "\u33a1": "m\u00b2", "\u33a2": "km\u00b2",
        "\u33a3": "mm\u00b3", "\u33a4": "cm\u00b3", "\u33a5": "m\u00b3", "\u33a6": "km\u00b3",
        "\u33a8": "m/s\u00b2", "\u33af": "rad/s\u00b2",
        **dict.fromkeys([0xAD, 0x61C, 0x200B, 0x200E, 0x200F, 0xFEFF], None),
        **dict.fromkeys([*range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A)], None),
        **dict.fromkeys(range(0xFE00, 0xFE10), None),
        **dict.fromkeys(range(0x2061, 0x2065), " "),
    }
)  # fmt: skip
"""Units; marks that cannot be seen are left out, and a space for a product that cannot."""

_RARE = re.compile(f"[{_RAISED}{_LOWERED}{_IN_ONE_SIGN}\u215f{''.join(map(chr, _WRITTEN_OUT))}]")
"""What is compared otherwise than NFKC has it."""

_TYPED = {
    **dict.fromkeys("\u2018\u2019\u201b\u2032", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"),
    **dict.fromkeys("\u2044\u2215", "/"),
}
"""What keyboards have instead of quotes, hyphens and signs."""

_AS_TYPED = re.compile(f"[{''.join(_TYPED)}]")


def fold_text(text: str) -> str:
    """Return a text for comparison: NFKC, casefolded, and typed as on a keyboard.

    NFKC alone would make 52 of a square of 5, 51/2 of five and a half, and 13 of a 3 in point 1:
    powers and indices are written with ``^`` and ``_``, and other numbers kept apart. Whitespace is
    left as it is. (Unicode Standard Annex 15.)
    """
    if text.isascii():  # nothing else would change it
        return text.lower()
    if _RARE.search(text):
        text = _FRACTION.sub(_write_fraction, text.translate(_WRITTEN_OUT))
        text = _POWER.sub(_write_power, _INDEX.sub(_write_index, text))
        text = _AFTER.sub(r"\1 ", _BEFORE.sub(r" \1", text))
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _AS_TYPED.sub(_write_typed, _DIGIT.sub(_write_digit, folded))


def _write_fraction(found: re.Match[str]) -> str:
    """Return ``x^(2/3)`` after a letter, and else ``5 2/3``."""
    text, start, end = found.string, *found.span()
    before, after = text[max(start - 1, 0) : start], text[end : end + 1]
    shown = unicodedata.normalize("NFKC", f"{found[1]}/{found[2]}")
    if before.isalpha():
        return f"^({shown})"
    return f"{' ' if before.isalnum() else ''}{shown}{' ' if after.isalnum() else ''}"


def _write_power(found: re.Match[str]) -> str:
    return f"^{_enclose(found[1])}{found[2] and ' '}"


def _write_index(found: re.Match[str]) -> str:
    """Return ``x2`` for a number below a letter, as it is mostly typed, and else as ``x_(n+1)``."""
    before, index, after = found.groups()
    plain = unicodedata.normalize("NFKC", index)
    if plain.isdecimal() and before.isalpha() and not after.isdecimal():
        return plain
    return f"_{_enclose(index)}{after and ' '}"


def _enclose(script: str) -> str:
    """Put brackets around a raised or lowered sum."""
    is_sum = not _SIGNS.isdisjoint(script[1:])
    return f"({script})" if is_sum else script


def _write_typed(found: re.Match[str]) -> str:
    return _TYPED[found[0]]


def _write_digit(found: re.Match[str]) -> str:
    return str(unicodedata.decimal(found[0]))
