from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenized_groups import (
    BUILTIN,
    NO_END,
    WITH_BEGIN,
    assistant,
    group_of,
    pair_of,
    refusal_of,
    result_of,
    template_ids,
    tokens_of,
)

from rm_ray.config.sections.data import DataConfig
from rm_ray.data.preferences.group_reading import read_group
from rm_ray.data.rows.groups import Group
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.sources.synthetic import CHAT_TEMPLATE
from rm_ray.data.tokens.group_tokenizer import GroupTokenizer, TokenizedGroup
from rm_ray.data.tokens.tokenizer import load_tokenizer

contents = st.text(max_size=12).filter(lambda text: "<|" not in text)

turns = st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), contents)


@st.composite
def groups(draw: st.DrawFn) -> Group:
    """Draw groups of 1 to 5 distinct responses; half of them are pairs."""
    prompt = [{"role": role, "content": text} for role, text in draw(st.lists(turns, max_size=3))]
    size = draw(st.sampled_from([1, 2, 2, 2, 3, 5]))
    responses = draw(st.lists(contents, min_size=size, max_size=size, unique=True))
    return Group(prompt=prompt, responses=[*map(assistant, responses)], comparisons=())


@given(groups())
def test_ids_are_exactly_those_of_the_chat_template(group: Group):
    tokens = tokens_of(group)

    assert tokens.ids == [template_ids(BUILTIN, messages) for messages in group.conversations]


@given(groups())
def test_a_begin_token_from_the_template_occurs_once(group: Group):
    tokens = tokens_of(group, WITH_BEGIN)

    assert tokens.ids == [template_ids(WITH_BEGIN, messages) for messages in group.conversations]
    for ids in tokens.ids:
        assert ids[0] == WITH_BEGIN.bos_token_id
        assert ids.count(WITH_BEGIN.bos_token_id) == 1


@given(groups())
def test_the_prefix_is_the_longest_that_leaves_each_conversation_a_token(group: Group):
    tokens = tokens_of(group)

    length, (first, *others) = tokens.prefix_length, tokens.ids
    assert all(ids[:length] == first[:length] for ids in others)
    shortest = min(map(len, tokens.ids))
    assert length < shortest
    assert length == shortest - 1 or any(ids[length] != first[length] for ids in others)


def test_the_prefix_stops_a_token_short_if_one_side_continues_the_other():
    tokenizer = load_tokenizer("builtin", chat_template=NO_END)

    tokens = tokens_of(pair_of("Why?", "So", "So and so"), tokenizer)

    short, long = tokens.ids
    assert long[: len(short)] == short
    assert tokens.prefix_length == len(short) - 1


def test_the_prefix_of_three_is_what_all_of_them_share():
    two, three = (
        tokens_of(group_of("Why?", "So it is.", "So be it.", *more)) for more in ((), ("No.",))
    )

    assert two.prefix_length > three.prefix_length == three.prompt_length
    assert three.ids[:2] == two.ids


def test_a_single_response_shares_all_but_its_last_token_with_itself():
    tokens = tokens_of(group_of("Why?", "So."))

    assert tokens.prefix_length == len(tokens.ids[0]) - 1
    assert BUILTIN.decode(tokens.ids[0][tokens.prompt_length :]) == "So.<|end|>"


def test_the_prompt_ends_where_the_response_begins():
    responses = ("Snow is white.", "It is black.", "Snow? White.")
    tokens = tokens_of(group_of("What colour is snow?", *responses))

    prompt = "<|user|>\nWhat colour is snow?\n<|assistant|>\n"
    for ids, response in zip(tokens.ids, responses, strict=True):
        assert BUILTIN.decode(ids[: tokens.prompt_length]) == prompt
        assert BUILTIN.decode(ids[tokens.prompt_length :]) == f"{response}<|end|>"


