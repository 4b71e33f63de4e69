"""A small report of an audit."""

from typing import Any


def share(share: float | None, low: float, high: float, pairs: float) -> dict[str, Any]:
    return {"share": share, "share_low": low, "share_high": high, "pairs": pairs}


def length(p50: int) -> dict[str, Any]:
    histogram = {"edges": [0, 1, 10, 20], "rows": [0, 8, 90]}
    return {"rows": 98, "mean": 11.5, "p10": 3, "p50": p50, "p90": 30, "histogram": histogram}


FOUND = {
    "source": "a.jsonl", "row": 7, "kind": "duplicates", "score": 1.0,
    "detail": "same prompt, responses and labels as row 2 of a.jsonl",
}  # fmt: skip

REPORT: dict[str, Any] = {
    "rows": 100,
    "rows_read": 98,
    "rows_refused": {"empty": 2},
    "by_source": {"chat": 58, "x|y": 40},
    "languages": {"en": 88, "de": 10},
    "lengths": {"prompt": length(10), "better": length(20), "worse": length(15)},
    "rules": {
        "longer": {
            "rule": "the longer response is better",
            **share(0.6, 0.5, 0.7, 90.0),
            "by_source": {"x|y": share(0.75, 0.6, 0.85, 40.0)},
        },
        "first": {"rule": "the first is better", **share(None, 0.0, 1.0, 0.0), "by_source": {}},
    },
    "writers": {
        "rule": "the better writer",
        **share(None, 0.0, 1.0, 0.0),
        "by_writer": {},
        "pairs_beyond_names": 0,
    },
    "findings": {
        "duplicates": {
            "rows": 5,
            "share": 0.051,
            "by_source": {"a.jsonl": 5},
            "file": "/audits/exclude/duplicates.jsonl",
            "examples": [FOUND],
        }
    },
    "data_hash": "of the rows",
    "column_rules": [],
    "rows_with_unfound_near_duplicates": 0,
    "rows_examined_by_models": None,
    "evaluation_sets": {"bench": {"rows": 30, "shared_by": {"prompt": 2, "13-gram": 1}}},
}
