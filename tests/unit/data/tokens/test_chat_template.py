"""Templates as files and tokenizers hold them."""

import json
from pathlib import Path

import pytest

from rm_ray.data.sources.synthetic import build_tokenizer
from rm_ray.data.tokens.tokenization import load_tokenizer
from rm_ray.errors import InputError

PLAIN = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
OTHER = "{% for m in messages %}{{ m.role }}{{ m.content }}<|end|>{% endfor %}"


def with_templates(folder: Path, templates: dict[str, str]) -> str:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path: Path):
    (tmp_path / "template.jinja").write_bytes(b"\xef\xbb\xbf" + PLAIN.encode())
    for wanted in (str(tmp_path / "template.jinja"), "\ufeff" + PLAIN, PLAIN):
        assert load_tokenizer("builtin", chat_template=wanted).chat_template == PLAIN


def test_a_json_file_gives_the_template_that_it_holds(tmp_path: Path):
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
    with pytest.raises(InputError, match="must hold a chat template as text"):
        load_tokenizer("builtin", chat_template=str(path))


def test_a_json_file_beside_a_tokenizer_is_named_where_there_is_no_template(tmp_path: Path):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"or to the path of one$"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": PLAIN}))
    with pytest.raises(InputError, match=r"its chat_template\.json is not read by itself"):
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
