"""Planted preferences: generated rows whose labels come from a known utility.

A question names a room and each answer a few colours. Every colour has a charm of its own; a dark
room wants bright colours and a light one dark ones, a cold room warm ones and a hot one cool ones.
So the worth of an answer depends on its question, and on nothing but the words in both. Labels are
drawn from that worth, and a trained model can be compared with it.
"""

from __future__ import annotations

import math
import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, combinations, count, islice
from typing import Any

from rm_ray.data.sources.synthetic import NAMES

Row = dict[str, Any]

LIST_SIZES = (4, 5, 6)
"""Responses of a list, in turn."""

_NUM_PAIRS, _NUM_LISTS = 6_000, 1_500
_COMPARISONS = sum(math.comb(size, 2) for size in LIST_SIZES)

SPLITS = {
    "truth": 1_000,
    "pairs": _NUM_PAIRS,
    "flipped": _NUM_PAIRS,
    "soft": _NUM_PAIRS,
    "ties": _NUM_PAIRS,
    "strengths": _NUM_PAIRS,
    "lists": _NUM_LISTS,
    "exploded": _NUM_LISTS // len(LIST_SIZES) * _COMPARISONS,
    "scores": _NUM_LISTS,
}
"""Rows per split. ``truth`` is held out: its prompts are in no other split."""

TEMPERATURE = 1.0
"""Utility that a lead is divided by: the better of two wins with sigmoid(lead / temperature)."""

TIES = 1.0
"""Davidson's nu: equal responses tie with probability nu / (2 + nu)."""

FLIPPED = 0.2
"""Probability that a label of ``flipped`` is wrong."""

SCORE_NOISE = 1.0
"""Standard deviation of a score around its response's utility."""

STRENGTHS = (1.0, 2.5)
"""Perceived leads, in temperatures, from which a preference has strength 2 and 3."""

_COLOURS = {
    "white": (-0.5, 1.0, -0.25),
    "yellow": (0.75, 0.75, 0.75),
    "pink": (0.25, 0.5, 0.25),
    "orange": (-0.75, 0.25, 1.0),
    "red": (0.25, -0.25, 0.75),
    "green": (0.75, 0.25, -0.75),
    "blue": (-0.75, -0.5, -1.0),
    "purple": (0.0, -0.25, -0.5),
    "brown": (0.5, -0.75, 0.5),
    "black": (-0.5, -1.0, -0.75),
}
"""Charm, brightness and warmth of a colour. Each sums to 0 and charm does not depend on the length
of the name, so that neither more colours nor longer answers are better. They are quarters, so that
sums are exact and equal worths are equal numbers."""

_WISHES = {"dark": (1, 0), "light": (-1, 0), "cold": (0, 1), "hot": (0, -1)}
"""How much brightness and warmth count in a room."""

_ROOMS = (
    "kitchen", "garden", "office", "cellar", "hall", "studio", "shop", "bedroom", "library",
    "workshop", "lounge", "garage",
)  # fmt: skip
_QUESTIONS = (
    "Which colours suit my {} {}?",
    "How should I paint a {} {}?",
    "I have a {} {}. Which colours do I take?",
    "What would you do with this {} {}?",
)
_ANSWERS = ("I would take {}.", "Try {}.", "My advice is {}.", "It needs {}.")
_WORD = re.compile(r"\w+")


def utility(prompt: str, response: str) -> float:
    """Return what a response to a prompt is worth: the sum over the colours that it names.

    A colour counts once, and other words, the wording and the order make no difference.
    """
    wishes = [_WISHES[word] for word in dict.fromkeys(_words(prompt)) if word in _WISHES]
    bright, warm = (sum(wish[i] for wish in wishes) for i in (0, 1))
    named = [_COLOURS[word] for word in dict.fromkeys(_words(response)) if word in _COLOURS]
    return sum((charm + bright * light + warm * heat for charm, light, heat in named), 0.0)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def win_probability(lead: float) -> float:
    """Return the probability that a response wins which is worth ``lead`` more.

    Source: Bradley and Terry, Biometrika 39 (1952).
    """
    return 1 / (1 + math.exp(-lead / TEMPERATURE))


def tie_probability(lead: float) -> float:
    """Return the probability that two responses tie of which one is worth ``lead`` more.

    Source: Davidson, Journal of the American Statistical Association 65 (1970). If they do not tie,
    one wins with ``win_probability``.
    """
    return TIES / (TIES + 2 * math.cosh(lead / TEMPERATURE / 2))


@dataclass(frozen=True, kw_only=True)
class _Question:
    """A prompt, distinct responses to it and what they are worth."""

    prompt: str
    room: str
    responses: list[str]
    utilities: list[float]

    @property
    def lead(self) -> float:
        """How much more the first response is worth than the second."""
        return self.utilities[0] - self.utilities[1]

    def row(self, **columns: Any) -> Row:
        """Return a row of these columns."""
        return {"prompt": self.prompt, **columns, "source": f"planted/{self.room}"}

    def pair(self, *, first_wins: bool, **labels: Any) -> Row:
        """Return a row of the first two responses."""
        better, worse = (0, 1) if first_wins else (1, 0)
        return self.row(chosen=self.responses[better], rejected=self.responses[worse], **labels)


