import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import strategies as st
from tokenized_groups import (
    BUILTIN,
    NO_END,
    WITH_BEGIN,
    pair_of,
    saved,
    tokens_of,
    with_begin_token,
)
from transformers import AutoTokenizer, ByT5Tokenizer

from rm_ray.data.sources.synthetic import build_tokenizer
from rm_ray.data.tokens.tokenizer import (
    PAD_TOKEN,
    ends_assistant_turn,
    load_tokenizer,
    tokenizer_differences,
    tokenizer_fingerprint,
)
from rm_ray.errors import InputError

contents = st.text(max_size=12).filter(lambda text: "<|" not in text)


def test_a_tokenizer_keeps_its_own_pad_token(tmp_path: Path):
    tokenizer = load_tokenizer(saved(build_tokenizer(), tmp_path))

    assert tokenizer.pad_token == "<|pad|>"
    assert len(tokenizer) == len(build_tokenizer())


@pytest.mark.parametrize("pad", ["<|end|>", "<|begin|>", "<|unknown|>", None])
def test_a_pad_token_that_has_another_use_is_replaced(pad: str | None, tmp_path: Path):
    tokenizer = with_begin_token()
    tokenizer.add_special_tokens({"unk_token": "<|unknown|>"})
    tokenizer.pad_token = pad
    size = len(tokenizer)

    loaded = load_tokenizer(saved(tokenizer, tmp_path))

    assert loaded.pad_token == PAD_TOKEN
    assert loaded.pad_token_id == size
    assert loaded.eos_token == "<|end|>"
    assert loaded.bos_token == "<|begin|>"


def test_a_pad_token_that_the_template_writes_is_replaced(tmp_path: Path):
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn_end|>"]})
    tokenizer.pad_token = "<|turn_end|>"
    tokenizer.chat_template = NO_END.replace("{% endfor %}", "{{ '<|turn_end|>' }}{% endfor %}")
    loaded = load_tokenizer(saved(tokenizer, tmp_path))

    tokens = tokens_of(pair_of("Why?", "So.", "No."), loaded)

    assert loaded.pad_token_id not in tokens.ids[0]


def test_padding_is_on_the_right_whatever_the_tokenizer_says(tmp_path: Path):
    folder = saved(build_tokenizer(), tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**settings, "padding_side": "left"})
    )
    assert AutoTokenizer.from_pretrained(folder).padding_side == "left"

    assert load_tokenizer(folder).padding_side == "right"


@pytest.mark.parametrize(
    ("end", "ends"),
    [
        ("{{ eos_token }}", True),
        ("{{ eos_token }}\n", True),
        ("<|user|>", True),
        ("", False),
        ("\n", False),
        ("</s>", False),
    ],
)
def test_a_turn_ends_if_the_template_writes_a_special_token_after_it(end: str, ends: bool):
    template = NO_END.replace("{% endfor %}", f"{end}{{% endfor %}}")

    assert ends_assistant_turn(load_tokenizer("builtin", chat_template=template)) is ends


def test_the_built_in_template_ends_its_turns():
    assert ends_assistant_turn(BUILTIN) is True


def test_a_template_with_a_syntax_error_is_refused_before_any_pair():
    with pytest.raises(InputError, match=r"data\.chat_template"):
        load_tokenizer("builtin", chat_template="{% for m in messages %}{{ m }}")


@pytest.mark.parametrize("contents", [None, "{", "{}"])
def test_a_folder_without_an_intact_tokenizer_is_refused(contents: str | None, tmp_path: Path):
    if contents is not None:
        (tmp_path / "tokenizer.json").write_text(contents)

    with pytest.raises(InputError) as caught:
        load_tokenizer(str(tmp_path))

    assert f"model.tokenizer '{tmp_path}' cannot be loaded" in str(caught.value)


def test_an_invalid_hub_name_is_refused():
    with pytest.raises(InputError, match=r"model\.tokenizer 'a/b/c' cannot be loaded"):
        load_tokenizer("a/b/c")


def test_a_tokenizer_without_a_fast_version_is_refused(tmp_path: Path):
    ByT5Tokenizer().save_pretrained(tmp_path)

    with pytest.raises(InputError, match="has no fast version"):
        load_tokenizer(str(tmp_path), chat_template=NO_END)


def test_tokenizers_that_give_the_same_ids_have_the_same_fingerprint(tmp_path: Path):
    tokenizer = load_tokenizer("builtin")
    used = load_tokenizer(saved(tokenizer, tmp_path))
    used(["a", "b c"], padding=True, truncation=True, max_length=3)

    assert (
        tokenizer_fingerprint(tokenizer)
        == tokenizer_fingerprint(BUILTIN)
        == tokenizer_fingerprint(used)
    )


def test_any_change_to_ids_changes_the_fingerprint():
    more = load_tokenizer("builtin")
    more.add_tokens(["qwertz"])
    other = load_tokenizer("builtin", chat_template=NO_END)

    assert len({tokenizer_fingerprint(t) for t in (BUILTIN, WITH_BEGIN, more, other)}) == 4


def test_what_differs_between_tokenizers_has_a_name(tmp_path: Path):
    used = load_tokenizer(saved(load_tokenizer("builtin"), tmp_path))
    used(["a", "b c"], padding=True, truncation=True, max_length=3)
    more = load_tokenizer("builtin", chat_template=NO_END)
    more.add_tokens(["qwertz"])
    ended = load_tokenizer("builtin")
    ended.eos_token = "<|user|>"

    assert tokenizer_differences(BUILTIN, used) == []
    assert tokenizer_differences(BUILTIN, more) == [
        "added_tokens of tokenizer.json",
        "chat template",
    ]
    assert "special tokens" in tokenizer_differences(BUILTIN, ended)


@pytest.mark.parametrize("name", ["tokenizer_bpe4k", "tokenizer_neox"])
def test_a_real_tokenizer_keeps_its_pad_token_and_ends_its_turns(
    name: str, shared_data: Callable[[str], Path]
):
    tokenizer = load_tokenizer(str(shared_data(name)))

    assert tokenizer.pad_token == "<|padding|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert ends_assistant_turn(tokenizer) is True
