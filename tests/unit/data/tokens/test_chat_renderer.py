import json

import pytest
from pair_rows import ASKED, CALL, NO, REPLIES, WITH_CALLS, Row

from rm_ray.config.sections.data import DataConfig
from rm_ray.data.cache.cache_rows import tokenize_rows
from rm_ray.data.preferences.group_reading import read_group
from rm_ray.data.tokens.group_tokenizer import GroupTokenizer, TokenizedGroup
from rm_ray.data.tokens.tokenizer import load_tokenizer


@pytest.mark.parametrize("joined", ["c.function.arguments", "c.function.arguments | tojson"])
def test_arguments_are_json_whether_the_template_encodes_or_joins_them(joined: str):
    template = WITH_CALLS.replace("c.function | tojson", f"c.function.name + (' ' ~ ({joined}))")
    knows = GroupTokenizer(load_tokenizer("builtin", chat_template=template), DataConfig())
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}

    pair, _ = read_group({"prompt": [ASKED], "chosen": message, "rejected": NO})
    (tokens,) = knows.tokenize([pair])

    assert isinstance(tokens, TokenizedGroup)
    assert 'look_up {"town": "Ulm"}' in knows.tokenizer.decode(tokens.ids[0])


WITH_TOOLS = (
    "{{ tools | tojson }}{{ documents | tojson }}{% for m in messages %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{{ eos_token }}"
    "{% endfor %}"
)


def tokenize(*rows: Row) -> tuple[GroupTokenizer, list[Row]]:
    tokenizer = GroupTokenizer(load_tokenizer("builtin", chat_template=WITH_TOOLS), DataConfig())
    return tokenizer, tokenize_rows(tokenizer, [*map(json.dumps, rows)], ["here"] * len(rows))


def test_each_row_is_rendered_with_its_own_tools():
    tools = [[{"name": "find", "default": value}] for value in (1, True)]
    rows = [{"prompt": "q", "tools": each, **REPLIES} for each in tools]
    tokenizer, tokenized = tokenize(*rows)
    texts = [tokenizer.tokenizer.decode(row["ids"][0]) for row in tokenized]
    assert ["true" in text for text in texts] == [False, True]
