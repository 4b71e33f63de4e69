"""Held-out prompts, duplicates and contradictions, by hashes and by comparing texts."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.config.sections.data import DataConfig
from rm_ray.data.cache.cache_rows import tokenize_block, tokenize_rows
from rm_ray.data.cache.overlap import (
    KEY,
    NO_KEYS,
    combine_keys,
    count_contradictions,
    count_duplicates,
    count_overlap,
    find_overlap,
    hash_group,
    join_keys,
)
from rm_ray.data.rows.context import Context
from rm_ray.data.rows.groups import Group
from rm_ray.data.rows.turns import Message
from rm_ray.data.tokens.group_tokenizer import GroupTokenizer
from rm_ray.data.tokens.tokenizer import load_tokenizer

KEYS = st.lists(
    st.sampled_from([bytes(16), b"\1" + bytes(15), bytes(15) + b"\1", b"\xff" * 16]), max_size=9
)
PAIRS = st.lists(st.tuples(*[st.sampled_from("abc")] * 3).filter(lambda p: p[1] != p[2]))


def keys_of(values: list[bytes]) -> np.ndarray:
    return np.array(values, dtype=KEY)


def group_of(prompt: str, *responses: str, **more: object) -> Group:
    turns = [{"role": "user", "content": prompt}] if prompt else []
    return answered(turns, *responses, **more)


def answered(prompt: list[Message], *responses: str, **more: object) -> Group:
    answers = [{"role": "assistant", "content": response} for response in responses]
    return Group(prompt=prompt, responses=answers, **more)


@given(KEYS, KEYS)
def test_overlap_compares_whole_keys(keys, others):
    found = find_overlap(keys_of(keys), keys_of(others))
    assert found.tolist() == [key in others for key in keys]


@given(PAIRS)
def test_repeat_counts_match_a_comparison_of_texts(pairs):
    hashes = [hash_group(group_of(*pair)) for pair in pairs]
    chosen, rejected = (keys_of([h["response_hashes"][side] for h in hashes]) for side in (0, 1))
    keys, swaps = combine_keys(chosen, rejected), combine_keys(rejected, chosen)
    assert count_duplicates(keys) == len(pairs) - len(set(pairs))
    assert count_contradictions(keys, swaps) == sum((p, r, c) in pairs for p, c, r in pairs)


@given(KEYS, KEYS)
def test_keys_are_read_from_columns_and_slices(first, second):
    columns = [pa.array([bytes(16), *part], pa.binary(16)).slice(1) for part in (first, second)]
    assert join_keys(columns).tolist() == keys_of([*first, *second]).tolist()


def test_case_width_and_whitespace_do_not_change_a_prompt():
    prompt_hash = hash_group(group_of("Is \ufb01re hot?", "yes", "no"))["prompt_hash"]
    assert hash_group(group_of(" is  FIRE\nhot? ", "a", "b"))["prompt_hash"] == prompt_hash
    assert hash_group(group_of("Is fire cold?", "yes", "no"))["prompt_hash"] != prompt_hash


def test_a_square_is_another_prompt_than_the_digits():
    first, second, third = (
        hash_group(group_of(f"What is {number}?"))["prompt_hash"]
        for number in ("5\u00b2", "5^2", "52")
    )
    assert first == second != third


def test_roles_and_tool_calls_are_part_of_a_prompt_but_metadata_is_not():
    def prompt_hash(**more: object) -> bytes:
        turn = {"role": "user", "content": "q", **more}
        return hash_group(answered([turn], "a", "b"))["prompt_hash"]

    assert prompt_hash(id="7") == prompt_hash()
    assert prompt_hash(role="system") != prompt_hash()
    assert prompt_hash(tool_calls=[{"name": "f"}]) != prompt_hash()


def test_turn_boundaries_are_part_of_a_prompt():
    def prompt_hash(*contents: str) -> bytes:
        turns = [{"role": "user", "content": content} for content in contents]
        return hash_group(answered(turns, "a", "b"))["prompt_hash"]

    assert prompt_hash("a", "b") != prompt_hash("a\0user\0b")
    assert prompt_hash("a\0user\0b") == prompt_hash("A\0user\0b")


def test_groups_without_a_prompt_match_only_if_their_responses_match():
    first, second, turned = (hash_group(group_of("", *each)) for each in ("abc", "abd", "cba"))
    assert first["prompt_hash"] != second["prompt_hash"]
    assert first["prompt_hash"] == turned["prompt_hash"]
    assert first["response_hashes"] == turned["response_hashes"][::-1]


def test_a_response_has_one_hash_in_all_groups_of_its_prompt():
    alone, pair, three = (hash_group(group_of("q", *each)) for each in ("b", "ba", "cab"))
    assert (
        len({*alone["response_hashes"], *pair["response_hashes"], *three["response_hashes"]}) == 3
    )
    assert alone["response_hashes"] == [three["response_hashes"][2]]
    assert pair["response_hashes"] == [three["response_hashes"][place] for place in (2, 1)]
    assert hash_group(group_of("other", "b"))["response_hashes"] != alone["response_hashes"]


def test_groups_are_made_of_prompts_that_are_the_same_as_they_stand():
    def group_hash(prompt: str, **more: object) -> bytes:
        return hash_group(group_of(prompt, "a", "b", **more))["group_hash"]

    assert group_hash("Why?") == hash_group(group_of("Why?", "c"))["group_hash"]
    assert group_hash("Why?") != group_hash("why?")
    assert group_hash("Why?") != group_hash("Why?", context=Context(documents=["d"]))


def test_groups_with_different_tools_are_not_duplicates():
    tools = Context(tools=[{"name": "f"}])
    plain, with_tools = (
        hash_group(group_of("q", "a", "b", **more)) for more in ({}, {"context": tools})
    )
    assert not {*plain["response_hashes"]} & {*with_tools["response_hashes"]}


def test_held_out_groups_are_counted_by_source():
    held_out, trained_on = keys_of([b"a" * 16, b"b" * 16, b"a" * 16]), keys_of([b"a" * 16])
    assert count_overlap(held_out, ["x", "x", "y"], trained_on) == {"x": 1, "y": 1}
    assert count_overlap(held_out, ["x", "x", "y"], NO_KEYS) == {}


def test_training_rows_with_a_held_out_prompt_are_refused_with_their_text():
    tokenizer = GroupTokenizer(load_tokenizer("builtin"), DataConfig())
    texts = [
        json.dumps({"prompt": prompt, "chosen": "yes", "rejected": "no"})
        for prompt in ("Is it so?", "Is it  SO?", "Why?")
    ]
    texts.append("[]")
    held_out = tokenize_rows(tokenizer, texts[:1], ["eval"])
    keys = keys_of([held_out[0]["prompt_hash"]])
    batch = {"fragment": np.zeros(4, int), "row": np.arange(4), "json": np.array(texts)}
    rows = tokenize_block(batch, tokenizer, ["train"], keys).to_pylist()
    refused = "prompt is held out too"
    assert [row["reason"] for row in rows] == [refused, refused, "", "not messages"]
    assert [row["raw"] for row in rows] == [texts[0], texts[1], None, "[]"]
    assert rows[0]["ids"] is None and rows[0]["prompt_hash"] is None
    kept = tokenize_block(batch, tokenizer, ["train"]).to_pylist()
    assert Counter(row["reason"] for row in kept) == {"": 3, "not messages": 1}
