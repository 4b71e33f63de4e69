"""Files of findings."""

from pathlib import Path

from rm_ray.audit.finding_files import NUM_EXAMPLES, write_findings
from rm_ray.audit.findings import Finding
from rm_ray.storage import Storage


def test_findings_are_written_one_a_line_and_counted_by_source(tmp_path: Path):
    findings = [
        Finding(source="ab"[i % 2], row=i, kind="odd", score=1.0, detail=f"is {i}")
        for i in range(7)
    ]
    written = write_findings(Storage.open(str(tmp_path)), "odd", iter(findings))

    text = Path(written.file).read_text()
    assert text == "".join(finding.to_json_line() for finding in findings)
    assert Path(written.file) == tmp_path / "exclude" / "odd.jsonl"
    assert written.examples == tuple(findings[:NUM_EXAMPLES])
    report = written.to_json(num_rows=14)
    assert (report["rows"], report["share"]) == (7, 0.5)
    assert report["by_source"] == {"a": 4, "b": 3}


def test_no_findings_are_an_empty_file(tmp_path: Path):
    written = write_findings(Storage.open(str(tmp_path)), "odd", [])
    assert Path(written.file).read_text() == ""
    assert written.to_json(num_rows=0)["share"] == 0.0
