import json
from pathlib import Path
from typing import Any

import pytest
from source_files import ROWS, as_csv, error_of, read, write

from rm_ray.data.rows.pairs import parse_pair
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.sources.csv_rows import read_csv
from rm_ray.errors import InputError

Row = dict[str, Any]


def read_table(path: Path, text: str, delimiter: str = ",") -> list[Row]:
    path.write_bytes(text.encode())
    return list(read_csv(str(path), delimiter))


@pytest.mark.parametrize("name", ["margin", " Margin"])
@pytest.mark.parametrize(
    ("cell", "margin"),
    [("0.5", 0.5), ("-2", -2.0), (" 1e-3 ", 1e-3), ("", None), ("  ", None), ("nan", None)],
)
def test_a_margin_in_a_table_of_text_is_a_number_or_missing(
    cell: str, margin: float | None, name: str, tmp_path: Path
):
    (row,) = read_table(
        tmp_path / "a.tsv", f"id\tchosen\trejected\t{name}\n7\t1\t2\t{cell}\n", "\t"
    )

    assert row == {"id": "7", "chosen": "1", "rejected": "2", name.strip(): margin}
    assert parse_pair({"prompt": "Why?", **row}).margin == (margin or 0.0)


@pytest.mark.parametrize("cell", ["high", "inf", "0,5"])
def test_a_margin_in_a_table_that_is_not_a_number_is_refused(cell: str, tmp_path: Path):
    (row,) = read_table(tmp_path / "a.csv", f'prompt,chosen,rejected,margin\nWhy?,a,b,"{cell}"\n')

    with pytest.raises(RefusedError) as caught:
        parse_pair(json.loads(json.dumps(row)))

    assert (caught.value.reason, caught.value.detail) == (Reason.BAD_MARGIN, repr(cell))


def test_preferences_scores_and_ties_in_a_table_of_text_get_their_types(tmp_path: Path):
    rows = read_table(
        tmp_path / "a.csv", "prompt,chosen,rejected,preference,tie\nq,a,b,0.25,FALSE\nq,a,b,,True\n"
    )

    assert [(row["preference"], row["tie"]) for row in rows] == [(0.25, False), (None, True)]
    scored = read_table(tmp_path / "b.csv", "response,score,ranks\na,3,1\nb,high,\n")
    assert [(row["score"], row["ranks"]) for row in scored] == [(3.0, "1"), ("high", None)]


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "\ufeffSEP=;", "\r\nsep=;"])
def test_excels_line_sets_the_delimiter_and_is_not_a_row(first: str, tmp_path: Path):
    rows = read_table(tmp_path / "a.csv", f"{first}\r\n\r\nchosen, or so;rejected\r\na, b;c\r\n")

    assert rows == [{"chosen, or so": "a, b", "rejected": "c"}]


def test_excels_line_may_set_a_tab(tmp_path: Path):
    assert read_table(tmp_path / "a.csv", "sep=\t\nchosen\trejected\na,b\tc\n") == [
        {"chosen": "a,b", "rejected": "c"}
    ]


def test_lines_before_the_header_count_as_lines(tmp_path: Path):
    with pytest.raises(InputError, match="line 5: 3 cells under a header of 2"):
        read_table(tmp_path / "a.csv", "\nsep=;\n \nchosen;rejected\na;b;c\n")


def test_a_delimiter_in_quotes_in_the_header_is_ignored(tmp_path: Path):
    text = '"prompt, text",chosen,rejected\n Why?, So.,"No. "\n'
    assert read_table(tmp_path / "a.csv", text) == [
        {"prompt, text": " Why?", "chosen": " So.", "rejected": "No. "}
    ]
    assert read_table(tmp_path / "b.csv", '"prompt, ""text""";chosen\na;b\n') == [
        {'prompt, "text"': "a", "chosen": "b"}
    ]
    assert read_table(tmp_path / "d.csv", 'a 5" pipe;chosen\na;b\n') == [
        {'a 5" pipe': "a", "chosen": "b"}
    ]
    assert read_table(tmp_path / "c.csv", '"prompt", "chosen"\n"a, b", "c"\n') == [
        {"prompt": "a, b", "chosen": "c"}
    ]


def test_a_csv_of_semicolons_or_with_spaces_is_read_by_its_header(tmp_path: Path):
    spaced = b'prompt, chosen, rejected\n"Hi, you", "a ""b""", c\n\n"x", y\n'

    assert read(write(tmp_path / "a.csv", as_csv(ROWS, ";"))) == ROWS
    assert read(write(tmp_path / "b.csv", spaced)) == [
        {"prompt": "Hi, you", "chosen": 'a "b"', "rejected": "c"},
        {"prompt": "x", "chosen": "y", "rejected": None},
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("chosen,rejected\na,b\nc,d,e\n", "line 3: 3 cells under a header of 2"),
        ('chosen,rejected\n"a"b,c\n', "line 2: not a CSV row"),
        ('chosen,rejected\n"a,c\n', "not a CSV row"),
        ("chosen,chosen\na,b\n", "the column 'chosen' twice"),
    ],
)
def test_a_broken_csv_is_named_by_line(text: str, told: str, tmp_path: Path):
    assert told in error_of(write(tmp_path / "a.csv", text.encode()))
