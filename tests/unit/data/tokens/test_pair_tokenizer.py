from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenized_pairs import (
    BUILTIN,
    NO_END,
    WITH_BEGIN,
    assistant,
    pair_of,
    refusal_of,
    result_of,
    template_ids,
    tokens_of,
)

from rm_ray.config.sections.data import DataConfig
from rm_ray.data.rows.pairs import Pair, parse_pair
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.sources.synthetic import CHAT_TEMPLATE
from rm_ray.data.tokens.pair_tokenizer import PairTokenizer, TokenizedPair
from rm_ray.data.tokens.tokenizer import load_tokenizer

contents = st.text(max_size=12).filter(lambda text: "<|" not in text)

turns = st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), contents)


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    prompt = [{"role": role, "content": text} for role, text in draw(st.lists(turns, max_size=3))]
    chosen, rejected = draw(contents), draw(contents)
    assume(chosen != rejected)
    return Pair(chosen=[*prompt, assistant(chosen)], rejected=[*prompt, assistant(rejected)])


@given(pairs())
def test_ids_are_exactly_those_of_the_chat_template(pair: Pair):
    tokens = tokens_of(pair)

    assert tokens.chosen_ids == template_ids(BUILTIN, pair.chosen)
    assert tokens.rejected_ids == template_ids(BUILTIN, pair.rejected)


@given(pairs())
def test_a_begin_token_from_the_template_occurs_once(pair: Pair):
    tokens = tokens_of(pair, WITH_BEGIN)

    assert tokens.chosen_ids == template_ids(WITH_BEGIN, pair.chosen)
    for ids in (tokens.chosen_ids, tokens.rejected_ids):
        assert ids[0] == WITH_BEGIN.bos_token_id
        assert ids.count(WITH_BEGIN.bos_token_id) == 1


@given(pairs())
def test_the_prefix_is_the_longest_that_leaves_each_side_a_token(pair: Pair):
    tokens = tokens_of(pair)

    chosen, rejected, length = tokens.chosen_ids, tokens.rejected_ids, tokens.prefix_length
    assert chosen[:length] == rejected[:length]
    assert length < min(len(chosen), len(rejected))
    at_the_cap = length == min(len(chosen), len(rejected)) - 1
    assert at_the_cap or chosen[length] != rejected[length]


def test_the_prefix_stops_a_token_short_if_one_side_continues_the_other():
    tokenizer = load_tokenizer("builtin", chat_template=NO_END)

    tokens = tokens_of(pair_of("Why?", "So", "So and so"), tokenizer)

    assert tokens.rejected_ids[: len(tokens.chosen_ids)] == tokens.chosen_ids
    assert tokens.prefix_length == len(tokens.chosen_ids) - 1


def test_the_prompt_ends_where_the_response_begins():
    tokens = tokens_of(pair_of("What colour is snow?", "Snow is white.", "It is black."))

    prompt = "<|user|>\nWhat colour is snow?\n<|assistant|>\n"
    responses = ("Snow is white.<|end|>", "It is black.<|end|>")
    for ids, response in zip((tokens.chosen_ids, tokens.rejected_ids), responses, strict=True):
        assert BUILTIN.decode(ids[: tokens.prompt_length]) == prompt
        assert BUILTIN.decode(ids[tokens.prompt_length :]) == response


