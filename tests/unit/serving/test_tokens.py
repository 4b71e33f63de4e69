"""The ids are those of the template, whichever client rendered the text, and however."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from framed_tokenizers import TOKENIZERS
from hypothesis import given, settings
from hypothesis import strategies as st
from reward_clients import policy_text, prompt_text, stop_token, verl_text, whole_text
from tokenized_groups import BUILTIN, template_ids
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from rm_ray.data.sources.synthetic import build_tokenizer
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.serving.question import Question
from rm_ray.serving.tokens import ConversationTokens, find_bytes_per_token

Messages = list[dict[str, Any]]

WAYS: dict[str, Callable[[PreTrainedTokenizerFast, Messages], Any]] = {
    "the template's text": whole_text,
    "messages": lambda _, messages: messages,
    "token ids": lambda tokenizer, messages: template_ids(tokenizer, messages),
    "OpenRLHF's": policy_text,
    "OpenRLHF's, unfinished": partial(policy_text, is_finished=False),
    "verl's": verl_text,
    "two BOS tokens": lambda tokenizer, messages: (
        (tokenizer.bos_token or "") + whole_text(tokenizer, messages)
    ),
    "white space after the end": lambda tokenizer, messages: (
        whole_text(tokenizer, messages) + ("\n" if stop_token(tokenizer) is not None else "")
    ),
}
"""What a client sends for a conversation."""

TOKENS = {name: ConversationTokens.of(each, 4096) for name, each in TOKENIZERS.items()}

contents = st.text(min_size=1, max_size=12).filter(
    lambda text: text == text.strip() and not set("<[") & set(text)
)


@st.composite
def conversations(draw: st.DrawFn) -> Messages:
    """Draw conversations that every template takes."""
    system = [{"role": "system", "content": text} for text in draw(st.lists(contents, max_size=1))]
    exchanges = draw(st.lists(st.tuples(contents, contents), min_size=1, max_size=3))
    turns = [
        {"role": role, "content": text}
        for exchange in exchanges
        for role, text in zip(("user", "assistant"), exchange, strict=True)
    ]
    return system + turns


def continues(tokenizer: PreTrainedTokenizerFast, messages: Messages) -> bool:
    """Whether a policy that is given the prompt's text writes on as the template does."""
    written = prompt_text(tokenizer, messages) + messages[-1]["content"]
    return whole_text(tokenizer, messages).startswith(written)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=30)
@given(messages=conversations())
def test_every_clients_way_to_send_a_conversation_gives_the_templates_ids(
    name: str, messages: Messages
):
    tokenizer, tokens = TOKENIZERS[name], TOKENS[name]
    expected = template_ids(tokenizer, messages)
    for way, render in WAYS.items():
        if way.startswith("OpenRLHF") and not continues(tokenizer, messages):
            continue
        ids = tokens.encode(render(tokenizer, messages))
        assert ids.tolist() == expected, way
        assert ids.dtype == np.int32


@pytest.mark.parametrize("name", ["tokenizer_bpe4k", "tokenizer_neox"])
def test_so_do_real_conversations_with_a_real_tokenizer(
    name: str,
    shared_data: Callable[[str], Path],
    real_rows: Callable[[str], Iterator[dict[str, Any]]],
):
    tokenizer = load_tokenizer(str(shared_data(name)))
    tokens = ConversationTokens.of(tokenizer, 8192)
    for row in islice(real_rows("eval.jsonl"), 25):
        messages = row["chosen"]
        expected = template_ids(tokenizer, messages)
        for way, render in WAYS.items():
            assert tokens.encode(render(tokenizer, messages)).tolist() == expected, way


ASKED = {"role": "user", "content": "Why?"}


def test_a_text_that_is_far_too_long_is_refused_before_it_is_tokenized(monkeypatch):
    tokens = ConversationTokens.of(BUILTIN, 10)
    longest = max(len(token.encode()) for token in BUILTIN.get_vocab())
    assert tokens.bytes_per_token == longest
    monkeypatch.setattr(type(tokens.tokenizer), "encode", None)
    text = "<|user|>\nWhy?\n<|assistant|>\n" + "word " * 100
    messages = [ASKED, {"role": "assistant", "content": "word " * 100}]
    for conversation in (text, messages, [5] * 11, [5, -1] * 6):
        with pytest.raises(InputError, match="tokens, and the limit is 10"):
            tokens.encode(conversation)


def normalized(normalizer: Any) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizer
    return tokenizer


BYTE_LEVEL = [normalized(None), normalized(normalizers.NFC())]

BYTES_PER_TOKEN = [find_bytes_per_token(each) for each in BYTE_LEVEL]


@given(text=st.text(max_size=40) | st.text("K\u212a\u0301\u1100\u1161\u11a8 \n", max_size=40))
def test_a_text_never_has_fewer_tokens_than_its_bytes_say(text: str):
    for tokenizer, most in zip(BYTE_LEVEL, BYTES_PER_TOKEN, strict=True):
        assert most is not None
        assert len(tokenizer(text)["input_ids"]) * most >= len(text.encode())


