"""Tokenizers with gaps in their ids, and tokenizers of other models."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase

from rm_ray.data.sources.synthetic import build_tokenizer
from rm_ray.data.tokens.tokenizer import PAD_TOKEN, load_tokenizer
from rm_ray.data.tokens.vocabulary import check_vocabulary
from rm_ray.errors import InputError


def with_holes(folder: Path, *, has_pad: bool) -> str:
    """Save the built-in tokenizer without the tokens of two ids."""
    build_tokenizer().save_pretrained(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    lost = {word for word, number in words.items() if number in (400, 401)}
    assert len(lost) == 2
    for word in lost:
        del words[word]
    tokenizer["model"]["merges"] = [
        pair for pair in tokenizer["model"]["merges"] if not lost & {*pair, "".join(pair)}
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    if not has_pad:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        del settings["pad_token"]
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


def test_a_pad_token_never_gets_the_id_of_another(tmp_path: Path):
    folder = with_holes(tmp_path, has_pad=False)
    bare: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    bare.add_special_tokens({"pad_token": PAD_TOKEN})
    words = {n: word for word, n in AutoTokenizer.from_pretrained(folder).get_vocab().items()}
    assert bare.pad_token_id in words  # the collision that the check prevents
    with pytest.raises(InputError, match=f"would get id {bare.pad_token_id}, which .* uses"):
        load_tokenizer(folder)


def test_gaps_in_the_ids_are_harmless_for_a_tokenizer_with_a_pad_token(tmp_path: Path):
    tokenizer = load_tokenizer(with_holes(tmp_path, has_pad=True))
    largest = max(tokenizer.get_vocab().values())
    assert largest == len(tokenizer) + 1
    check_vocabulary(tokenizer, LlamaConfig(vocab_size=largest + 1), is_trained=True)
    with pytest.raises(InputError, match=f"ids up to {largest} .* embeddings for {largest}"):
        check_vocabulary(tokenizer, LlamaConfig(vocab_size=largest), is_trained=True)


def test_another_models_tokenizer_is_refused_and_new_tokens_are_logged(caplog):
    tokenizer = load_tokenizer("builtin")
    size = len(tokenizer)
    with pytest.raises(InputError, match=r"is not the model's: 10 of its tokens have ids from"):
        check_vocabulary(tokenizer, LlamaConfig(vocab_size=size - 10), is_trained=True)
    check_vocabulary(tokenizer, LlamaConfig(vocab_size=size - 10), is_trained=False)
    caplog.set_level("INFO", "rm_ray")
    tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    check_vocabulary(tokenizer, LlamaConfig(vocab_size=size), is_trained=True)
    assert caplog.messages == []
    tokenizer.add_tokens(["<|turn|>"])
    check_vocabulary(tokenizer, LlamaConfig(vocab_size=size), is_trained=True)
    assert "1 tokens of the tokenizer are new to the model" in caplog.text
