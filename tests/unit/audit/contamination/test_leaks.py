"""Leaks, kept on disk until they are written."""

import json
from pathlib import Path

import pyarrow as pa

from rm_ray.audit.contamination.leaks import LeakSpool, describe_leak
from rm_ray.audit.findings import Finding

BY_PROMPT = {"name": "bench", "row": 3, "how": "prompt", "covered": 1.0}
BY_NGRAM = {"name": "other", "row": 8, "how": "13-gram", "covered": 0.25}


def test_a_row_is_one_finding_and_counts_once_for_each_set(tmp_path: Path):
    spool = LeakSpool(tmp_path / "leaks.jsonl")
    rows = {
        "fragment": [1, 1],
        "row": [7, 8],
        "leaks": [[json.dumps(BY_PROMPT), json.dumps(BY_NGRAM)], []],
    }
    spool.add(pa.table(rows), ["a.jsonl", "b.jsonl"])

    detail = f"{describe_leak(BY_PROMPT)}; {describe_leak(BY_NGRAM)}"
    finding = Finding(source="b.jsonl", row=7, kind="contaminated", score=1.0, detail=detail)
    assert list(spool.findings()) == [finding]
    assert spool.by_set == {"bench": {"prompt": 1}, "other": {"13-gram": 1}}


def test_a_leak_says_which_row_of_which_set_it_is():
    assert describe_leak(BY_PROMPT) == "has the prompt of row 3 of bench"
    assert describe_leak(BY_NGRAM) == (
        "shares a 13-gram with row 8 of other, 25% of whose words are in shared 8-grams"
    )