@pytest.mark.parametrize("normalizer", [normalizers.NFKC(), normalizers.Strip()])
def test_of_other_tokenizers_no_limit_is_known(normalizer: Any):
    assert find_bytes_per_token(normalized(normalizer)) is None


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_empty_response_is_scored_because_policies_write_such(name: str):
    tokenizer, tokens = TOKENIZERS[name], TOKENS[name]
    messages = [ASKED, {"role": "assistant", "content": ""}]
    expected = template_ids(tokenizer, messages)
    assert tokens.encode(messages).tolist() == expected
    if continues(tokenizer, [ASKED, {"role": "assistant", "content": "So."}]):
        assert tokens.encode(policy_text(tokenizer, messages)).tolist() == expected


def test_the_policys_end_of_turn_token_in_a_response_is_the_templates_own():
    messages = [ASKED, {"role": "assistant", "content": "So."}]
    ended = [ASKED, {"role": "assistant", "content": "So.<|im_end|>\n"}]
    for name in ("Qwen's", "SmolLM2's, whose BOS opens every turn"):
        expected = template_ids(TOKENIZERS[name], messages)
        assert TOKENS[name].encode(ended).tolist() == expected


def test_tools_are_given_to_the_template():
    template = "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = load_tokenizer("builtin", chat_template=template)
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
    messages = [ASKED, {"role": "assistant", "content": "So."}]
    ids = ConversationTokens.of(tokenizer, 100).encode(messages, [tool])
    assert ids.tolist() == tokenizer.apply_chat_template(messages, tools=[tool], return_dict=False)
    assert "look_up" in tokenizer.decode(ids)


def refusal(conversation: Any, *, name: str = "builtin", max_length: int = 4096) -> str:
    tokens = ConversationTokens.of(TOKENIZERS[name], max_length)
    with pytest.raises(InputError) as caught:
        tokens.encode(conversation)
    return str(caught.value)


@pytest.mark.parametrize(
    ("conversation", "said"),
    [
        ("", "its text is blank"),
        (" \n", "its text is blank"),
        ([], "neither messages nor tokens"),
        ("Why so?", "a text begins with 'Why so?', and those of the served model's chat template"),
        ("<|user|>\nWhy\ud800?", "not valid Unicode"),
        ("<|user|>\nWhy?<|pad|>", "the padding token '<|pad|>'"),
        ([9, -1], "token 1 is -1; ids"),
        ([9, 10**6], "token 1 is 1000000; ids"),
        ([9, 2.5], "token 1 is 2.5"),
        ([BUILTIN.pad_token_id], "token 0 is the padding token"),
        ([ASKED], "it ends with 'user'"),
        ([ASKED, "So."], "not messages"),
        ([{"role": "user"}, {"role": "assistant", "content": "So."}], "without 'content'"),
        ([ASKED, {"role": "assistant", "content": "<|user|>\nYes"}], "reserved tokens"),
        ([{"role": "gpt", "content": "So."}], "unknown role: 'gpt'"),
        ([ASKED, {"role": "assistant", "content": [{"type": "image_url"}]}], "not text"),
    ],
)
def test_what_cannot_be_scored_is_refused_and_said(conversation: Any, said: str):
    assert said in refusal(conversation)


def test_a_conversation_is_refused_rather_than_cut():
    messages = [ASKED, {"role": "assistant", "content": "So it is."}]
    length = len(template_ids(BUILTIN, messages))
    for conversation in (messages, whole_text(BUILTIN, messages), template_ids(BUILTIN, messages)):
        assert len(ConversationTokens.of(BUILTIN, length).encode(conversation)) == length
        said = refusal(conversation, max_length=length - 1)
        assert f"{length} tokens" in said
        assert "--max_length" in said


def test_an_error_says_which_of_several_conversations_it_is_about():
    tokens = TOKENS["builtin"]
    with pytest.raises(InputError, match=r"^conversation 1 of the request: the conversation is"):
        tokens.encode_all(Question(conversations=("<|user|>\nWhy?\n<|assistant|>\nSo.", "")))
    with pytest.raises(InputError, match=r"^the conversation is refused"):
        tokens.encode_all(Question(conversations=("",)))
    first, second = tokens.encode_all(Question(conversations=((9, 5), (9, 7))))
    assert (first.tolist(), second.tolist()) == ([9, 5], [9, 7])


def test_nesting_too_deep_to_read_is_refused():
    deep: Any = "x"
    for _ in range(900):
        deep = {"x": deep}
    assert json.loads(json.dumps(deep)) == deep
    said = refusal([ASKED, {"role": "assistant", "content": "So.", "extra": deep}])
    assert "nested too deep" in said
