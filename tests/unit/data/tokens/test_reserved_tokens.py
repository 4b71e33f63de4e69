from pathlib import Path

import pytest
from tokenized_groups import BUILTIN, pair_of, refusal_of, saved, tokens_of

from rm_ray.data.rows.refusals import Reason
from rm_ray.data.sources.synthetic import build_tokenizer
from rm_ray.data.tokens.tokenizer import PAD_TOKEN, load_tokenizer


@pytest.mark.parametrize("token", ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"])
def test_reserved_tokens_are_refused_everywhere(token: str):
    text = f"so {token}we say"

    for pair in (
        pair_of(text, "So.", "No."),
        pair_of("Why?", text, "No."),
        pair_of("Why?", "So.", text),
    ):
        refused = refusal_of(pair)
        assert refused.reason == Reason.RESERVED_TOKENS
        assert refused.detail == token


def test_a_part_of_a_reserved_token_is_plain_text():
    tokens = tokens_of(pair_of("What is <|end| or |end|>?", "So.", "No."))

    assert "<|end| or |end|>?" in BUILTIN.decode(tokens.ids[0])
    assert tokens.ids[0].count(BUILTIN.eos_token_id) == 1


def test_the_pad_token_that_was_added_is_reserved_too(tmp_path: Path):
    bare = build_tokenizer()
    bare.pad_token = None
    tokenizer = load_tokenizer(saved(bare, tmp_path))

    assert refusal_of(pair_of("Why?", PAD_TOKEN, "No."), tokenizer).reason == Reason.RESERVED_TOKENS
