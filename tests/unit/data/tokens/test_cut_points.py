"""Text that conversations share is tokenised once, without changing any id."""

from collections.abc import Callable
from functools import cache
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenized_groups import assistant, group_of
from tokenizers import (
    AddedToken,
    Encoding,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from rm_ray.config.sections.data import DataConfig
from rm_ray.data.preferences.group_reading import read_group
from rm_ray.data.rows.groups import Group
from rm_ray.data.sources.synthetic import CHAT_TEMPLATE, generate_pairs
from rm_ray.data.tokens.cut_points import find_cut_tokens
from rm_ray.data.tokens.group_tokenizer import GroupTokenizer, TokenizedGroup
from rm_ray.data.tokens.tokenizer import load_tokenizer, template_ids

WRITTEN = ["<|end|>", "<|user|>", "<|assistant|>"]
"""Added tokens that the template writes around user and assistant turns."""

REAL = ["tokenizer_bpe4k", "tokenizer_neox"]

FRAGMENTS = [
    *("a", "B", "the", " is", " ", "  ", "\n", "\n\n", "\t", ".", "?!", "12", "▁", "<|", "|>"),
    *("é", "e\u0301", "\u0301", "ﬁ", "ß", "日本", "😀", "👩\u200d🚀", "\u00a0", "\u2028", "\u200b"),
]

contents = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=8).map("".join)

turns = st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), contents)


def cut_tokens(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return find_cut_tokens(tokenizer, template_ids(tokenizer))


@st.composite
def groups(draw: st.DrawFn) -> Group:
    """Draw groups of 1 to 4 distinct responses; half of them are pairs."""
    prompt = [{"role": role, "content": text} for role, text in draw(st.lists(turns, max_size=3))]
    size = draw(st.sampled_from([1, 2, 2, 2, 3, 4]))
    responses = draw(st.lists(contents, min_size=size, max_size=size, unique=True))
    return Group(prompt=prompt, responses=[*map(assistant, responses)])


def train(
    *,
    normalizer: Any = None,
    pre_tokenizer: Any = None,
    post_processor: Any = None,
    added: tuple[AddedToken, ...] = (),
) -> PreTrainedTokenizerFast:
    """Train a small tokenizer with the given components and the built-in template."""
    backend = Tokenizer(models.BPE(unk_token="<|unknown|>"))
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer
    special = [*WRITTEN, "<|system|>", "<|tool|>", "<|pad|>", "<|unknown|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=[*pre_tokenizers.ByteLevel.alphabet(), *"".join(FRAGMENTS)],
        show_progress=False,
    )
    rows = generate_pairs("train", 100)
    backend.train_from_iterator((row["chosen"][-1]["content"] for row in rows), trainer)
    backend.post_processor = post_processor
    backend.add_tokens(list(added))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        unk_token="<|unknown|>",
        chat_template=CHAT_TEMPLATE,
    )


def metaspace(scheme: str) -> Any:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme)


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)

BEGIN = processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])

PIECEWISE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "bytes": {"pre_tokenizer": BYTES},
    "bytes, offsets trimmed": {
        "pre_tokenizer": BYTES,
        "post_processor": processors.ByteLevel(add_prefix_space=False, trim_offsets=True),
    },
    "bytes, a space before each piece": {
        "pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True, trim_offsets=False),
    },
    "bytes by the normalizer": {"normalizer": normalizers.ByteLevel()},
    "NFC": {"normalizer": normalizers.NFC(), "pre_tokenizer": BYTES},
    "NFD": {"normalizer": normalizers.NFD(), "pre_tokenizer": BYTES},
    "NFKC": {"normalizer": normalizers.NFKC(), "pre_tokenizer": BYTES},
    "NFKD": {"normalizer": normalizers.NFKD(), "pre_tokenizer": BYTES},
    "lowercase": {"normalizer": normalizers.Lowercase()},
    "strip": {"normalizer": normalizers.Strip()},
    "as Llama 2": {
        "normalizer": normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        ),
        "post_processor": BEGIN,
    },
    "as Llama 3": {
        "pre_tokenizer": pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\s+(?!\S)| ?\S+|\s+"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        "post_processor": processors.Sequence([processors.ByteLevel(trim_offsets=False), BEGIN]),
    },
    "metaspace before each piece": {"pre_tokenizer": metaspace("always")},
    "metaspace before none": {"pre_tokenizer": metaspace("never")},
    "digits": {"pre_tokenizer": pre_tokenizers.Digits(individual_digits=True)},
    "punctuation": {"pre_tokenizer": pre_tokenizers.Punctuation()},
    "whitespace": {"pre_tokenizer": pre_tokenizers.Whitespace()},
    "whitespace alone": {"pre_tokenizer": pre_tokenizers.WhitespaceSplit()},
    "other added tokens": {
        "added": (AddedToken("  ", normalized=True), AddedToken("\n\n", normalized=False))
    },
}

