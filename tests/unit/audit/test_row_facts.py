"""Raw rows to facts."""

import json
from typing import Any

import numpy as np
import pytest

from rm_ray.audit.contamination.evaluation_sets import EvaluationPrompt, EvaluationSets
from rm_ray.audit.row_facts import SCHEMA, read_block
from rm_ray.config.column_rules import NO_RULES
from rm_ray.data.cache.exclusions import NO_EXCLUSIONS, Exclusions
from rm_ray.data.cache.overlap import hash_group
from rm_ray.data.preferences.group_reading import parse_group

PAIR = {"prompt": "Why is the sky blue?", "chosen": "It scatters light.", "rejected": "No idea."}


def facts(
    *rows: Any, sets: EvaluationSets | None = None, exclusions: Exclusions = NO_EXCLUSIONS
) -> list[dict[str, Any]]:
    batch = {
        "fragment": np.zeros(len(rows), dtype=np.int32),
        "row": np.arange(len(rows)),
        "json": np.array([json.dumps(row) for row in rows], dtype=object),
    }
    sets = sets or EvaluationSets([])
    table = read_block(batch, ["a.jsonl"], NO_RULES, sets, exclusions)
    assert table.schema == SCHEMA
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def swapped(pair: dict[str, Any]) -> dict[str, Any]:
    return {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]}


def test_a_pair_is_described():
    (found,) = facts(PAIR)
    assert (found["source"], found["reason"], found["language"]) == ("a.jsonl", "", "en")
    assert (found["prompt_words"], found["better_words"], found["worse_words"]) == (5, 3.0, 2.0)
    assert (found["longer_won"], found["longer_of"]) == (1.0, 1.0)
    assert len(found["compared"]) == len(found["signs"]) == 1


def test_repeated_rows_have_equal_labels_and_reversed_ones_opposite_signs():
    spaced = {**PAIR, "prompt": "why is  the sky BLUE?"}
    one, again, reverse, other = facts(PAIR, spaced, swapped(PAIR), {**PAIR, "chosen": "Light."})
    assert one["labelled"] == again["labelled"] != reverse["labelled"]
    assert one["content"] == reverse["content"] != other["content"]
    assert one["compared"] == reverse["compared"] != other["compared"]
    assert one["signs"] == [-sign for sign in reverse["signs"]] != [0]
    assert one["responses_sketch"] == reverse["responses_sketch"] != other["responses_sketch"]
    assert one["bands"] == reverse["bands"] != other["bands"]


def test_ties_have_no_sign_and_rated_responses_are_told_apart_by_their_score():
    (tie,) = facts({**PAIR, "tie": True})
    assert tie["signs"] == [0]
    rated = {"prompt": "Why?", "response": "So.", "score": 1}
    one, again, other = facts(rated, rated, {**rated, "score": 2})
    assert one["labelled"] == again["labelled"] != other["labelled"]
    assert np.isnan(one["better_words"])


def test_refused_and_excluded_rows_keep_their_reason_and_text():
    excluded = Exclusions(
        places=np.array([1]), why=np.array([0]), reasons=("twice",), origins=("a.jsonl",)
    )
    first, second = facts({"prompt": "Why?"}, PAIR, exclusions=excluded)
    assert first["reason"] == "chosen or rejected missing"
    assert (second["reason"], second["detail"]) == ("excluded", "twice")
    assert json.loads(second["raw"]) == PAIR


def test_rows_without_words_have_no_bands():
    marks = {"prompt": "?", "chosen": "!", "rejected": "..."}
    (found,) = facts(marks)
    assert found["bands"] == []


def test_rows_without_words_in_the_prompt_have_bands_of_the_responses():
    one, same = facts(*({**PAIR, "prompt": mark} for mark in "?!"))
    other = facts({**PAIR, "prompt": "Why?"}, {**PAIR, "prompt": "?", "chosen": "Light."})
    assert one["bands"] == same["bands"] != []
    assert not any({*one["bands"]} & {*each["bands"]} for each in other)


def test_rows_without_words_in_the_responses_resemble_none():
    assert [row["bands"] for row in facts({**PAIR, "chosen": "+", "rejected": "-"})] == [[]]


def test_tool_calls_are_part_of_what_responses_are_compared_by():
    def calling(city: str) -> dict[str, Any]:
        function = {"name": "weather", "arguments": {"city": city}}
        call = {"type": "function", "function": function}
        asked = {"role": "user", "content": "Is it warm?"}
        chosen = {"role": "assistant", "content": "", "tool_calls": [call]}
        rejected = {"role": "assistant", "content": "Yes."}
        return {"chosen": [asked, chosen], "rejected": [asked, rejected]}

    one, other = facts(calling("Rome"), calling("Oslo"))
    assert one["bands"] != other["bands"] != []
    assert one["responses_sketch"] != other["responses_sketch"]


def test_instructions_are_no_part_of_what_prompts_are_compared_by():
    def under(system: str) -> dict[str, Any]:
        turns = [{"role": "system", "content": system}, {"role": "user", "content": "Why is it?"}]
        return {**PAIR, "prompt": turns}

    one, other = facts(under("Be brief."), under("You are a pirate."))
    assert (one["bands"], one["prompt_sketch"]) == (other["bands"], other["prompt_sketch"])
    assert one["labelled"] != other["labelled"]
    assert (one["prompt_words"], other["prompt_words"]) == (5, 7)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"margin": 3.0}, {"margin": 0.5}),
        ({"margin": 3.0}, {}),
        ({"scores": [5, 1]}, {"scores": [2, 1]}),
    ],
)
def test_rows_with_other_strengths_do_not_repeat_each_other(one, other):
    pair = PAIR if "margin" in one else {"prompt": "Why?", "responses": ["So.", "No."]}
    first, again, second = facts({**pair, **one}, {**pair, **one}, {**pair, **other})
    assert first["labelled"] == again["labelled"] != second["labelled"]
    assert first["compared"] == second["compared"]


def test_half_a_surrogate_pair_in_what_is_only_reported_becomes_a_question_mark():
    row = {**PAIR, "chosen_model": "x\ud83d", "rejected_model": "y"}
    excluded = Exclusions(
        places=np.array([1]), why=np.array([0]), reasons=("\ud83d",), origins=("a.jsonl",)
    )
    found, left_out = facts(row, PAIR, exclusions=excluded)
    assert found["writers"] == ["x?", "y"]
    assert left_out["detail"] == "?"


def test_a_shared_prompt_is_a_leak():
    key = hash_group(parse_group(PAIR))["prompt_hash"]
    prompt = EvaluationPrompt(name="bench", row=3, key=key, text="")
    (found,) = facts(PAIR, sets=EvaluationSets([prompt]))
    assert [json.loads(leak) for leak in found["leaks"]] == [
        {"name": "bench", "row": 3, "how": "prompt", "covered": 1.0}
    ]
