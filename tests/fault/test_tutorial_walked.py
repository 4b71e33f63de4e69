"""The tutorial as a new user walks it: every command, in order (``walks.py`` says where)."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from outcomes import result
from pages import ROOT, TUTORIAL, read_blocks
from walks import MARKS, walking

pytestmark = MARKS

NOISE = 0.02
"""Between an accuracy on the page and on another machine."""

MOST = 0.6
"""Least share of the wrong labels that are suspected, and of the suspected ones that are wrong."""


def commands() -> Iterator[str]:
    """Yield what is given to the shell: all blocks, and the end of the server."""
    yield from (block.script for block in read_blocks(TUTORIAL))
    yield "kill $!\nwait $! || [ $? = 130 ]\n"  # 130 if it answered before it said so


@pytest.fixture(scope="module")
def walk() -> Iterator[tuple[Path, str]]:
    """The home of the one who walked, and what was printed."""
    with walking(commands(), {}) as walked:
        yield walked


def test_the_second_model_is_better_than_the_first(walk: tuple[Path, str]) -> None:
    home, _ = walk
    first, second = (
        result(home / "rm_ray" / name)["metrics"]["eval/rm/accuracy"]
        for name in ("first", "second")
    )
    assert second > first


def test_the_labels_that_it_suspects_are_wrong(walk: tuple[Path, str]) -> None:
    home, printed = walk
    pairs = (home / "clone" / "pairs.jsonl").read_text().splitlines()
    wrong = {row for row, pair in enumerate(pairs) if json.loads(pair)["label_is_wrong"]}
    file = home / "rm_ray" / "audit" / "exclude" / "mislabelled.jsonl"
    lines = file.read_text().splitlines()
    suspects = {json.loads(line)["row"] for line in lines}
    found = len(suspects & wrong)
    assert found > MOST * len(wrong)
    assert found > MOST * len(suspects)
    told = f"{found} of {len(suspects)} suspects are wrong; {len(wrong)} of {len(pairs)} labels are"
    assert told in printed
    excluded = {
        each["reason"]: each["rows"] for each in result(home / "rm_ray" / "second")["refused"]
    }
    assert excluded == {"excluded": len(suspects)}


def test_what_it_prints_is_what_the_page_shows(walk: tuple[Path, str]) -> None:
    home, printed = walk
    audited, _ = read_blocks(TUTORIAL, "")
    for line in audited.script.splitlines():
        assert line.strip() in printed
    page = (ROOT / TUTORIAL).read_text()
    rises = re.search(r"accuracy rises from (0\.\d+) to (0\.\d+)", page)
    assert rises is not None
    for name, shown in zip(("first", "second"), rises.groups(), strict=True):
        measured = result(home / "rm_ray" / name)["metrics"]["eval/rm/accuracy"]
        assert measured == pytest.approx(float(shown), abs=NOISE)


def test_the_card_sums_up_the_audit_that_the_excluded_rows_are_from(walk: tuple[Path, str]) -> None:
    home, _ = walk
    report = json.loads((home / "rm_ray" / "audit" / "report.json").read_text())
    for name in ("first", "second"):
        summary = json.loads((home / "rm_ray" / name / "audit.json").read_text())
        assert summary["rows"] == report["rows_read"] == 6_000
        assert summary["findings"]["mislabelled"] == 1_200


def test_the_model_is_published_and_answers(walk: tuple[Path, str]) -> None:
    home, printed = walk
    repository = json.loads((home / "hub" / "me--first-hour.json").read_text())
    assert "main" in repository["branches"]
    (answer,) = re.findall(r'\{"model":"second@.*\}', printed)
    asked = json.loads(answer)
    assert 1 <= len(repository["tags"]) <= 2  # the best, and the last if it is another
    assert asked["model"].removeprefix("second@") in repository["tags"]
    assert asked["best"] == 1
    assert asked["rewards"][1] > asked["rewards"][0]
