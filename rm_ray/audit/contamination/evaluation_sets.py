"""Prompts of evaluation sets, and rows of training data that share them or their n-grams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rm_ray.audit.text.words import hash_bytes, hash_ngrams, hash_words, plain_text, split_words

LONG, SHORT = 13, 8
"""Words of the n-grams: 13 as in arXiv:2005.14165, appendix C; 8 as in arXiv:2411.15124."""

LEAST_COVERED = 0.5
"""Share of the words of an evaluation prompt that shared 8-grams cover in a leak (arXiv:2411.15124
has more than a half of them)."""

LEAST_WORDS = 5
"""Words, numbers and symbols of a turn in a longer conversation that make it a prompt, and no
phrase such as 'go on'."""

MOST_PROMPTS = 10
"""An n-gram of more evaluation prompts, each with other words, is a phrase of the set's makers, and
identifies none (arXiv:2005.14165 drops those of more than 10 documents)."""


@dataclass(frozen=True, kw_only=True)
class EvaluationPrompt:
    """The prompt of a row of an evaluation set."""

    name: str
    """Of the set."""
    row: int
    key: bytes
    """The ``prompt_hash`` of its group."""
    text: str
    """What the user asks, without instructions."""


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A prompt of an evaluation set that a row of training data holds, or part of it."""

    name: str
    row: int
    """Of the evaluation set."""
    how: str
    """``prompt``, ``13-gram`` or ``8-grams``."""
    covered: float
    """Share of the evaluation prompt's words in shared 8-grams; 1 if it is the same prompt."""


@dataclass(frozen=True, kw_only=True)
class _Ngrams:
    """All n-grams of P prompts: ``[G]`` sorted hashes, with prompt and position of each."""

    n: int
    hashes: np.ndarray
    prompts: np.ndarray
    positions: np.ndarray

    @classmethod
    def of(cls, prompts: Sequence[np.ndarray], texts: np.ndarray, n: int) -> _Ngrams:
        """Return those of prompts whose words have these numbers ``[P]``, equal for equal words."""
        each = [hash_ngrams(words, n) for words in prompts]
        sizes = np.array([len(one) for one in each], dtype=np.int64)
        hashes = np.concatenate([np.empty(0, np.uint64), *each])
        numbers = np.repeat(np.arange(len(each), dtype=np.int32), sizes)
        positions = np.concatenate([np.empty(0, np.int32), *(np.arange(s) for s in sizes)])
        order = np.argsort(hashes, kind="stable")
        hashes, numbers = hashes[order], numbers[order]
        common = _common(hashes, texts[numbers])
        return cls(
            n=n,
            hashes=hashes[~common],
            prompts=numbers[~common],
            positions=positions[order][~common].astype(np.int32),
        )

    def find(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return prompts and positions of the n-grams that hashed words share with them."""
        wanted = np.unique(hash_ngrams(words, self.n))
        first, end = (np.searchsorted(self.hashes, wanted, side) for side in ("left", "right"))
        hits = np.concatenate(
            [np.empty(0, np.int64), *map(np.arange, first[end > first], end[end > first])]
        )
        return self.prompts[hits], self.positions[hits]


def _common(hashes: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Return which of the sorted ``[G]`` n-grams too many prompts with other words have."""
    pairs = np.unique(np.stack((hashes, texts.astype(np.uint64)), axis=1), axis=0)
    values, counts = np.unique(pairs[:, 0], return_counts=True)
    common: np.ndarray = np.isin(hashes, values[counts > MOST_PROMPTS])
    return common


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A turn of a prompt that is no instruction."""

    role: str
    text: str


def _asked(turns: Sequence[Turn]) -> Iterator[tuple[str, int]]:
    """Yield what may be the prompt of an evaluation set, and the least length for it to be."""
    yield "\n".join(turn.text for turn in turns), 1
    if len(turns) > 1:
        for turn in turns:
            if turn.role == "user":
                yield turn.text, LEAST_WORDS


def _hash_all(words: Sequence[str]) -> int:
    return hash_bytes(" ".join(words).encode("utf-8", "surrogatepass"))


class EvaluationSets:
    """The prompts of named evaluation sets, to look up leaks of; it is in memory as a whole."""

    def __init__(self, prompts: Iterable[EvaluationPrompt]) -> None:
        distinct: dict[tuple[str, bytes], EvaluationPrompt] = {}
        self.rows: Counter[str] = Counter()
        for each in prompts:
            self.rows[each.name] += 1
            distinct.setdefault((each.name, each.key), each)
        self._prompts = list(distinct.values())
        self._by_key: dict[bytes, list[int]] = {}
        for number, each in enumerate(self._prompts):
            self._by_key.setdefault(each.key, []).append(number)
        each_words = [split_words(each.text) for each in self._prompts]
        words = [*map(hash_words, each_words)]
        texts = np.array([*map(_hash_all, each_words)], dtype=np.uint64)
        self._worded = {*texts.tolist()}
        """Of their plain texts' words, since most texts have others."""
        self._by_text: dict[str, list[int]] = {}
        for number, each in enumerate(self._prompts):
            if asked := plain_text(each.text):
                self._by_text.setdefault(asked, []).append(number)
        self._lengths = np.array([len(one) for one in words], dtype=np.int64)
        self._long, self._short = (_Ngrams.of(words, texts, n) for n in (LONG, SHORT))

    def find(self, key: bytes, turns: Sequence[Turn], words: np.ndarray) -> list[Leak]:
        """Return the worst leak of each set in a row.

        The row has this ``prompt_hash``, its prompt has these turns, and in all it has these
        hashed words. Its prompt is that of an evaluation set if they are equal, or if their plain
        texts are; instructions do not count, and any turn of the user may be the prompt.
        """
        if not self._prompts:
            return []
        same = {*self._by_key.get(key, ())}
        for text, least in _asked(turns):
            its_words = split_words(text)
            if _hash_all(its_words) in self._worded:
                plain = plain_text(text)
                if max(len(its_words), plain.count(" ") + 1) >= least:
                    same.update(self._by_text.get(plain, ()))
        found = [self._leak(number, "prompt", 1.0) for number in sorted(same)]
        numbers, positions = self._short.find(words)
        if len(numbers):  # a shared 13-gram has 8-grams, unless those are common
            covered = {n: self._cover(n, positions[numbers == n]) for n in set(numbers.tolist())}
        else:
            covered = {}
        long = set(self._long.find(words)[0].tolist())
        for number in sorted(covered.keys() | long):
            share = covered.get(number, 0.0)
            if number in long:
                found.append(self._leak(number, f"{LONG}-gram", share))
            elif share > LEAST_COVERED:
                found.append(self._leak(number, f"{SHORT}-grams", share))
        worst: dict[str, Leak] = {}
        for leak in found:
            before = worst.get(leak.name)
            if before is None or (leak.how == "prompt", leak.covered) > (
                before.how == "prompt",
                before.covered,
            ):
                worst[leak.name] = leak
        return list(worst.values())

    def _leak(self, number: int, how: str, covered: float) -> Leak:
        prompt = self._prompts[number]
        return Leak(name=prompt.name, row=prompt.row, how=how, covered=covered)

    def _cover(self, number: int, positions: np.ndarray) -> float:
        """Return the share of a prompt's words that n-grams at these positions cover."""
        covered = np.zeros(self._lengths[number], dtype=bool)
        for i in range(SHORT):
            covered[positions + i] = True
        return float(covered.mean())
