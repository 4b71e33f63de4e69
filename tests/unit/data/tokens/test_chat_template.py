"""Templates from settings, files and tokenizers."""

import json
from pathlib import Path

import pytest
from tokenized_groups import NO_END, pair_of, saved, tokens_of

from rm_ray.data.sources.synthetic import build_tokenizer
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError

PLAIN = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"

OTHER = "{% for m in messages %}{{ m.role }}{{ m.content }}<|end|>{% endfor %}"


def with_templates(folder: Path, templates: dict[str, str]) -> str:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_byte_order_mark_is_not_part_of_a_template(tmp_path: Path):
    (tmp_path / "template.jinja").write_bytes(b"\xef\xbb\xbf" + PLAIN.encode())
    for wanted in (str(tmp_path / "template.jinja"), "\ufeff" + PLAIN, PLAIN):
        assert load_tokenizer("builtin", chat_template=wanted).chat_template == PLAIN


def test_a_json_file_may_hold_the_template(tmp_path: Path):
    path = tmp_path / "chat_template.json"
    path.write_text(json.dumps({"chat_template": PLAIN}))
    assert load_tokenizer("builtin", chat_template=str(path)).chat_template == PLAIN
    several = [{"name": "tool_use", "template": OTHER}, {"name": "default", "template": PLAIN}]
    path.write_text(json.dumps({"chat_template": several}))
    assert load_tokenizer("builtin", chat_template=str(path)).chat_template == PLAIN
    path.write_text(json.dumps({"chat_template": several[:1]}))
    with pytest.raises(InputError, match=r"several chat templates .* tool_use; set"):
        load_tokenizer("builtin", chat_template=str(path))
    path.write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(InputError, match="must be a chat template as text"):
        load_tokenizer("builtin", chat_template=str(path))


def test_a_json_file_next_to_a_tokenizer_is_named_if_there_is_no_template(tmp_path: Path):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"or to the path of one$"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": PLAIN}))
    with pytest.raises(InputError, match=r"its chat_template\.json is not used by default"):
        load_tokenizer(str(tmp_path))


def test_one_of_several_templates_is_the_default_or_named(tmp_path: Path, caplog):
    caplog.set_level("INFO", "rm_ray")
    folder = with_templates(tmp_path / "default", {"default": PLAIN, "tool_use": OTHER})
    assert load_tokenizer(folder).chat_template == PLAIN
    assert caplog.messages == ["chat template: 'default' of 2 (default, tool_use)"]
    assert load_tokenizer(folder, chat_template="tool_use").chat_template == OTHER
    folder = with_templates(tmp_path / "none", {"rag": PLAIN, "tool_use": OTHER})
    with pytest.raises(InputError, match=r"several chat templates .*: rag, tool_use; set"):
        load_tokenizer(folder)


def test_a_template_given_as_text_or_as_a_file_wins_over_the_tokenizers_own(tmp_path: Path):
    file = tmp_path / "chat.jinja"
    file.write_text(NO_END)
    pair = pair_of("Why?", "So.", "No.")

    from_text = load_tokenizer("builtin", chat_template=NO_END)
    from_file = load_tokenizer("builtin", chat_template=str(file))

    assert from_text.chat_template == from_file.chat_template == NO_END
    assert tokens_of(pair, from_text) == tokens_of(pair, from_file) != tokens_of(pair)


def test_a_template_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "chat.jinja").write_text(NO_END)
    monkeypatch.setenv("HOME", str(tmp_path))

    assert load_tokenizer("builtin", chat_template="~/chat.jinja").chat_template == NO_END


def test_a_template_that_is_neither_a_file_nor_jinja_is_refused_by_name():
    with pytest.raises(InputError) as caught:
        load_tokenizer("builtin", chat_template="missing.jinja")

    assert "data.chat_template 'missing.jinja'" in str(caught.value)


def test_a_tokenizer_without_a_template_is_refused_with_the_setting_that_helps(tmp_path: Path):
    bare = build_tokenizer()
    bare.chat_template = None
    folder = saved(bare, tmp_path)

    with pytest.raises(InputError) as caught:
        load_tokenizer(folder)

    assert f"model.tokenizer '{folder}' has no chat template" in str(caught.value)
    assert "data.chat_template" in str(caught.value)
    assert load_tokenizer(folder, chat_template=NO_END).chat_template == NO_END
