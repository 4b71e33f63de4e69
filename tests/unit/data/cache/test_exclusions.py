"""Rows that are never trained on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rm_ray.data.cache.exclusions import Exclusions, find_places, place_rows
from rm_ray.errors import InputError

ORIGINS = ("a.jsonl", "b.jsonl", "a.jsonl")


def write(path: Path, *lines: Any) -> str:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(path)


def line(origin: str, row: int, **more: Any) -> dict[str, Any]:
    return {"origin": origin, "row": row, **more}


def test_rows_are_found_in_every_fragment_of_their_origin(tmp_path: Path):
    one = write(tmp_path / "one.jsonl", line("a.jsonl", 5, reason="twice"), line("b.jsonl", 0))
    two = write(tmp_path / "two.jsonl", line("gone.jsonl", 1), line("b.jsonl", 7, raw="{}"))

    found = Exclusions.read([one, two], ORIGINS)

    fragments, rows = np.array([0, 1, 2, 1, 1, 0]), np.array([5, 5, 5, 0, 7, 0])
    assert found.find(fragments, rows) == ["twice", None, "twice", "", "", None]
    assert found.find_in("b.jsonl", np.arange(3)) == ["", None, None]
    assert found.find_in("gone.jsonl", np.arange(3)) == [None, None, None]


def test_the_first_of_several_reasons_stays(tmp_path: Path):
    file = write(tmp_path / "a", line("b.jsonl", 1, reason="x"), line("b.jsonl", 1, reason="y"))
    assert Exclusions.read([file], ORIGINS).find_in("b.jsonl", np.array([1])) == ["x"]


def test_the_hash_is_that_of_the_contents(tmp_path: Path):
    one = write(tmp_path / "one.jsonl", line("a.jsonl", 5))
    same = write(tmp_path / "same.jsonl", line("a.jsonl", 5))
    other = write(tmp_path / "other.jsonl", line("a.jsonl", 6))
    hashes = [Exclusions.read([name], ORIGINS).hash for name in (one, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert Exclusions.read([], ORIGINS).hash == ""


def test_no_files_exclude_nothing_and_an_empty_one_neither(tmp_path: Path):
    empty = tmp_path / "none.jsonl"
    empty.write_text("\n")
    for files in ([], [str(empty)]):
        assert Exclusions.read(files, ORIGINS).find(np.zeros(2), np.arange(2)) == [None, None]


def test_a_file_about_other_data_is_refused(tmp_path: Path):
    file = write(tmp_path / "x.jsonl", line("gone.jsonl", 1))
    with pytest.raises(
        InputError, match=r"x.jsonl names rows of gone.jsonl, but none of .*a.jsonl"
    ):
        Exclusions.read([file], ORIGINS)


@pytest.mark.parametrize(
    "text", ['{"origin": "a.jsonl"}', '{"origin": 3, "row": 1}', "[]", '{"origin": "a", "row": -1}',
             '{"origin": "a", "row": true}', '{"origin": "a", "row": 1.0}',
             '{"origin": "a.jsonl", "row": 1, "reason": 7}'],
)  # fmt: skip
def test_a_line_that_names_no_row_is_refused(tmp_path: Path, text: str):
    file = tmp_path / "x.jsonl"
    file.write_text(f"\n{text}\n")
    with pytest.raises(InputError, match=r"x.jsonl, line 2 is .*a line names a row"):
        Exclusions.read([str(file)], ORIGINS)


def test_a_missing_file_and_one_that_is_not_json_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"gone.jsonl cannot be read"):
        Exclusions.read([str(tmp_path / "gone.jsonl")], ORIGINS)
    (tmp_path / "x.jsonl").write_text("row 7\n")
    with pytest.raises(InputError, match="line 1 is not JSON"):
        Exclusions.read([str(tmp_path / "x.jsonl")], ORIGINS)


def test_places_are_in_order_of_fragment_and_row():
    fragments, rows = np.array([0, 0, 1, 70_000]), np.array([0, 2**39, 0, 5])
    places = place_rows(fragments, rows)
    assert (np.diff(places) > 0).all()
    back = find_places(places)
    assert (back[0] == fragments).all() and (back[1] == rows).all()


def test_rows_that_the_data_does_not_have_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    file = write(tmp_path / "x.jsonl", line("b.jsonl", 1), line("b.jsonl", 9), line("b.jsonl", 1))
    found = Exclusions.read([file], ORIGINS)
    found.warn_of_missing(2)
    assert caplog.text == ""
    found.warn_of_missing(1)
    assert "1 of the 2 rows that it names are not in the training data" in caplog.text
