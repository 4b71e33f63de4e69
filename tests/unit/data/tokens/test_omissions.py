import json

import pytest
from pair_rows import ASKED, CALL, NO, SO, SYSTEM, WITH_CALLS, Row, whole

from rm_ray.config.sections.data import DataConfig
from rm_ray.data.cache.cache_rows import tokenize_rows
from rm_ray.data.rows.pairs import Pair, parse_pair
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.tokens.pair_tokenizer import PairTokenizer, TokenizedPair
from rm_ray.data.tokens.tokenizer import load_tokenizer

BUILTIN = PairTokenizer(load_tokenizer("builtin"), DataConfig())


def test_a_row_is_refused_unless_its_tools_and_calls_are_in_the_text():
    tools = [{"type": "function", "function": {"name": "look_up", "description": "Look it up"}}]
    row = {"tools": tools, "prompt": [ASKED], "rejected": NO,
           "chosen": {"role": "assistant", "content": None, "tool_calls": [CALL]}}  # fmt: skip
    pair = parse_pair(row)
    knows = PairTokenizer(load_tokenizer("builtin", chat_template=WITH_CALLS), DataConfig())

    (tokens,) = knows.tokenize([pair])
    (refused,) = BUILTIN.tokenize([Pair(chosen=[ASKED, SO], rejected=[ASKED, NO],
                                        context=pair.context)])  # fmt: skip

    assert isinstance(tokens, TokenizedPair)
    text = knows.tokenizer.decode(tokens.chosen_ids)
    assert all(part in text for part in ("Look it up", '"look_up"', '"town": "Ulm"'))
    assert isinstance(refused, RefusedError)
    assert refused.reason == Reason.LEFT_OUT


@pytest.mark.parametrize(
    ("template", "pair"),
    [
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}|{% endfor %}",
         whole({"role": "system", "content": "a"}, ASKED)),
        ("{% for m in messages[-2:] %}{{ m.content }}|{% endfor %}", whole(SYSTEM, ASKED)),
        ("{% for m in messages %}{{ m.content[:20] }}|{% endfor %}",
         whole({"role": "user", "content": "x" * 19 + " and then some more"})),
    ],
)  # fmt: skip
def test_a_row_is_refused_if_the_template_leaves_out_content(template: str, pair: Row):
    (found,) = PairTokenizer(
        load_tokenizer("builtin", chat_template=template), DataConfig()
    ).tokenize([parse_pair(pair)])

    assert isinstance(found, RefusedError)
    assert found.reason == Reason.LEFT_OUT


def test_keys_that_the_template_does_not_write_are_reported():
    chosen = {**SO, "name": "Ana", "weight": 1, "reasoning_content": "Because of this."}
    (tokens,) = BUILTIN.tokenize([parse_pair({"prompt": [ASKED], "chosen": [chosen],
                                              "rejected": [NO]})])  # fmt: skip

    assert isinstance(tokens, TokenizedPair)
    assert set(tokens.unwritten) == {"name", "weight", "reasoning_content"}


WITH_TOOLS = (
    "{{ tools | tojson }}{{ documents | tojson }}{% for m in messages %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{{ eos_token }}"
    "{% endfor %}"
)


def tokenize(*rows: Row) -> tuple[PairTokenizer, list[Row]]:
    tokenizer = PairTokenizer(load_tokenizer("builtin", chat_template=WITH_TOOLS), DataConfig())
    return tokenizer, tokenize_rows(tokenizer, [*map(json.dumps, rows)], ["here"] * len(rows))


def test_a_row_is_refused_if_the_template_leaves_out_its_images():
    asked = {**ASKED, "images": ["a.png"]}
    _, (refused,) = tokenize({"chosen": [asked, SO], "rejected": [asked, NO]})
    assert refused["reason"] == str(Reason.LEFT_OUT)
    assert "'images' of turn 1" in refused["detail"]
