"""Counts over all rows."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from rm_ray.audit import tally
from rm_ray.audit.row_facts import SCHEMA
from rm_ray.audit.tally import OTHERS, Tally, describe_writers
from rm_ray.evaluation.intervals import wilson_interval

ROW = {
    "fragment": 0, "row": 0, "source": "a", "reason": "", "reading": "{}", "prompt_words": 10,
    "better_words": 20.0, "worse_words": 5.0, "language": "en", "longer_won": 1.0,
    "longer_of": 1.0, "first_won": 0.0, "first_of": 0.0, "answers_won": 0.0, "answers_of": 0.0,
    "writers": [], "leaks": [], "content": 0,
}  # fmt: skip


def table(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist([{**ROW, **row} for row in rows], schema=SCHEMA)


def test_rows_are_counted_by_source_language_and_refusal_over_several_tables():
    counts = Tally()
    refused = {"reason": "empty", "raw": "{}", "language": None, "source": None}
    counts.add(table({}, {"source": "b", "language": "de"}, refused))
    counts.add(table({}))

    found = counts.to_json()
    assert (found["rows"], found["rows_read"], found["rows_refused"]) == (4, 3, {"empty": 1})
    assert found["by_source"] == {"a": 2, "b": 1}
    assert found["languages"] == {"en": 2, "de": 1}
    assert counts.readings == {0: {"{}": 3}}


def test_a_rule_has_a_share_with_an_interval_in_all_and_by_source():
    counts = Tally()
    counts.add(table(*[{}] * 6, *[{"longer_won": 0.0}] * 2, {"source": "b", "longer_won": 0.0}))

    longer = counts.to_json()["rules"]["longer"]
    assert (longer["share"], longer["pairs"]) == (6 / 9, 9.0)
    assert (longer["share_low"], longer["share_high"]) == wilson_interval(6, 9)
    assert longer["by_source"]["a"]["share"] == 0.75
    assert longer["by_source"]["b"]["share"] == 0.0
    first = counts.to_json()["rules"]["first"]
    assert (first["share"], first["by_source"]) == (None, {})


def test_lengths_have_exact_means_and_quantiles_within_a_bin():
    words = np.random.default_rng(0).integers(1, 2_000, 999)
    counts = Tally()
    counts.add(table(*({"better_words": float(n)} for n in words)))
    found = counts.to_json()["lengths"]["better"]
    assert found["mean"] == pytest.approx(words.mean())
    for name, share in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9)):
        assert found[name] == pytest.approx(np.quantile(words, share), rel=0.2)
    edges, rows = found["histogram"]["edges"], found["histogram"]["rows"]
    assert (len(edges), sum(rows)) == (len(rows) + 1, 999)
    assert rows[-1] == (words >= edges[-2]).sum()


def test_names_beyond_the_limit_are_counted_together(monkeypatch):
    monkeypatch.setattr(tally, "MOST_NAMES", 2)
    counts = Tally()
    counts.add(table(*({"source": name} for name in "abcda")))
    assert counts.to_json()["by_source"] == {"a": 2, "b": 1, OTHERS: 2}


def test_the_writer_that_wins_more_often_predicts_the_rest():
    pairs = Counter({("gpt", "llama"): 8, ("llama", "gpt"): 2, ("gpt", "gpt"): 5})
    found = describe_writers(pairs, pairs)
    assert (found["share"], found["pairs"]) == (0.8, 20)
    assert found["by_writer"]["llama"]["share"] == 0.2
    assert describe_writers(Counter(), Counter())["share"] is None


def test_writers_that_win_at_random_or_are_seen_once_predict_nothing():
    rng = np.random.default_rng(0)
    names = [f"writer{i}" for i in range(400)]
    shares = []
    for _ in range(20):
        halves = [
            Counter((names[a], names[b]) for a, b in rng.integers(0, 400, (500, 2)))
            for _ in range(2)
        ]
        shares.append(describe_writers(*halves)["share"])
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    once = [
        Counter((f"{half} better {i}", f"{half} worse {i}") for i in range(500))
        for half in range(2)
    ]
    assert describe_writers(*once)["pairs"] == 0


def test_writers_of_equal_rows_are_in_one_half_and_those_beyond_the_limit_are_told(monkeypatch):
    monkeypatch.setattr(tally, "MOST_WRITER_PAIRS", 1)
    counts = Tally()
    counts.add(table(*[{"writers": ["a", "b"], "content": 2}] * 3, {"writers": ["c", "d"]}))
    found = counts.to_json()["writers"]
    assert (found["pairs"], found["pairs_beyond_names"]) == (0, 1)
    counts.add(table({"writers": ["a", "b"], "content": 1}))
    assert counts.to_json()["writers"]["pairs"] == 4
