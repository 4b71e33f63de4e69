import json
from pathlib import Path
from typing import Any

import pytest

from rm_ray.data.sources import json_rows
from rm_ray.data.sources.json_rows import count_json, read_json
from rm_ray.errors import InputError

Row = dict[str, Any]

ASKED = [{"role": "user", "content": "Why?"}]
PAIR: Row = {"prompt": ASKED, "chosen": "So.", "rejected": "No."}
SHAREGPT: Row = {"conversations": [{"from": "human", "value": "Why?"}], **PAIR}
WITH_TOOLS: Row = {"tools": [{"type": "function", "function": {}}], **PAIR}
MANY_ARRAYS: Row = {"chosen": [*ASKED], "rejected": [*ASKED], "rows": [{"chosen": "other"}]}
OPENAI: Row = {"input": {"messages": ASKED}, "preferred_output": ASKED}


def read(path: Path, text: str) -> list[Row]:
    path.write_text(text)
    rows = [json.loads(row) for _, row in read_json(str(path), ends_in_json=True)]
    assert count_json(str(path), ends_in_json=True) == len(rows)
    return rows


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("row", [PAIR, SHAREGPT, WITH_TOOLS, MANY_ARRAYS, OPENAI])
def test_an_object_that_is_a_pair_is_one_row(row: Row, indent: int | None, tmp_path: Path):
    assert read(tmp_path / "a.json", json.dumps(row, indent=indent)) == [row]


@pytest.mark.parametrize("ending", ["", "\n\n"])
def test_one_line_whose_only_array_is_of_messages_is_one_row(ending: str, tmp_path: Path):
    row = {"question": ASKED, "response_j": "So.", "response_k": "No."}

    assert read(tmp_path / "a.json", json.dumps(row) + ending) == [row]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "around",
    [
        {"tags": ["a"]},
        {"messages": ASKED, "turns": [{"from": "gpt", "value": "So."}], "ids": [[1], [2]]},
        {"errors": [], "note": {"chosen": "by me"}},
    ],
)
def test_rows_are_the_elements_of_the_one_array_of_rows(
    around: Row, indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(json_rows, "_CHUNK", 7)  # every value is cut somewhere
    rows = [PAIR, {"role": "x", "content": "y", "chosen": "z"}, {"other": 1}]

    for whole in ({**around, "data": rows}, {"data": rows, **around}):
        assert read(tmp_path / "a.json", json.dumps(whole, indent=indent)) == rows


def test_an_object_with_no_array_of_rows_is_refused_and_an_empty_one_is_none(tmp_path: Path):
    with pytest.raises(InputError, match="an object without an array of rows"):
        read(tmp_path / "a.json", '{\n"tags": ["a"], "messages": [{"role": "a", "content": "b"}]}')
    assert read(tmp_path / "a.json", '{\n"data": []}') == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{\n"chosen": "a",\n"rejected": "b"}\n{}', "an object without an array of rows"),
        ('{\n"chosen": "a",\n"chosen": "b"}', "row 0: the key 'chosen' stands twice"),
        ('{"tags": ["a",], "data": [{}]}', "a comma after the last row"),
        ('{"a":' * 100_000, "not valid JSON"),
    ],
)
def test_a_broken_object_is_named(text: str, told: str, tmp_path: Path):
    with pytest.raises(InputError, match=told):
        read(tmp_path / "a.json", text)
