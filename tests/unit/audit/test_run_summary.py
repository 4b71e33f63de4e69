"""What an audit found, in a run's folder."""

import json
import logging
from pathlib import Path
from typing import Any

from audit_report import REPORT
from made_run import make_run

from rm_ray.audit import run_summary
from rm_ray.audit.run_summary import (
    default_folder,
    find_audit,
    keep_audit,
    summarize_audit,
    write_to_run,
)
from rm_ray.runs.layout import AUDIT, RUN

OF_THE_RUN = {**REPORT, "data_hash": "0" * 64}
"""A report on the rows that a made run is trained on."""


def test_the_summary_has_what_was_looked_for_and_found():
    found = summarize_audit(REPORT)
    assert (found["rows"], found["findings"]) == (98, {"duplicates": 5})
    assert found["evaluation_sets"] == {"bench": 30}
    assert found["excluded"] == 0
    assert [(rule["rule"], rule["share"]) for rule in found["rules"]] == [
        ("the longer response is better", 0.6)
    ]
    assert found["languages"]["en"] == 88 / 98


def test_an_audit_of_the_run_s_rows_is_left_in_its_folder(tmp_path: Path):
    for number, part in enumerate(("", "/", "/export")):
        made = make_run(tmp_path / str(number))
        assert write_to_run(f"{made.folder}{part}", OF_THE_RUN)
        assert made.run.read_json(AUDIT) == summarize_audit(REPORT)


def test_an_audit_of_other_rows_says_nothing_of_the_run(tmp_path: Path, caplog):
    made = make_run(tmp_path)
    with caplog.at_level(logging.INFO):
        assert not write_to_run(made.folder, REPORT)
    assert "which was trained on other rows, read them by other settings" in caplog.text
    assert made.run.read_json(AUDIT) is None


def test_a_model_without_a_run_gets_nothing(tmp_path: Path):
    export = tmp_path / "export"
    export.mkdir()
    assert not write_to_run(str(export), REPORT)
    assert not write_to_run("someone/rewards", REPORT)
    assert [*export.iterdir()] == []


BEST = [[["chosen", "best"]], [], "auto", 32, []]
"""How a report says that it read another column."""


def record_of(**data: Any) -> dict[str, Any]:
    """Return the record of a run on the rows of ``REPORT``."""
    return {
        "config": {"data": {"train": ["pairs.jsonl"], "eval": [], **data}},
        "data": {"train": {"data_hash": REPORT["data_hash"]}},
    }


def write_report(folder: Path, report: object) -> None:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))


def test_an_earlier_audit_is_found_by_its_rows_where_its_files_are(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(run_summary, "AUDITS", str(tmp_path / "audits"))
    files = [str(tmp_path / name / "exclude" / "duplicates.jsonl") for name in "abcd"]
    assert find_audit(record_of(exclude=files)) is None
    write_report(tmp_path / "a", OF_THE_RUN)
    write_report(tmp_path / "b", {**REPORT, "column_rules": BEST})
    assert find_audit(record_of(exclude=files)) is None
    write_report(tmp_path / "c", {**REPORT, "column_rules": None})  # of another version
    assert find_audit(record_of(exclude=files)) is None
    write_report(tmp_path / "d", REPORT)
    assert find_audit(record_of(exclude=files)) == summarize_audit(REPORT)
    assert find_audit(record_of(exclude=files[:2], columns=["chosen=best"])) is not None
    assert find_audit(record_of(exclude=["rows.jsonl"])) is None
    write_report(Path(default_folder(["pairs.jsonl"])), REPORT)
    assert find_audit(record_of()) == summarize_audit(REPORT)
    assert find_audit(record_of(train=["other.jsonl"])) is None
    assert find_audit(record_of(of_another_version=1)) is None


def test_what_is_no_report_is_no_audit(tmp_path: Path, caplog):
    write_report(tmp_path / "a", [1])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "report.json").write_text("{")
    files = [str(tmp_path / name / "exclude" / "x.jsonl") for name in "ab"]
    files += ["nowhere://x/exclude/x.jsonl"]
    with caplog.at_level(logging.INFO):
        assert find_audit(record_of(train=["no.jsonl"], exclude=files)) is None
    assert "no audit is read from" in caplog.text


def test_a_run_keeps_what_an_audit_of_its_rows_found(tmp_path: Path):
    made = make_run(tmp_path)
    write_report(tmp_path / "found", OF_THE_RUN)
    record = made.run.read_json(RUN)
    record["config"]["data"]["exclude"] = [str(tmp_path / "found" / "exclude" / "some.jsonl")]
    keep_audit(made.run, record)
    assert made.run.read_json(AUDIT) == summarize_audit(REPORT)
    made.run.write_json(AUDIT, {"rows": 1, "findings": {}})
    keep_audit(made.run, record)
    assert made.run.read_json(AUDIT)["rows"] == 1
