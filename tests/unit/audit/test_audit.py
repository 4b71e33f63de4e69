"""The audit without Ray; ``tests/integration/test_audit.py`` runs it on planted data."""

from pathlib import Path

from rm_ray.audit.audit import Audit
from rm_ray.audit.finding_files import write_findings
from rm_ray.audit.findings import Finding
from rm_ray.audit.tally import Tally
from rm_ray.config.column_rules import ColumnRules
from rm_ray.storage import Storage


def test_the_report_counts_findings_of_any_kind_and_leaks_of_every_set(tmp_path: Path):
    finding = Finding(source="a.jsonl", row=1, kind="suspects", score=0.9)
    audit = Audit(
        tally=Tally(),
        findings=(write_findings(Storage.open(str(tmp_path)), "suspects", [finding]),),
        readings=(),
        sets={"bench": 30, "clean": 5},
        data_hash="abc",
        rules=ColumnRules(columns={"chosen": "best"}),
        leaks={"bench": {"prompt": 2}},
        num_open=3,
        seconds=1.26,
    )
    report = audit.to_json()
    assert report["findings"]["suspects"]["by_source"] == {"a.jsonl": 1}
    assert report["evaluation_sets"] == {
        "bench": {"rows": 30, "shared_by": {"prompt": 2}},
        "clean": {"rows": 5, "shared_by": {}},
    }
    assert report["rows_with_unfound_near_duplicates"] == 3
    assert report["column_rules"] == [[["chosen", "best"]], [], "auto", 32, []]
    assert report["seconds"] == 1.3
