"""Text -> words, and hashes of words and of n-grams."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache
from itertools import chain

import numpy as np

from rm_ray.data.text.folding import fold_text


def _class_of(kinds: str, *ranges: tuple[int, int]) -> str:
    """Return the characters of these categories, as they stand within brackets of a pattern."""
    codes = chain.from_iterable(range(first, last + 1) for first, last in ranges)
    return "".join(chr(code) for code in codes if unicodedata.category(chr(code))[0] in kinds)


_UNSPACED = "\u3400-\u4dbf\u4e00-\u9fff" + _class_of(
    "LM", (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF)
)
"""Letters of scripts without spaces between words: Han, Thai, Lao, Burmese, Khmer, Kana."""

_SIGNS = _class_of("M", (0x0300, 0x0DFF))
"""Accents, and vowels that are no letters, as in Hindi."""

_OTHER = rf"[^\W{_UNSPACED}]+ (?: [{_SIGNS}]+ [^\W{_UNSPACED}]* )*"
"""A word of another script."""

_WORD = re.compile(rf"[{_UNSPACED}] | {_OTHER}", re.VERBOSE)
_ASCII_WORD = re.compile(r"\w+", re.ASCII)

_QUOTED = rf"(?: (?! \5 (?: (?!\w) | (?=[{_UNSPACED}]) ) ) \S )"
"""What does not end the quote."""

_PAIRS = re.compile(
    rf"""
    (?: (?<![\w*{_SIGNS}]) | (?<=[{_UNSPACED}]) )
    (?: (\*{{2,3}}) (?=[^\s*]) (.{{1,200}}?) (?<=[^\s*]) \1
        | (\*) (?=[^\W\d_]|["'(]) (.{{1,200}}?) (?<=[^\W\d_]|[.!?:,"')]) \* )
    (?: (?![\w*{_SIGNS}]) | (?=[{_UNSPACED}]) )
    | (?: ^ | (?<=[\s{_UNSPACED}]) ) (["']) (?=[^\W\d_]|[('"]) (?=.{{1,200}}?\5)
        ( {_QUOTED}{{1,50}} (?: [.!?,] | (?: \s {_QUOTED}{{1,50}} ){{1,20}} (?<=[\w.!?,)"']) ) ) \5
    (?: $ | (?=[\s.,;:?!){_UNSPACED}]) )
    """,
    re.VERBOSE,
)
"""Emphasis of Markdown, and quotes of more than a word, which may be one of code."""

_OPERATORS = "-+*/^=<>%|&\u00d7\u00f7\u00b7\u2264\u2265\u2260"
"""Before which an exclamation mark is that of a factorial."""

_SENTENCE = re.compile(
    rf"""
    (?: (?: (?<=[^\W\d_{_UNSPACED}]{{2}}) | (?<=[\u0900-\u0dff]) ) [.,;:?!]+ (?= [\s"')] | $ )
        | (?<=[{_UNSPACED}]) (?: [.,;:?!]*[,;:?!] | \.+(?![.\d]) )
    ) (?! [.,;:?!] | \s* [{_OPERATORS}] )
    | (?<=[\w)\]"'!%]) [.,;:?]+ $
    """,
    re.VERBOSE,
)
"""Marks of a sentence: after a word, or at the end."""

_TYPED = str.maketrans(
    {
        "\u061f": "?", "\u061b": ";", **dict.fromkeys("\u3001\u060c", ","),
        **dict.fromkeys("\u3002\u0964\u06d4\u17d4\u104b", "."),
        **dict.fromkeys("\u00a1\u00ab\u00bb\u00bf\u300a\u300b\u300c\u300d\u300e\u300f", " "),
    }
)  # fmt: skip

_TOKEN = re.compile(
    rf"""
    [{_UNSPACED}]
    | (?: (?<![^\W{_UNSPACED}]) (?<!\.) \. (?=\d) )? {_OTHER} (?: (?<=\d) \.\d (?: {_OTHER} )? )*
    | != | [^\w\s]
    """,
    re.VERBOSE,
)
"""A word, a number with its points, or a symbol."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def split_words(text: str) -> list[str]:
    """Return the words of a text after NFKC and casefolding, without punctuation.

    In scripts without spaces between words, each letter is a word.
    """
    return (_ASCII_WORD if text.isascii() else _WORD).findall(fold_text(text))


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
    """Return a text's words, numbers and symbols after ``fold_text``, a space between them.

    Marks of sentences, quotes of several words, and emphasis of up to 200 characters are left out
    where they belong to words: ``12 + 7`` asks something else than ``12 - 7``, and so do ``5!``
    than ``5`` and ``f'`` than ``f``.
    """
    shown = " ".join(fold_text(text).translate(_TYPED).split())  # and no pattern tries many spaces
    for _ in range(3):  # emphasis within emphasis
        before, shown = shown, _PAIRS.sub(_within, shown)
        if shown == before:
            break
    return " ".join(token.group() for token in _TOKEN.finditer(_SENTENCE.sub(" ", shown)))


def _within(found: re.Match[str]) -> str:
    return found[2] or found[4] or found[6]


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