NOT_PIECEWISE: dict[str, dict[str, Any]] = {
    "metaspace before the first piece": {"pre_tokenizer": metaspace("first")},
    "in a sequence": {
        "pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Digits(), metaspace("first")])
    },
    "the first offset not trimmed": {
        "pre_tokenizer": BYTES,
        "post_processor": processors.ByteLevel(add_prefix_space=True, trim_offsets=True),
    },
    "an unknown part": {"pre_tokenizer": pre_tokenizers.UnicodeScripts()},
    "a token that takes spaces": {"added": (AddedToken("<|x|>", normalized=False, rstrip=True),)},
    "a token of whole words": {"added": (AddedToken("a", normalized=False, single_word=True),)},
}


@pytest.fixture(scope="session")
def find_tokenizer(shared_data: Callable[[str], Path]) -> Callable[[str], GroupTokenizer]:
    """Return a function that finds the built-in, a real or one of the above tokenizers by name."""

    @cache
    def find(name: str) -> GroupTokenizer:
        if name == "builtin":
            tokenizer = load_tokenizer(name)
        elif name in REAL:
            tokenizer = load_tokenizer(str(shared_data(name)))
        else:
            tokenizer = train(**{**PIECEWISE, **NOT_PIECEWISE}[name])
        return GroupTokenizer(tokenizer, DataConfig(max_length=8192))

    return find


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def tokens_of(group_tokenizer: GroupTokenizer, group: Group) -> TokenizedGroup:
    (tokens,) = group_tokenizer.tokenize([group])
    assert isinstance(tokens, TokenizedGroup), tokens
    return tokens


def tokenized_by(tokenizer: PreTrainedTokenizerFast, group: Group) -> TokenizedGroup:
    return tokens_of(GroupTokenizer(tokenizer, DataConfig()), group)


def whole_tokens(tokenizer: PreTrainedTokenizerFast, group: Group) -> tuple[list[list[int]], int]:
    """Tokenise each text as a whole; return the conversations' ids and the prompt's length."""
    ids = [
        tokenizer.apply_chat_template(messages, return_dict=False)
        for messages in group.conversations
    ]
    if not group.prompt:
        return ids, 0
    text = tokenizer.apply_chat_template(group.conversations[0], tokenize=False)
    prompt = tokenizer.apply_chat_template(group.prompt, tokenize=False, add_generation_prompt=True)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    begun = sum(start < len(prompt) for start, _ in encoded["offset_mapping"])
    length = begun if text.startswith(prompt) else len(ids_of(tokenizer, prompt))
    return ids, min(length, len(ids[0]) - 1)


PAIR = group_of("Why?", "So.", "No.")


@pytest.mark.parametrize("name", ["builtin", *REAL, *PIECEWISE, *NOT_PIECEWISE])
@given(group=groups())
def test_ids_and_prompt_length_match_whole_texts(
    name: str, find_tokenizer: Callable[[str], GroupTokenizer], group: Group
):
    group_tokenizer = find_tokenizer(name)
    ids, prompt_length = whole_tokens(group_tokenizer.tokenizer, group)
    assume(len({*map(tuple, ids)}) == len(ids))

    tokens = tokens_of(group_tokenizer, group)

    assert tokens.ids == ids
    assert tokens.prompt_length == prompt_length


@pytest.mark.parametrize("name", ["builtin", *REAL, *PIECEWISE])
@given(data=st.data())
def test_a_text_cut_after_a_token_of_the_template_keeps_its_ids(
    name: str, find_tokenizer: Callable[[str], GroupTokenizer], data: st.DataObject
):
    tokenizer = find_tokenizer(name).tokenizer
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    pieces = st.sampled_from([*FRAGMENTS, *added])
    token = data.draw(st.sampled_from(["<|endoftext|>"] if name in REAL else WRITTEN))
    head = data.draw(st.lists(pieces, max_size=8).map("".join)) + token
    tail = data.draw(st.lists(pieces, max_size=8).map("".join))

    assert ids_of(tokenizer, head) + ids_of(tokenizer, tail) == ids_of(tokenizer, head + tail)


@pytest.mark.parametrize("name", REAL)
def test_real_texts_are_cut_after_turns(name: str, find_tokenizer: Callable[[str], GroupTokenizer]):
    assert cut_tokens(find_tokenizer(name).tokenizer) == ["<|endoftext|>"]


@pytest.mark.parametrize("name", PIECEWISE)
def test_texts_may_be_cut_after_tokens_of_the_template(name: str):
    assert cut_tokens(train(**PIECEWISE[name])) == WRITTEN


@pytest.mark.parametrize("name", NOT_PIECEWISE)
def test_no_text_is_cut_if_its_pieces_may_not_be_independent(name: str):
    assert cut_tokens(train(**NOT_PIECEWISE[name])) == []