def generate_rows(split: str, num_rows: int | None = None, *, first: int = 0) -> Iterator[Row]:
    """Yield raw rows of a split from number ``first``; it goes on after its size.

    A row depends on its split and number alone.
    """
    return islice(_rows(split, first), SPLITS[split] if num_rows is None else num_rows)


def _rows(split: str, first: int) -> Iterator[Row]:
    if split == "exploded":
        rounds, skipped = divmod(first, _COMPARISONS)
        lists = _rows("lists", rounds * len(LIST_SIZES))
        return islice(chain.from_iterable(map(explode, lists)), skipped, None)
    label, is_list = _LABELS[split], split in ("lists", "scores")
    sizes = LIST_SIZES if is_list else (2,)
    return (_row(split, i, label, sizes[i % len(sizes)]) for i in count(first))


def _row(
    split: str, index: int, label: Callable[[_Question, random.Random], Row], num_responses: int
) -> Row:
    rng = random.Random(f"rm_ray planted {split} {index}")
    decided = split in ("truth", "flipped")  # these labels say which of two is worth more
    held_out = split == "truth"
    while True:
        question = _ask(rng, num_responses)
        if is_held_out(question.prompt) == held_out and not (decided and question.lead == 0):
            return label(question, rng)


def is_held_out(prompt: str) -> bool:
    """Return whether a prompt belongs to ``truth``: its checksum assigns it."""
    return zlib.crc32(prompt.encode()) % 8 == 0


def _ask(rng: random.Random, num_responses: int) -> _Question:
    room = rng.choice(list(_WISHES))
    question = rng.choice(_QUESTIONS).format(room, rng.choice(_ROOMS))
    prompt = f"{rng.choice(NAMES)} asks: {question}"
    answers: dict[frozenset[str], str] = {}
    while len(answers) < num_responses:
        colours = rng.sample(list(_COLOURS), rng.randint(2, 4))
        listed = f"{', '.join(colours[:-1])} and {colours[-1]}"
        answers.setdefault(frozenset(colours), rng.choice(_ANSWERS).format(listed))
    responses = list(answers.values())
    return _Question(
        prompt=prompt,
        room=room,
        responses=responses,
        utilities=[utility(prompt, response) for response in responses],
    )


def _truth(question: _Question, rng: random.Random) -> Row:
    return question.pair(first_wins=question.lead > 0)


def _noisy(question: _Question, rng: random.Random) -> Row:
    return question.pair(first_wins=rng.random() < win_probability(question.lead))


def _flip(question: _Question, rng: random.Random) -> Row:
    return question.pair(first_wins=(question.lead > 0) != (rng.random() < FLIPPED))


def _soften(question: _Question, rng: random.Random) -> Row:
    return question.pair(first_wins=True, preference=win_probability(question.lead))


def _tie(question: _Question, rng: random.Random) -> Row:
    tie = rng.random() < tie_probability(question.lead)
    # The responses are in no order, so a tie says nothing about which is worth more.
    first_wins = tie or rng.random() < win_probability(question.lead)
    return question.pair(first_wins=first_wins, tie=tie)


def _grade(question: _Question, rng: random.Random) -> Row:
    """Label by a perceived lead with logistic noise: its sign follows Bradley-Terry."""
    chance = rng.random()
    while chance == 0:  # random() may be 0, which has no logarithm
        chance = rng.random()
    perceived = question.lead / TEMPERATURE + math.log(chance / (1 - chance))
    margin = 1 + sum(abs(perceived) >= strength for strength in STRENGTHS)
    return question.pair(first_wins=perceived > 0, margin=margin)


def _rank(question: _Question, rng: random.Random) -> Row:
    """Draw a ranking by Plackett-Luce: each place goes to a response with probability in
    proportion to exp(utility / temperature) among those left (Plackett, Applied Statistics 24,
    1975).
    """
    strengths = [math.exp(worth / TEMPERATURE) for worth in question.utilities]
    ranks, left = [0] * len(strengths), list(range(len(strengths)))
    for rank in range(1, len(strengths) + 1):
        (taken,) = rng.choices(left, [strengths[i] for i in left])
        ranks[taken] = rank
        left.remove(taken)
    return question.row(responses=question.responses, ranks=ranks)


def _score(question: _Question, rng: random.Random) -> Row:
    scores = [round(rng.gauss(worth, SCORE_NOISE), 2) for worth in question.utilities]
    return question.row(responses=question.responses, scores=scores)


def explode(row: Row) -> Iterator[Row]:
    """Yield every comparison of a list with ranks as a pair."""
    for i, j in combinations(range(len(row["ranks"])), 2):
        better, worse = (i, j) if row["ranks"][i] < row["ranks"][j] else (j, i)
        yield {
            "prompt": row["prompt"],
            "chosen": row["responses"][better],
            "rejected": row["responses"][worse],
            "source": row["source"],
        }


_LABELS: dict[str, Callable[[_Question, random.Random], Row]] = {
    "truth": _truth,
    "pairs": _noisy,
    "flipped": _flip,
    "soft": _soften,
    "ties": _tie,
    "strengths": _grade,
    "lists": _rank,
    "scores": _score,
}
