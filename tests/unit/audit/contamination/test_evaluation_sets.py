"""Prompts of evaluation sets in training rows."""

from typing import Any

import pytest

from rm_ray.audit.contamination.evaluation_sets import (
    MOST_PROMPTS,
    EvaluationPrompt,
    EvaluationSets,
    Leak,
)
from rm_ray.audit.text.words import hash_words

WORDS = [f"w{i}" for i in range(30)]
ASKED = EvaluationPrompt(name="bench", row=4, key=b"asked", text=" ".join(WORDS))
SETS = EvaluationSets([ASKED])


def find(words: list[str], key: bytes = b"other", sets: EvaluationSets = SETS) -> list[Leak]:
    return sets.find(key, hash_words(words))


def leak(how: str, covered: float, **about: Any) -> Leak:
    return Leak(**{"name": "bench", "row": 4, "how": how, "covered": covered, **about})


def test_the_same_prompt_is_a_leak_whatever_else_the_row_says():
    assert find([], key=b"asked") == [leak("prompt", 1.0)]


@pytest.mark.parametrize("shared", [7, 8, 12])  # 12 words are less than a half
def test_a_short_run_of_words_is_no_leak(shared: int):
    assert find(["a", *WORDS[5 : 5 + shared], "b"]) == []


@pytest.mark.parametrize("shared", [13, 20, 25])
def test_a_run_of_words_is_a_leak_from_13_on(shared: int):
    assert find(["a", *WORDS[5 : 5 + shared], "b"]) == [leak("13-gram", shared / 30)]


def test_8_grams_are_a_leak_if_they_cover_more_than_a_half():
    assert find([*WORDS[:8], "x", *WORDS[20:27]]) == []
    assert find([*WORDS[:8], "x", *WORDS[20:28]]) == [leak("8-grams", 16 / 30)]
    assert find([*WORDS[:10], "x", *WORDS[20:25]]) == []


def test_each_set_tells_of_its_worst_leak():
    half = EvaluationPrompt(name="bench", row=5, key=b"half", text=" ".join(WORDS[:16]))
    other = EvaluationPrompt(name="other", row=1, key=b"x", text=" ".join(WORDS[:14]))
    sets = EvaluationSets([ASKED, half, other])
    assert sets.rows == {"bench": 2, "other": 1}
    assert find(WORDS[:16], sets=sets) == [
        leak("13-gram", 1.0, row=5),
        leak("13-gram", 1.0, name="other", row=1),
    ]
    assert find(WORDS[:16], key=b"asked", sets=sets)[0] == leak("prompt", 1.0)


def test_phrases_of_many_prompts_are_no_leak():
    phrase = " ".join(WORDS)
    prompts = [
        EvaluationPrompt(name="bench", row=i, key=b"%d" % i, text=f"{phrase} t{i}")
        for i in range(MOST_PROMPTS + 1)
    ]
    assert find(WORDS, sets=EvaluationSets(prompts)) == []
    assert len(find(WORDS, sets=EvaluationSets(prompts[1:]))) == 1


def test_no_sets_find_nothing():
    assert find(WORDS, sets=EvaluationSets([])) == []
