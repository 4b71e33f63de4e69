"""Findings, and their lines for ``data.exclude``."""

import json
from pathlib import Path

import numpy as np

from rm_ray.audit.findings import Finding
from rm_ray.data.cache.exclusions import Exclusions


def test_a_line_names_the_row_as_data_exclude_reads_it(tmp_path: Path):
    finding = Finding(source="a:train", row=7, kind="duplicates", score=0.123456, detail="é")
    line = finding.to_json_line()
    assert json.loads(line) == {
        "origin": "a:train", "row": 7, "reason": "duplicates", "score": 0.1235, "detail": "é",
    }  # fmt: skip
    path = tmp_path / "found.jsonl"
    path.write_text(line)
    excluded = Exclusions.read([str(path)], ["b", "a:train"])
    assert excluded.find_in("a:train", np.array([6, 7])) == [None, "duplicates"]