@given(groups())
def test_the_prompt_holds_the_tokens_that_begin_inside_it(group: Group):
    assume(group.prompt)

    tokens = tokens_of(group)

    prompt = BUILTIN.apply_chat_template(group.prompt, tokenize=False, add_generation_prompt=True)
    text = BUILTIN.apply_chat_template(group.conversations[0], tokenize=False)
    offsets = BUILTIN(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert tokens.prompt_length == sum(start < len(prompt) for start, _ in offsets)


def test_a_conversation_without_a_prompt_has_a_prompt_of_no_tokens():
    pair, _ = read_group({"chosen": "So.", "rejected": "No."})

    assert tokens_of(pair).prompt_length == 0


def test_a_generation_prompt_that_the_conversation_lacks_is_counted_as_tokens():
    template = CHAT_TEMPLATE.replace("'<|assistant|>\n' }}{% endif %}", "'<|tool|>' }}{% endif %}")
    tokenizer = load_tokenizer("builtin", chat_template=template)
    prompt = "<|user|>\nWhy?\n<|tool|>"
    messages = [{"role": "user", "content": "Why?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == prompt

    tokens = tokens_of(pair_of("Why?", "So.", "No."), tokenizer)

    assert tokens.prompt_length == len(tokenizer(prompt)["input_ids"])


@given(st.lists(groups(), max_size=6))
def test_groups_tokenised_together_match_each_alone(several: list[Group]):
    reserved = group_of("What is so?", "So.", "No.", "What is <|end|>?")
    mixed = [item for group in several for item in (group, reserved)]

    together = GroupTokenizer(BUILTIN, DataConfig()).tokenize(mixed)

    assert together[::2] == [tokens_of(group) for group in several]
    for refused in together[1::2]:
        assert isinstance(refused, RefusedError)
        assert refused.reason == Reason.RESERVED_TOKENS


def test_no_groups_give_no_results():
    assert GroupTokenizer(BUILTIN, DataConfig()).tokenize([]) == []


def test_responses_that_the_template_makes_equal_are_refused():
    template = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
    tokenizer = load_tokenizer("builtin", chat_template=template)
    pair = pair_of("Why?", "So.", "So. ")

    assert refusal_of(pair, tokenizer).reason == Reason.IDENTICAL_AFTER_TEMPLATING
    first, second = tokens_of(pair).ids
    assert first != second
    three = group_of("Why?", "So.", "No.", "So. ")
    assert refusal_of(three, tokenizer).reason == Reason.IDENTICAL_AFTER_TEMPLATING


def test_a_template_that_refuses_a_row_refuses_only_that_row():
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        + CHAT_TEMPLATE
    )
    tokenizer = load_tokenizer("builtin", chat_template=template)
    good = pair_of("Why?", "So.", "No.")
    system = [{"role": "system", "content": "Be kind."}]
    bad = replace(good, prompt=system + good.prompt)

    first, refused, last = GroupTokenizer(tokenizer, DataConfig()).tokenize([good, bad, good])

    assert isinstance(refused, RefusedError)
    assert (refused.reason, refused.detail) == (Reason.TEMPLATE_REFUSED, "no system turn")
    assert first == last == tokens_of(good)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[5]['content'] + '' }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ messages[0]['date'].year }}",
        "{{ messages[0]['content'].index('not there') }}",
        "{{ messages | length / 0 }}",
        "{% if false %}{{ messages }}{% endif %}",
    ],
)
def test_a_template_that_fails_or_writes_nothing_refuses_the_row(template: str):
    tokenizer = load_tokenizer("builtin", chat_template=template)

    refused = refusal_of(pair_of("Why?", "So.", "No."), tokenizer)

    assert refused.reason == Reason.TEMPLATE_REFUSED
    assert refused.detail


def test_a_pair_as_long_as_the_limit_is_kept_and_a_token_more_is_refused():
    pair = pair_of("Why is that so?", "So.", "No, it is not so at all.")
    shortest, longest = map(len, tokens_of(pair).ids)
    assert longest > shortest

    assert tokens_of(pair, max_length=longest) == tokens_of(pair)
    refused = refusal_of(pair, max_length=longest - 1)
    assert (refused.reason, refused.detail) == (Reason.TOO_LONG, f"{longest} tokens")


def test_a_prompt_as_long_as_its_limit_is_kept_and_a_token_more_is_refused():
    pair = pair_of("Why is that so?", "So.", "No.")
    length = tokens_of(pair).prompt_length

    assert tokens_of(pair, max_prompt_length=length) == tokens_of(pair)
    refused = refusal_of(pair, max_prompt_length=length - 1)
    assert (refused.reason, refused.detail) == (Reason.PROMPT_TOO_LONG, f"{length} tokens")


def test_truncation_removes_the_oldest_tokens_of_the_prompt():
    group = group_of("Why is that so?", "So.", "No, it is not.", "Who knows?")
    whole = tokens_of(group)
    limit = max(map(len, whole.ids)) - 2

    cut = tokens_of(group, max_length=limit, over_length="truncate")

    assert cut.ids == [ids[2:] for ids in whole.ids]
    assert cut.prompt_length == whole.prompt_length - 2
    assert cut.prefix_length == whole.prefix_length - 2


def test_truncation_keeps_the_begin_token():
    pair = pair_of("Why is that so?", "So.", "No, it is not.")
    whole = tokens_of(pair, WITH_BEGIN)

    cut = tokens_of(
        pair, WITH_BEGIN, max_prompt_length=whole.prompt_length - 3, over_length="truncate"
    )

    assert cut.ids == [[WITH_BEGIN.bos_token_id, *ids[4:]] for ids in whole.ids]


def test_a_response_that_alone_is_too_long_is_refused_even_with_truncation():
    pair = pair_of("Why?", "So.", "No, it is not so, it has never been so.")
    whole = tokens_of(pair)
    response = len(whole.ids[1]) - whole.prompt_length

    limit = {"max_length": response, "over_length": "truncate"}
    assert tokens_of(pair, **limit).ids[1] == whole.ids[1][whole.prompt_length :]
    limit["max_length"] = response - 1
    assert refusal_of(pair, **limit).reason == Reason.TOO_LONG


