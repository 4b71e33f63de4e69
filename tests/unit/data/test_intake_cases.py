"""Files as people have them: each gives the conversations that its case expects, or is refused.

The cases are outside the repository. A source is read row by row, as in a run, and rendered with
the chat template.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from rm_ray.config.recipe import read_recipe
from rm_ray.config.sections.data import DataConfig
from rm_ray.data.preferences.group_reading import read_group
from rm_ray.data.rows.column_readings import refuse_lost_columns, sum_up
from rm_ray.data.rows.groups import Group
from rm_ray.data.rows.refusals import RefusedError
from rm_ray.data.sources.mixture import SourceSpec, read_selected, select
from rm_ray.data.tokens.group_tokenizer import GroupTokenizer
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError

CASES = Path(__file__).resolve().parents[3] / ".." / "shared" / "cases" / "intake"

Case = dict[str, Any]


def read_cases() -> list[Case]:
    path = CASES / "cases.json"
    return json.loads(path.read_text()) if path.exists() else []


def read(case: Case) -> list[tuple[Group, list[str]]]:
    """Return the pairs of a case's sources, each with the texts of both conversations."""
    template = str(CASES / case["chat_template"]) if "chat_template" in case else None
    specs = [SourceSpec.parse(str(CASES / text)) for text in case["data"]]
    pairs = []
    for selection in select(specs, seed=0):
        counts: dict[str, int] = {}
        for _, text in read_selected(selection):
            try:
                pair, reading = read_group(json.loads(text))
            except RefusedError:
                continue
            pairs.append(pair)
            counts[reading.to_json()] = 1
        refuse_lost_columns([sum_up(selection.fragment.origin, counts)])
    tokenizer = GroupTokenizer(load_tokenizer("builtin", chat_template=template), DataConfig())
    assert not [r for r in tokenizer.tokenize(pairs) if isinstance(r, RefusedError)]
    render = tokenizer.renderer.render
    return [(pair, render(pair.conversations, [pair.context] * 2)) for pair in pairs]


def conversations(pair: Group, wanted: Case) -> Case:
    """Return the values of a pair that a case names."""
    chosen, rejected = pair.conversations
    (comparison,) = pair.comparisons
    values = {"chosen": chosen, "rejected": rejected, "margin": comparison.margin}
    return {name: values.get(name, pair.context.tools) for name in wanted}


@pytest.mark.parametrize("case", read_cases(), ids=lambda case: case["name"])
def test_a_file_gives_the_result_its_case_expects(case: Case):
    expected = case["expect"]
    if "error" in expected:
        with pytest.raises(InputError) as caught:
            if "recipe" in expected:
                read_recipe(CASES / case["name"] / expected["recipe"])
            else:
                read(case)
        assert all(part in str(caught.value) for part in expected["error"])
        return
    found = read(case)
    for pair, texts in found:
        said = [message["content"] for message in pair.conversations[0] if message.get("content")]
        assert all(text in texts[0] for text in said)
        assert all(part in "".join(texts) for part in expected.get("rendered_has", []))
        assert len(said) == len(set(said)) or not expected.get("never_twice")
    if "pairs" in expected:
        assert [
            conversations(pair, wanted)
            for (pair, _), wanted in zip(found, expected["pairs"], strict=True)
        ] == expected["pairs"]
    for wanted in expected.get("pairs_among", []):
        assert wanted in [conversations(pair, wanted) for pair, _ in found]


def test_the_cases_are_available():
    if not CASES.exists():
        pytest.skip(f"no cases in {CASES}")
    assert len(read_cases()) >= 17