@given(pairs())
def test_the_prompt_holds_the_tokens_that_begin_inside_it(pair: Pair):
    assume(pair.prompt)

    tokens = tokens_of(pair)

    prompt = BUILTIN.apply_chat_template(pair.prompt, tokenize=False, add_generation_prompt=True)
    text = BUILTIN.apply_chat_template(pair.chosen, tokenize=False)
    offsets = BUILTIN(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert tokens.prompt_length == sum(start < len(prompt) for start, _ in offsets)


def test_a_conversation_without_a_prompt_has_a_prompt_of_no_tokens():
    assert tokens_of(parse_pair({"chosen": "So.", "rejected": "No."})).prompt_length == 0


def test_a_generation_prompt_that_the_conversation_lacks_is_counted_as_tokens():
    template = CHAT_TEMPLATE.replace("'<|assistant|>\n' }}{% endif %}", "'<|tool|>' }}{% endif %}")
    tokenizer = load_tokenizer("builtin", chat_template=template)
    prompt = "<|user|>\nWhy?\n<|tool|>"
    messages = [{"role": "user", "content": "Why?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == prompt

    tokens = tokens_of(pair_of("Why?", "So.", "No."), tokenizer)

    assert tokens.prompt_length == len(tokenizer(prompt)["input_ids"])


@given(st.lists(pairs(), max_size=6))
def test_pairs_tokenised_together_match_each_alone(several: list[Pair]):
    reserved = pair_of("What is <|end|>?", "So.", "No.")
    mixed = [item for pair in several for item in (pair, reserved)]

    together = PairTokenizer(BUILTIN, DataConfig()).tokenize(mixed)

    assert together[::2] == [tokens_of(pair) for pair in several]
    for refused in together[1::2]:
        assert isinstance(refused, RefusedError)
        assert refused.reason == Reason.RESERVED_TOKENS


def test_no_pairs_give_no_results():
    assert PairTokenizer(BUILTIN, DataConfig()).tokenize([]) == []


def test_responses_that_the_template_makes_equal_are_refused():
    template = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
    tokenizer = load_tokenizer("builtin", chat_template=template)
    pair = pair_of("Why?", "So.", "So. ")

    assert refusal_of(pair, tokenizer).reason == Reason.IDENTICAL_AFTER_TEMPLATING
    assert tokens_of(pair).chosen_ids != tokens_of(pair).rejected_ids


def test_a_template_that_refuses_a_row_refuses_only_that_row():
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        + CHAT_TEMPLATE
    )
    tokenizer = load_tokenizer("builtin", chat_template=template)
    good = pair_of("Why?", "So.", "No.")
    system = [{"role": "system", "content": "Be kind."}]
    bad = Pair(chosen=system + good.chosen, rejected=system + good.rejected)

    first, refused, last = PairTokenizer(tokenizer, DataConfig()).tokenize([good, bad, good])

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
    longest = len(tokens_of(pair).rejected_ids)
    assert longest > len(tokens_of(pair).chosen_ids)

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
    pair = pair_of("Why is that so?", "So.", "No, it is not.")
    whole = tokens_of(pair)
    limit = len(whole.rejected_ids) - 2

    cut = tokens_of(pair, max_length=limit, over_length="truncate")

    assert cut.chosen_ids == whole.chosen_ids[2:]
    assert cut.rejected_ids == whole.rejected_ids[2:]
    assert cut.prompt_length == whole.prompt_length - 2
    assert cut.prefix_length == whole.prefix_length - 2


def test_truncation_keeps_the_begin_token():
    pair = pair_of("Why is that so?", "So.", "No, it is not.")
    whole = tokens_of(pair, WITH_BEGIN)

    cut = tokens_of(
        pair, WITH_BEGIN, max_prompt_length=whole.prompt_length - 3, over_length="truncate"
    )

    assert cut.chosen_ids == [WITH_BEGIN.bos_token_id, *whole.chosen_ids[4:]]
    assert cut.rejected_ids == [WITH_BEGIN.bos_token_id, *whole.rejected_ids[4:]]


def test_a_response_that_alone_is_too_long_is_refused_even_with_truncation():
    pair = pair_of("Why?", "So.", "No, it is not so, it has never been so.")
    whole = tokens_of(pair)
    response = len(whole.rejected_ids) - whole.prompt_length

    limit = {"max_length": response, "over_length": "truncate"}
    assert tokens_of(pair, **limit).rejected_ids == whole.rejected_ids[whole.prompt_length :]
    limit["max_length"] = response - 1
    assert refusal_of(pair, **limit).reason == Reason.TOO_LONG


def test_what_only_a_generation_prompt_holds_is_never_cut_from_the_responses():
    template = CHAT_TEMPLATE.replace("'<|assistant|>\n' }}{% endif %}", "'A' * 400 }}{% endif %}")
    tokenizer = load_tokenizer("builtin", chat_template=template)
    pair = pair_of("Why?", "So.", "No.")
    whole = tokens_of(pair, tokenizer)
    shared = whole.prefix_length
    assert whole.prompt_length > shared

    limits = {"over_length": "truncate", "max_length": len(whole.chosen_ids) - shared}
    assert tokens_of(pair, tokenizer, **limits).chosen_ids == whole.chosen_ids[shared:]
    limits["max_length"] -= 1
    assert refusal_of(pair, tokenizer, **limits).reason == Reason.TOO_LONG


@given(
    st.text("abc \né", min_size=1, max_size=30),
    st.text("abc \né", min_size=1, max_size=12),
    st.text("abc \né", min_size=1, max_size=12),
    st.integers(2, 40),
    st.none() | st.integers(1, 40),
    st.booleans(),
)
def test_truncation_cuts_as_little_as_possible_and_never_a_response(
    prompt: str,
    chosen: str,
    rejected: str,
    max_length: int,
    max_prompt_length: int | None,
    begins: bool,
):
    assume(chosen != rejected)
    tokenizer = WITH_BEGIN if begins else BUILTIN
    messages = [{"role": "user", "content": prompt}]
    pair = Pair(chosen=[*messages, assistant(chosen)], rejected=[*messages, assistant(rejected)])
    limits = {"max_length": max_length, "max_prompt_length": max_prompt_length}
    whole = tokens_of(pair, tokenizer)
    length, least = whole.prompt_length, int(begins)
    longest = max(len(whole.chosen_ids), len(whole.rejected_ids))
    excess = max(longest - max_length, length - (max_prompt_length or max_length), 0)

    cut = result_of(pair, tokenizer, over_length="truncate", **limits)
    kept = result_of(pair, tokenizer, over_length="drop", **limits)

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
    for ids, before in (
        (cut.chosen_ids, whole.chosen_ids),
        (cut.rejected_ids, whole.rejected_ids),
    ):
        assert len(ids) == len(before) - excess <= max_length
        assert ids[:least] == before[:least]
        assert ids[least:] == before[least + excess :]
        response = before[length:]
        assert ids[len(ids) - len(response) :] == response
    assert cut.chosen_ids != cut.rejected_ids
    assert cut.prompt_length == length - excess <= (max_prompt_length or max_length)
    assert cut.prefix_length == whole.prefix_length - excess


@pytest.mark.parametrize("name", ["tokenizer_bpe4k", "tokenizer_neox"])
def test_real_pairs_become_exactly_the_ids_of_a_real_tokenizers_template(
    name: str,
    shared_data: Callable[[str], Path],
    real_rows: Callable[[str], Iterator[dict[str, Any]]],
):
    tokenizer = load_tokenizer(str(shared_data(name)))
    rows = [parse_pair(row) for row in islice(real_rows("eval.jsonl"), 150)]

    results = PairTokenizer(tokenizer, DataConfig(max_length=8192)).tokenize(rows)

    for pair, tokens in zip(rows, results, strict=True):
        assert isinstance(tokens, TokenizedPair)
        assert tokens.chosen_ids == template_ids(tokenizer, pair.chosen)
        assert tokens.rejected_ids == template_ids(tokenizer, pair.rejected)
        prompt = tokenizer.apply_chat_template(
            pair.prompt, tokenize=False, add_generation_prompt=True
        )
        assert tokenizer.decode(tokens.chosen_ids[: tokens.prompt_length]) == prompt


@pytest.mark.parametrize("name", ["tokenizer_bpe4k", "tokenizer_neox"])
def test_a_real_prompt_is_cut_from_its_beginning(
    name: str,
    shared_data: Callable[[str], Path],
    real_rows: Callable[[str], Iterator[dict[str, Any]]],
):
    tokenizer = load_tokenizer(str(shared_data(name)))
    rows = [parse_pair(row) for row in islice(real_rows("eval.jsonl"), 150)]
    config = DataConfig(max_length=200, over_length="truncate")
    whole = PairTokenizer(tokenizer, DataConfig(max_length=8192)).tokenize(rows)

    num_cut = 0
    for before, after in zip(whole, PairTokenizer(tokenizer, config).tokenize(rows), strict=True):
        assert isinstance(before, TokenizedPair)
        if isinstance(after, RefusedError):
            assert after.reason == Reason.TOO_LONG
            continue
        num_cut += after.prompt_length < before.prompt_length
        assert max(len(after.chosen_ids), len(after.rejected_ids)) <= 200
        assert before.chosen_ids[before.prompt_length :] == after.chosen_ids[after.prompt_length :]
        assert after.chosen_ids != after.rejected_ids
    assert num_cut > 10
