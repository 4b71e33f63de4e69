from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tokenized_groups import BUILTIN, WITH_BEGIN, pair_of, saved, tokens_of
from transformers import PreTrainedTokenizerFast

from rm_ray.data.sources.synthetic import CHAT_TEMPLATE, build_tokenizer
from rm_ray.data.tokens.chat_tokenizer import ChatTokenizer
from rm_ray.data.tokens.tokenizer import load_tokenizer


def test_padding_and_truncation_stored_in_a_tokenizer_change_no_ids(tmp_path: Path):
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    stored = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"),
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
    )
    loaded = load_tokenizer(saved(stored, tmp_path / "saved"))
    pair = pair_of("What colour is snow?", "Snow is white.", "It is black.")

    assert tokens_of(pair, loaded) == tokens_of(pair)


@given(st.lists(st.text(max_size=30), max_size=4))
def test_texts_get_the_tokenizer_s_ids_without_its_special_tokens(texts: list[str]):
    encoded = ChatTokenizer(WITH_BEGIN).encode(texts)

    assert [each.ids for each in encoded] == [
        WITH_BEGIN(text, add_special_tokens=False)["input_ids"] for text in texts
    ]


def test_offsets_are_computed_on_request():
    (encoded,) = ChatTokenizer(BUILTIN).encode(["Snow is white."], offsets=True)

    assert [start for start, _ in encoded.offsets] == sorted({s for s, _ in encoded.offsets})
    assert encoded.offsets[-1][1] == len("Snow is white.")