def test_a_cut_that_would_change_ids_is_not_made():
    tokenizer = train(pre_tokenizer=metaspace("first"))
    text = tokenizer.apply_chat_template(PAIR.conversations[0], tokenize=False)
    head, token, tail = text.rpartition("<|assistant|>")
    assert ids_of(tokenizer, head + token) + ids_of(tokenizer, tail) != ids_of(tokenizer, text)

    assert tokenized_by(tokenizer, PAIR).ids[0] == ids_of(tokenizer, text)


def test_no_text_is_cut_if_special_tokens_are_read_as_text():
    tokenizer = train(pre_tokenizer=BYTES)
    tokenizer.split_special_tokens = True

    assert cut_tokens(tokenizer) == []
    assert tokenized_by(tokenizer, PAIR).ids == whole_tokens(tokenizer, PAIR)[0]


def test_no_text_is_cut_if_the_tokenizer_doubles_each_text():
    twice = processors.TemplateProcessing(single="$A $A")
    tokenizer = train(post_processor=twice)

    assert cut_tokens(tokenizer) == []
    assert tokenized_by(tokenizer, PAIR).ids == whole_tokens(tokenizer, PAIR)[0]


@pytest.mark.parametrize(
    ("other", "left"),
    [
        ("<|end|>x", ["<|user|>", "<|assistant|>"]),
        ("x<|user|>", ["<|end|>", "<|assistant|>"]),
        ("x<|a", ["<|end|>", "<|user|>"]),
        ("x<|", []),
        ("end", WRITTEN),
        ("x<|tool", WRITTEN),
    ],
)
def test_no_text_is_cut_after_a_token_that_another_may_overlap(other: str, left: list[str]):
    tokenizer = train(pre_tokenizer=BYTES, added=(AddedToken(other, normalized=False),))
    group = group_of("Why x", "x is so.", "x", "so x")

    assert cut_tokens(tokenizer) == left
    assert tokenized_by(tokenizer, group).ids == whole_tokens(tokenizer, group)[0]


def test_no_text_is_cut_after_a_token_that_overlaps_itself():
    tokenizer = train(pre_tokenizer=BYTES, added=(AddedToken("x-x", normalized=False),))
    tokenizer.chat_template = CHAT_TEMPLATE.replace("message['content']", "'x-x'")
    assert ids_of(tokenizer, "x-x-x")[0] == tokenizer.convert_tokens_to_ids("x-x")

    assert "x-x" not in cut_tokens(tokenizer)


def test_a_template_that_refuses_a_common_conversation_is_never_cut():
    tokenizer = train(pre_tokenizer=BYTES)
    tokenizer.chat_template = "{{ raise_exception('no') }}"

    assert cut_tokens(tokenizer) == []


def test_only_the_common_beginning_of_all_texts_is_shared():
    tokenizer = train(pre_tokenizer=BYTES)
    tokenizer.chat_template = (
        "{% if messages[-1]['content'] == 'No.' %}{{ 'A poor answer.' }}{% endif %}" + CHAT_TEMPLATE
    )

    for responses in permutations(("So.", "No.", "Maybe.")):
        group = group_of("Why?", *responses)
        tokens = tokenized_by(tokenizer, group)
        assert (tokens.ids, tokens.prompt_length) == whole_tokens(tokenizer, group)


class RecordingTokenizer(GroupTokenizer):
    """Records the encoded texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__(tokenizer, DataConfig())
        self.texts: list[str] = []

    def encode(self, texts: list[str], *, offsets: bool = False) -> list[Encoding]:
        self.texts += texts
        return super().encode(texts, offsets=offsets)


@pytest.mark.parametrize(("scheme", "times"), [("never", 1), ("first", 5)])
def test_a_prompt_is_tokenised_once_for_all_branches_and_all_groups(scheme: str, times: int):
    tokenizer = RecordingTokenizer(train(pre_tokenizer=metaspace(scheme)))
    groups = [
        group_of("What is the time?", "Noon.", "What?"),
        group_of("What is the time?", "Noon.", "Noon!", "Late."),
    ]

    tokens = tokenizer.tokenize(groups)

    assert sum(text.count("What is the time?") for text in tokenizer.texts) == times
    assert tokens == [tokenized_by(tokenizer.tokenizer, group) for group in groups]


def test_other_uses_of_a_tokenizer_change_no_ids():
    tokenizer = load_tokenizer("builtin")
    group_tokenizer = GroupTokenizer(tokenizer, DataConfig())
    pairs = [read_group(row)[0] for row in islice(generate_pairs("test"), 5)]
    before = group_tokenizer.tokenize(pairs)

    tokenizer(["a"], padding="max_length", max_length=512, truncation=True)
    assert group_tokenizer.tokenize(pairs) == before
    tokenizer(["a"], padding="max_length", max_length=4, truncation=True)
    assert group_tokenizer.tokenize(pairs) == before


def test_a_response_that_only_ends_the_prompts_last_token_keeps_that_token():
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"

    tokens = tokenized_by(tokenizer, group_of("aa", "b", "a"))

    assert tokens.ids == [[0, 2], [0, 0, 0]]
    assert tokens.prompt_length == 1
