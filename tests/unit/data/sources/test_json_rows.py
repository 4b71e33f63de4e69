import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from source_files import FILES, ROWS, error_of, fragments_of, message_of_wrong, read, rows_of, write

from rm_ray.data.sources import json_rows
from rm_ray.data.sources.fragments import Fragment
from rm_ray.data.sources.json_rows import count_json, read_json
from rm_ray.data.sources.readers import count_rows, read_rows
from rm_ray.errors import InputError

Row = dict[str, Any]

ASKED = [{"role": "user", "content": "Why?"}]

PAIR: Row = {"prompt": ASKED, "chosen": "So.", "rejected": "No."}

SHAREGPT: Row = {"conversations": [{"from": "human", "value": "Why?"}], **PAIR}

WITH_TOOLS: Row = {"tools": [{"type": "function", "function": {}}], **PAIR}

MANY_ARRAYS: Row = {"chosen": [*ASKED], "rejected": [*ASKED], "rows": [{"chosen": "other"}]}

OPENAI: Row = {"input": {"messages": ASKED}, "preferred_output": ASKED}


def read_text(path: Path, text: str) -> list[Row]:
    path.write_text(text)
    rows = [json.loads(row) for _, row in read_json(str(path), ends_in_json=True)]
    assert count_json(str(path), ends_in_json=True) == len(rows)
    return rows


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("row", [PAIR, SHAREGPT, WITH_TOOLS, MANY_ARRAYS, OPENAI])
def test_an_object_that_is_a_pair_is_one_row(row: Row, indent: int | None, tmp_path: Path):
    assert read_text(tmp_path / "a.json", json.dumps(row, indent=indent)) == [row]


@pytest.mark.parametrize("ending", ["", "\n\n"])
def test_one_line_whose_only_array_is_of_messages_is_one_row(ending: str, tmp_path: Path):
    row = {"question": ASKED, "response_j": "So.", "response_k": "No."}

    assert read_text(tmp_path / "a.json", json.dumps(row) + ending) == [row]


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
    monkeypatch.setattr(json_rows, "CHUNK", 7)  # every value is cut somewhere
    rows = [PAIR, {"role": "x", "content": "y", "chosen": "z"}, {"other": 1}]

    for whole in ({**around, "data": rows}, {"data": rows, **around}):
        assert read_text(tmp_path / "a.json", json.dumps(whole, indent=indent)) == rows


def test_an_object_without_an_array_is_refused_and_an_empty_array_has_no_rows(tmp_path: Path):
    with pytest.raises(InputError, match="an object without an array of rows"):
        read_text(
            tmp_path / "a.json", '{\n"tags": ["a"], "messages": [{"role": "a", "content": "b"}]}'
        )
    assert read_text(tmp_path / "a.json", '{\n"data": []}') == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{\n"chosen": "a",\n"rejected": "b"}\n{}', "an object without an array of rows"),
        ('{\n"chosen": "a",\n"chosen": "b"}', "row 0: the key 'chosen' occurs twice"),
        ('{"tags": ["a",], "data": [{}]}', "a comma after the last row"),
        ('{"a":' * 100_000, "not valid JSON"),
    ],
)
def test_a_broken_object_is_named(text: str, told: str, tmp_path: Path):
    with pytest.raises(InputError, match=told):
        read_text(tmp_path / "a.json", text)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        json.dumps({"version": 1, "data": ROWS, "note": {"by": "me"}}),
        json.dumps({"data": ROWS}, indent=1),
        FILES[".jsonl"].decode(),
        "\n \n" + FILES[".jsonl"].decode(),
    ],
    ids=["array", "indented", "one array of an object", "of an indented one", "lines", "blank"],
)
def test_the_contents_of_a_json_file_decide_between_array_and_lines(text: str, tmp_path: Path):
    for name in ("a.json", "b.json.gz"):
        data = gzip.compress(text.encode()) if name.endswith("gz") else text.encode()
        assert read(write(tmp_path / name, data)) == ROWS
    if text.startswith("["):
        assert read(write(tmp_path / "c.jsonl", text.encode())) == ROWS


def test_a_json_array_is_read_with_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(json_rows, "CHUNK", 7)  # every value is cut somewhere

    assert read(write(tmp_path / "a.json", FILES[".json"])) == ROWS

    monkeypatch.setattr(json_rows, "LARGEST_ELEMENT", 1_000)
    assert "row 1: not valid JSON" in error_of(write(tmp_path / "a.json", FILES[".json"]))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[{"chosen": "a"}, {"chosen": }]', "row 1: not valid JSON"),
        ('[{"chosen": "a"},\n', "row 1: not valid JSON"),
        ('[{"chosen": "a"}', "it is cut off"),
        ('[{"chosen": "a"},]', "a comma after the last row"),
        ('[{"chosen": "a"}] []', "text after its end"),
        ('{"a": [{}],\n "b": [{}]}', "several arrays, 'a' and 'b'"),
        ('{\n"a": 1}', "an object without an array"),
    ],
)
def test_a_broken_json_file_is_named_with_the_position(text: str, told: str, tmp_path: Path):
    assert told in error_of(write(tmp_path / "a.json", text.encode()))


def test_byte_order_marks_between_concatenated_files_are_skipped(tmp_path: Path):
    marked = b"\xef\xbb\xbf" + FILES[".jsonl"]

    assert read(write(tmp_path / "a.jsonl", marked + marked)) == ROWS * 2


def test_a_row_number_of_json_lines_is_its_line_and_blank_lines_are_skipped(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    first, second = (json.dumps(row) for row in rows_of(2))
    path.write_text(f"\n{first}\r\n  \n{second}")
    (fragment,) = fragments_of(path)

    assert [(i, json.loads(text)) for i, text in read_rows(fragment)] == [
        (1, rows_of(2)[0]),
        (3, rows_of(2)[1]),
    ]
    assert count_rows(fragment) == 2


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ('{"chosen": "a", "rejected": }', "not valid JSON (Expecting value at character 29)"),
        ("chosen,rejected", "not valid JSON"),
        ('{"chosen": "a"', "not valid JSON"),
    ],
)
@pytest.mark.parametrize("line", [1, 3])
def test_broken_json_is_named_by_file_and_line(broken: str, told: str, line: int, tmp_path: Path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(row) for row in rows_of(3)]
    lines[line - 1] = broken
    path.write_text("\n".join(lines))

    message = message_of_wrong(path)

    assert message.startswith(f"{path}, line {line}: {told}")
    assert "'chosen' and 'rejected'" in message


def test_broken_json_in_a_compressed_file_is_named_by_line_too(tmp_path: Path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"chosen": "a", "rejected": "b"}\n\n{]\n'))

    assert message_of_wrong(path).startswith(f"{path}, line 3: not valid JSON")


@pytest.mark.parametrize(("kind", "around"), [("jsonl", "{}"), ("json", "[{}]")])
def test_a_duplicate_key_is_named(tmp_path: Path, kind: Any, around: str):
    path = tmp_path / f"pairs.{kind}"
    row = '{"prompt": "Why?", "chosen": "So.", "rejected": "No.", "prompt": "What?"}'
    path.write_text(around.replace("{}", row))
    with pytest.raises(InputError, match="the key 'prompt' occurs twice in one object"):
        list(read_rows(Fragment(kind=kind, location=str(path))))
