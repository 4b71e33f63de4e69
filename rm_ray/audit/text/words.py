"""Text -> words, and hashes of words and of n-grams."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache

import numpy as np

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Letters of scripts without spaces between words: Thai, Lao, Burmese, Khmer, Kana, Han."""

_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+")
_ASCII_WORD = re.compile(r"\w+", re.ASCII)


_SUPERSCRIPT = re.compile("([\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b\u207f]+)")
"""Of which NFKC makes 52 of a square of 5."""

_EMPHASIS = re.compile(
    r"""
    (?<![\w*])
    (?: (\*{2,3}) (?=[^\s*]) (.{1,200}?) (?<=[^\s*]) \1
      | \* (?=[^\W\d_]) (.{1,200}?) (?<=[^\W\d_]|[.!?:,]) \* )
    (?![\w*])
    """,
    re.VERBOSE,
)
"""Markdown's; what begins with a number may be a product."""

_IN_FORMULAS = (
    (re.compile(r" ?! ?="), " \u2260 "),
    (re.compile(r"(?<=\d) ?: ?(?=\d)"), " \u2236 "),  # a ratio, or a time
    (
        re.compile(
            r"((?<=[\d)])|(?<=\b[a-z])|(?<=\d[a-z]))!"
            r"(?= ?([-+*/^=)\]}$|<>&%\\\u00d7\u00f7\u00b7\u2212]|mod\b))"
        ),
        "\u203c",  # a factorial
    ),
    (
        re.compile(r"((?<=\b[a-z])|(?<=\b[a-z]['\u2019]))['\u2019](?=['\u2019]? ?[(=+*/^-])"),
        "\u2032",  # of a derivative
    ),
)
"""Marks that are none of sentences, and signs for them; no two spaces are side by side."""

_TOKEN = re.compile(r"((?<![\w.])\.(?=\d))?\w+((?<=\d)(\.\d\w*|,\d{3}(?!\w)))*|[^\w\s]")
"""A word, a number with its points, or a symbol."""

_MARKS = frozenset(
    ".,!?;:\"'`\u00a1\u00ab\u00bb\u00bf\u2018\u2019\u201c\u201d\u3001\u3002\u300c\u300d"
)
"""What ends or quotes sentences, after NFKC."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def split_words(text: str) -> list[str]:
    """Return the words of a text after NFKC and casefolding, without punctuation.

    In scripts without spaces between words, each letter is a word.
    """
    return (_ASCII_WORD if text.isascii() else _WORD).findall(_fold(text))


def _fold(text: str) -> str:
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", _SUPERSCRIPT.sub(r"^\1", text)).casefold()


def hash_words(words: list[str]) -> np.ndarray:
    """Return 64-bit hashes of W words, the same in every process: ``[W]`` uint64."""
    return np.fromiter(map(_hash_word, words), dtype=np.uint64, count=len(words))


@lru_cache(maxsize=1 << 17)
def _hash_word(word: str) -> int:
    return hash_bytes(word.encode("utf-8", "surrogatepass"))


def hash_bytes(content: bytes) -> int:
    """Return a 64-bit hash."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def plain_text(text: str) -> str:
    """Return a text's words, numbers and symbols after NFKC and casefolding, a space between them.

    Marks of sentences and emphasis are left out. Symbols stay, since ``12 + 7`` asks something else
    than ``12 - 7``, and so do marks within numbers.
    """
    shown = " ".join(_fold(text).split())  # and no pattern tries many spaces
    shown = _EMPHASIS.sub(lambda found: found[2] or found[3], shown)
    for mark, sign in _IN_FORMULAS:
        shown = mark.sub(sign, shown)
    tokens = (token.group() for token in _TOKEN.finditer(shown))
    return " ".join(token for token in tokens if token not in _MARKS)


def hash_ngrams(hashes: np.ndarray, n: int) -> np.ndarray:
    """Return the hashes of the n-grams of W hashed words: ``[max(W - n + 1, 0)]`` uint64."""
    count = max(len(hashes) - n + 1, 0)
    found = np.full(count, n, dtype=np.uint64)
    for i in range(n):
        found = found * _FACTOR + hashes[i : i + count]
    return mix(found)


def mix(values: np.ndarray) -> np.ndarray:
    """Return uint64 values with well mixed bits (the finalizer of SplitMix64, Steele 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