def test_what_only_a_generation_prompt_holds_is_never_cut_from_the_responses():
    template = CHAT_TEMPLATE.replace("'<|assistant|>\n' }}{% endif %}", "'A' * 400 }}{% endif %}")
    tokenizer = load_tokenizer("builtin", chat_template=template)
    pair = pair_of("Why?", "So.", "No.")
    whole = tokens_of(pair, tokenizer)
    shared = whole.prefix_length
    assert whole.prompt_length > shared

    limits = {"over_length": "truncate", "max_length": len(whole.ids[0]) - shared}
    assert tokens_of(pair, tokenizer, **limits).ids[0] == whole.ids[0][shared:]
    limits["max_length"] -= 1
    assert refusal_of(pair, tokenizer, **limits).reason == Reason.TOO_LONG


@given(
    st.text("abc \né", min_size=1, max_size=30),
    st.lists(st.text("abc \né", min_size=1, max_size=12), min_size=1, max_size=4, unique=True),
    st.integers(2, 40),
    st.none() | st.integers(1, 40),
    st.booleans(),
)
def test_truncation_cuts_as_little_as_possible_and_never_a_response(
    prompt: str,
    responses: list[str],
    max_length: int,
    max_prompt_length: int | None,
    begins: bool,
):
    tokenizer = WITH_BEGIN if begins else BUILTIN
    group = group_of(prompt, *responses)
    limits = {"max_length": max_length, "max_prompt_length": max_prompt_length}
    whole = tokens_of(group, tokenizer)
    length, least = whole.prompt_length, int(begins)
    longest = max(map(len, whole.ids))
    excess = max(longest - max_length, length - (max_prompt_length or max_length), 0)

    cut = result_of(group, tokenizer, over_length="truncate", **limits)
    kept = result_of(group, tokenizer, over_length="drop", **limits)

    if not excess:
        assert cut == kept == whole
        return
    assert isinstance(kept, RefusedError)
    expected = Reason.TOO_LONG if longest > max_length else Reason.PROMPT_TOO_LONG
    assert kept.reason == expected
    if isinstance(cut, RefusedError):
        assert cut.reason == expected
        assert min(length, whole.prefix_length) - least < excess
        return
    for ids, before in zip(cut.ids, whole.ids, strict=True):
        assert len(ids) == len(before) - excess <= max_length
        assert ids[:least] == before[:least]
        assert ids[least:] == before[least + excess :]
        response = before[length:]
        assert ids[len(ids) - len(response) :] == response
    assert len({*map(tuple, cut.ids)}) == len(responses)
    assert cut.prompt_length == length - excess <= (max_prompt_length or max_length)
    assert cut.prefix_length == whole.prefix_length - excess


@pytest.mark.parametrize("name", ["tokenizer_bpe4k", "tokenizer_neox"])
def test_real_pairs_become_exactly_the_ids_of_a_real_tokenizers_template(
    name: str,
    shared_data: Callable[[str], Path],
    real_rows: Callable[[str], Iterator[dict[str, Any]]],
):
    tokenizer = load_tokenizer(str(shared_data(name)))
    rows = [read_group(row)[0] for row in islice(real_rows("eval.jsonl"), 150)]

    results = GroupTokenizer(tokenizer, DataConfig(max_length=8192)).tokenize(rows)

    for pair, tokens in zip(rows, results, strict=True):
        assert isinstance(tokens, TokenizedGroup)
        assert tokens.ids == [template_ids(tokenizer, messages) for messages in pair.conversations]
        prompt = tokenizer.apply_chat_template(
            pair.prompt, tokenize=False, add_generation_prompt=True
        )
        assert tokenizer.decode(tokens.ids[0][: tokens.prompt_length]) == prompt


@pytest.mark.parametrize("name", ["tokenizer_bpe4k", "tokenizer_neox"])
def test_a_real_prompt_is_cut_from_its_beginning(
    name: str,
    shared_data: Callable[[str], Path],
    real_rows: Callable[[str], Iterator[dict[str, Any]]],
):
    tokenizer = load_tokenizer(str(shared_data(name)))
    rows = [read_group(row)[0] for row in islice(real_rows("eval.jsonl"), 150)]
    config = DataConfig(max_length=200, over_length="truncate")
    whole = GroupTokenizer(tokenizer, DataConfig(max_length=8192)).tokenize(rows)

    num_cut = 0
    for before, after in zip(whole, GroupTokenizer(tokenizer, config).tokenize(rows), strict=True):
        assert isinstance(before, TokenizedGroup)
        if isinstance(after, RefusedError):
            assert after.reason == Reason.TOO_LONG
            continue
        num_cut += after.prompt_length < before.prompt_length
        assert max(map(len, after.ids)) <= 200
        for ids, cut in zip(before.ids, after.ids, strict=True):
            assert ids[before.prompt_length :] == cut[after.prompt_length :]
        assert after.ids[0] != after.ids[1]
    assert num_cut > 10
