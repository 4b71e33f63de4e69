"""Prompts of evaluation sets in training rows."""

from typing import Any

import pytest

from rm_ray.audit.contamination.evaluation_sets import (
    MOST_PROMPTS,
    EvaluationPrompt,
    EvaluationSets,
    Leak,
    Turn,
)
from rm_ray.audit.text.words import hash_words

WORDS = [f"w{i}" for i in range(30)]
ASKED = EvaluationPrompt(name="bench", row=4, key=b"asked", text=" ".join(WORDS))
SETS = EvaluationSets([ASKED])


def find(words: list[str], key: bytes = b"other", sets: EvaluationSets = SETS) -> list[Leak]:
    return sets.find(key, [], hash_words(words))


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


def test_a_prompt_that_many_sets_or_instructions_repeat_is_one_prompt():
    prompts = [
        EvaluationPrompt(name=f"bench {i % 3}", row=i, key=b"%d" % i, text=" ".join(WORDS))
        for i in range(2 * MOST_PROMPTS)
    ]
    found = find(["a", *WORDS, "b"], sets=EvaluationSets(prompts))
    assert [each.name for each in found] == ["bench 0", "bench 1", "bench 2"]


SHORT = EvaluationPrompt(name="bench", row=2, key=b"short", text="How can I kill a Python process?")


@pytest.mark.parametrize(
    ("turns", "is_leak"),
    [
        (["user: how can i kill a python process"], True),
        (["user: How can I kill", "user: a Python process?"], True),  # in all the same words
        (["user: Hello!", "assistant: Yes?", "user: How can I kill a Python process"], True),
        (["user: How can I kill a Python process?", "assistant: So.", "user: Thanks"], True),
        (["user: Hello!", "assistant: How can I kill a Python process?", "user: So."], False),
        (["user: How can I kill a Python"], False),
        (["user: How can I kill a Python-process?"], False),
        ([], False),
    ],
)
def test_a_short_prompt_is_found_by_its_words_in_any_turn_of_the_user(turns, is_leak):
    split = [each.split(": ", 1) for each in turns]
    asked = [Turn(role=role, text=text) for role, text in split]
    found = EvaluationSets([SHORT]).find(b"other", asked, hash_words([]))
    assert found == ([leak("prompt", 1.0, row=2)] if is_leak else [])


def test_a_phrase_of_a_longer_conversation_is_no_prompt():
    phrase = EvaluationPrompt(name="bench", row=1, key=b"go", text="Please go on!")
    none = EvaluationPrompt(name="bench", row=2, key=b"?", text="?")
    on, other = (Turn(role="user", text=text) for text in ("Please go on", "!"))
    sets = EvaluationSets([phrase, none])
    assert len(sets.find(b"other", [on], hash_words([]))) == 1
    assert sets.find(b"other", [on, on], hash_words([])) == []
    assert sets.find(b"other", [other], hash_words([])) == []


@pytest.mark.parametrize(("prompt", "is_leak"), [("What is 12 + 7?", True), ("Is 5 > 4?", False)])
def test_symbols_count_towards_the_length_of_a_prompt(prompt: str, is_leak: bool):
    asked = EvaluationPrompt(name="bench", row=2, key=b"k", text=prompt)
    turns = [Turn(role="user", text="Hello!"), Turn(role="user", text=prompt)]
    found = EvaluationSets([asked]).find(b"other", turns, hash_words([]))
    assert found == ([leak("prompt", 1.0, row=2)] if is_leak else [])


def test_marks_and_turns_of_other_scripts_are_known():
    asked = [
        ("¿Por qué es azul el cielo?", "por qué es azul el cielo"),
        ("天空为什么是蓝色的。", "天空为什么是蓝色的?"),
    ]
    for whole, without in asked:
        prompt = EvaluationPrompt(name="bench", row=2, key=b"k", text=whole)
        turns = [Turn(role="user", text="Hola"), Turn(role="user", text=without)]
        found = EvaluationSets([prompt]).find(b"other", turns, hash_words([]))
        assert found == [leak("prompt", 1.0, row=2)]


def test_symbols_make_another_prompt():
    sums = [
        EvaluationPrompt(name="bench", row=i, key=b"%d" % i, text=f"What is 12 {sign} 7?")
        for i, sign in enumerate("+-")
    ]
    found = EvaluationSets(sums).find(
        b"other", [Turn(role="user", text="What is 12 - 7")], hash_words([])
    )
    assert found == [leak("prompt", 1.0, row=1)]


def test_no_sets_find_nothing():
    assert find(WORDS, sets=EvaluationSets([])) == []
