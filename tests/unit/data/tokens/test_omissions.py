import json
from dataclasses import replace

import pytest
from pair_rows import ASKED, CALL, NO, SO, SYSTEM, WITH_CALLS, Row, whole

from rm_ray.config.sections.data import DataConfig
from rm_ray.data.cache.cache_rows import tokenize_rows
from rm_ray.data.preferences.group_reading import read_group
from rm_ray.data.rows.groups import Group
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.sources.synthetic import CHAT_TEMPLATE
from rm_ray.data.tokens.group_tokenizer import GroupTokenizer, TokenizedGroup
from rm_ray.data.tokens.tokenizer import load_tokenizer

BUILTIN = GroupTokenizer(load_tokenizer("builtin"), DataConfig())


def test_a_row_is_refused_unless_its_tools_and_calls_are_in_the_text():
    tools = [{"type": "function", "function": {"name": "look_up", "description": "Look it up"}}]
    row = {"tools": tools, "prompt": [ASKED], "rejected": NO,
           "chosen": {"role": "assistant", "content": None, "tool_calls": [CALL]}}  # fmt: skip
    pair, _ = read_group(row)
    knows = GroupTokenizer(load_tokenizer("builtin", chat_template=WITH_CALLS), DataConfig())

    (tokens,) = knows.tokenize([pair])
    (refused,) = BUILTIN.tokenize([Group(prompt=[ASKED], responses=[SO, NO], context=pair.context)])

    assert isinstance(tokens, TokenizedGroup)
    text = knows.tokenizer.decode(tokens.ids[0])
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
    tokenizer = load_tokenizer("builtin", chat_template=template)

    (found,) = GroupTokenizer(tokenizer, DataConfig()).tokenize([read_group(pair)[0]])

    assert isinstance(found, RefusedError)
    assert found.reason == Reason.LEFT_OUT


def test_keys_that_the_template_does_not_write_are_reported():
    chosen = {**SO, "name": "Ana", "weight": 1, "reasoning_content": "Because of this."}
    pair, _ = read_group({"prompt": [ASKED], "chosen": [chosen], "rejected": [NO]})

    (tokens,) = BUILTIN.tokenize([pair])

    assert isinstance(tokens, TokenizedGroup)
    assert set(tokens.unwritten) == {"name", "weight", "reasoning_content"}


def test_keys_of_every_response_of_a_list_are_reported_once():
    responses = [{**SO, "name": "Ana"}, NO, {**SO, "content": "Maybe.", "name": "Bo", "weight": 1}]

    (tokens,) = BUILTIN.tokenize([Group(prompt=[ASKED], responses=responses)])

    assert isinstance(tokens, TokenizedGroup)
    assert tokens.unwritten == ("name", "weight")


@pytest.mark.parametrize("place", range(3))
def test_a_group_is_refused_if_the_template_leaves_out_content_of_any_response(place: int):
    written = "(message['content'] if 'hidden' not in message['content'] else '')"
    template = CHAT_TEMPLATE.replace("message['content']", written)
    tokenizer = load_tokenizer("builtin", chat_template=template)
    responses = [SO, NO, {**SO, "content": "Maybe."}]
    group = Group(prompt=[ASKED], responses=responses)
    hidden = {**SO, "content": "This is hidden."}
    cut = replace(group, responses=[hidden if i == place else r for i, r in enumerate(responses)])

    kept, refused = GroupTokenizer(tokenizer, DataConfig()).tokenize([group, cut])

    assert isinstance(kept, TokenizedGroup)
    assert isinstance(refused, RefusedError)
    assert refused.reason == Reason.LEFT_OUT


WITH_TOOLS = (
    "{{ tools | tojson }}{{ documents | tojson }}{% for m in messages %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{{ eos_token }}"
    "{% endfor %}"
)


def tokenize(*rows: Row) -> tuple[GroupTokenizer, list[Row]]:
    tokenizer = GroupTokenizer(load_tokenizer("builtin", chat_template=WITH_TOOLS), DataConfig())
    return tokenizer, tokenize_rows(tokenizer, [*map(json.dumps, rows)], ["here"] * len(rows))


def test_a_row_is_refused_if_the_template_leaves_out_its_images():
    asked = {**ASKED, "images": ["a.png"]}
    _, (refused,) = tokenize({"chosen": [asked, SO], "rejected": [asked, NO]})
    assert refused["reason"] == str(Reason.LEFT_OUT)
    assert "'images' of turn 1" in refused["detail"]
