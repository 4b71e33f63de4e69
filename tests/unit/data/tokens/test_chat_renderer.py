import json

import pytest
from pair_rows import ASKED, CALL, NO, REPLIES, WITH_CALLS, Row

from rm_ray.config.sections.data import DataConfig
from rm_ray.data.cache.cache_rows import tokenize_rows
from rm_ray.data.rows.pairs import parse_pair
from rm_ray.data.tokens.pair_tokenizer import PairTokenizer, TokenizedPair
from rm_ray.data.tokens.tokenizer import load_tokenizer


@pytest.mark.parametrize("joined", ["c.function.arguments", "c.function.arguments | tojson"])
def test_arguments_are_json_whether_the_template_encodes_or_joins_them(joined: str):
    template = WITH_CALLS.replace("c.function | tojson", f"c.function.name + (' ' ~ ({joined}))")
    knows = PairTokenizer(load_tokenizer("builtin", chat_template=template), DataConfig())
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}

    (tokens,) = knows.tokenize([parse_pair({"prompt": [ASKED], "chosen": message, "rejected": NO})])

    assert isinstance(tokens, TokenizedPair)
    assert 'look_up {"town": "Ulm"}' in knows.tokenizer.decode(tokens.chosen_ids)


WITH_TOOLS = (
    "{{ tools | tojson }}{{ documents | tojson }}{% for m in messages %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{{ eos_token }}"
    "{% endfor %}"
)


def tokenize(*rows: Row) -> tuple[PairTokenizer, list[Row]]:
    tokenizer = PairTokenizer(load_tokenizer("builtin", chat_template=WITH_TOOLS), DataConfig())
    return tokenizer, tokenize_rows(tokenizer, [*map(json.dumps, rows)], ["here"] * len(rows))


def test_each_row_is_rendered_with_its_own_tools():
    tools = [[{"name": "find", "default": value}] for value in (1, True)]
    rows = [{"prompt": "q", "tools": each, **REPLIES} for each in tools]
    tokenizer, tokenized = tokenize(*rows)
    texts = [tokenizer.tokenizer.decode(row["chosen_ids"]) for row in tokenized]
    assert ["true" in text for text in texts] == [False, True]
