"""Held-out pairs whose prompt is also trained on, and labels that settings need."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_cache import Row, cache_row, group_row, make_parts
from planned_runs import empty_cache

from rm_ray.config.recipe import parse_config
from rm_ray.data.cache.token_cache import TokenCache
from rm_ray.data.rows.column_readings import ColumnReading
from rm_ray.errors import InputError
from rm_ray.preflight.caches import (
    describe_groups,
    find_prompt_overlap,
    refuse_missing_labels,
    warn_of_labels,
)
from rm_ray.storage import Storage

SAME, OTHER, THIRD = (bytes([i]) * 16 for i in range(3))


def cache_of(folder: Path, *prompts: tuple[bytes, str]) -> TokenCache:
    rows = [
        {**cache_row(0, i, [1, 2], [1, 3], source=source), "prompt_hash": prompt}
        for i, (prompt, source) in enumerate(prompts)
    ]
    cache = empty_cache(Storage.open(str(folder)), num_groups=len(rows))
    return replace(cache, parts=make_parts(folder, rows))


def test_an_overlap_is_counted_by_source_and_logged_as_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    train = cache_of(tmp_path / "train", (SAME, "a"), (SAME, "a"), (OTHER, "b"))
    held_out = cache_of(tmp_path / "eval", (SAME, "a"), (THIRD, "a"), (OTHER, "b"), (SAME, "b"))

    assert find_prompt_overlap(train, held_out) == {"a": 1, "b": 2}
    assert "3 of 4 held-out pairs have a prompt that is also trained on (a: 1, b: 2)" in caplog.text


def test_different_prompts_do_not_overlap(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    train = cache_of(tmp_path / "train", (SAME, "a"))

    assert find_prompt_overlap(train, cache_of(tmp_path / "eval", (OTHER, "a"))) == {}
    assert find_prompt_overlap(train, None) == {}
    assert caplog.text == ""


def test_groups_are_described_unless_all_are_plain_pairs(tmp_path: Path):
    plain = empty_cache(Storage.open(str(tmp_path)), num_groups=1_000)
    assert describe_groups(plain) == ""
    assert describe_groups(replace(plain, num_ties=2)) == (
        "1,000 groups of 2.0 responses, 1,000 comparisons, 2 of them ties"
    )
    ranked = replace(plain, num_responses=4_500, num_comparisons=9_000, num_scores=4_000)
    assert describe_groups(ranked) == (
        "1,000 groups of 4.5 responses, 9,000 comparisons, 4,000 scored responses"
    )


def test_labels_that_other_rows_or_columns_contradict_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    plain = empty_cache(Storage.open(str(tmp_path)), num_groups=4_000)
    warn_of_labels("train", plain)
    assert caplog.text == ""

    readings = tuple(
        ColumnReading(origin=name, rows=2_000, reversals={"'a' is below 'b'": rows})
        for name, rows in (("x", 1_200), ("y", 0), ("z", 34))
    )
    warn_of_labels("train", replace(plain, readings=readings, contradictions=2))

    assert "train pairs: 0 duplicate another pair" in caplog.text
    assert "train rows: 1,234 have a column that says that the rejected response" in caplog.text
    assert "leave it out with data.ignore_columns" in caplog.text


IDS = ([1, 2], [1, 3], [1, 4])
WINS = [(0, 1), (0, 2), (1, 2)]
PAIR = group_row(0, 0, IDS[:2], [(0, 1)])
TIE = group_row(0, 1, IDS[:2], [(0, 1)], probability=[0.5])
LIST = group_row(0, 2, IDS, WINS)
TIES = group_row(0, 3, IDS, WINS, probability=[0.5] * 3)
CIRCLE = group_row(0, 4, IDS, [(0, 1), (1, 2), (2, 0)])
SCORED = group_row(0, 5, IDS[:1], score=[2.0])
MARGIN = group_row(0, 6, IDS[:2], [(0, 1)], margin=[1.0])


def cache_of_rows(folder: Path, *rows: Row) -> TokenCache:
    folder.mkdir(parents=True, exist_ok=True)
    probabilities = [p for row in rows for p in row["probability"]]
    cache = empty_cache(Storage.open(str(folder)), num_groups=len(rows))
    counts = {
        "num_responses": sum(len(row["ids"]) for row in rows),
        "num_comparisons": len(probabilities),
        "num_ties": probabilities.count(0.5),
    }
    return replace(cache, parts=make_parts(folder / "parts", rows), **counts)


def check(folder: Path, metric: str, held_out: Row, train: Row = PAIR, **objective: Any) -> None:
    config = parse_config({"checkpoint": {"keep_best_by": metric}, "objective": objective})
    caches = (cache_of_rows(folder / name, row) for name, row in (("t", train), ("e", held_out)))
    refuse_missing_labels(config, *caches)


@pytest.mark.parametrize(
    ("metric", "rows", "objective"),
    [
        ("eval/rm/kendall_tau", {"held_out": PAIR}, {}),
        ("eval/rm/best_of_k", {"held_out": PAIR}, {}),
        ("eval/rm/best_of_k", {"held_out": TIES}, {}),
        ("eval/rm/best_of_k", {"held_out": CIRCLE}, {}),
        ("eval/rm/accuracy", {"held_out": SCORED}, {}),
        ("eval/rm/accuracy", {"held_out": TIE}, {}),
        ("eval/rm/reward_margin", {"held_out": SCORED}, {}),
        ("eval/rm/loss", {"held_out": SCORED}, {}),
        ("eval/rm/loss", {"held_out": PAIR}, {"loss": "regression"}),
        ("eval/rm/loss", {"held_out": PAIR}, {"margin": "scale"}),
        ("eval/rm/loss", {"held_out": TIE}, {"ties": "drop"}),
        ("train/rm/accuracy", {"held_out": PAIR, "train": SCORED}, {"loss": "regression"}),
    ],
)
def test_checkpoints_are_not_ranked_by_a_metric_that_the_data_never_gives(
    tmp_path: Path, metric: str, rows: dict, objective: dict
):
    kind, name = metric.split("/")[0], metric.rpartition("/")[2]
    with pytest.raises(InputError, match=rf"keep_best_by is '{metric}', which the .* data never "):
        check(tmp_path / name, metric, **rows, **objective)
    with pytest.raises(InputError, match=rf"gives this one to data\.{kind}$"):
        check(tmp_path / "again", metric, **rows, **objective)


@pytest.mark.parametrize(
    ("metric", "held_out", "objective"),
    [
        ("eval/rm/kendall_tau", LIST, {}),
        ("eval/rm/kendall_tau", CIRCLE, {}),
        ("eval/rm/best_of_k", LIST, {}),
        ("eval/rm/accuracy", PAIR, {"loss": "regression"}),
        ("eval/rm/loss", TIE, {}),
        ("eval/rm/loss", SCORED, {"loss": "regression"}),
        ("eval/rm/loss", MARGIN, {"margin": "scale"}),
        ("train/rm/loss", SCORED, {}),
    ],
)
def test_checkpoints_are_ranked_by_a_metric_that_the_data_gives(
    tmp_path: Path, metric: str, held_out: Row, objective: dict
):
    check(tmp_path, metric, held_out, **objective)


def test_the_refusal_names_the_metrics_that_the_data_gives(tmp_path: Path):
    with pytest.raises(InputError, match=r"that it gives \(there is none\)"):
        check(tmp_path / "scores", "eval/rm/accuracy", SCORED)
    with pytest.raises(InputError, match=r"that it gives \(eval/rm/accuracy, eval/rm/loss, .*\)"):
        check(tmp_path / "pairs", "eval/rm/kendall_tau", PAIR)


def test_a_tie_parameter_is_learned_from_ties(tmp_path: Path):
    config = parse_config({"objective": {"ties": "davidson", "tie_parameter": "learned"}})
    pairs = cache_of_rows(tmp_path / "pairs", PAIR, LIST)
    ties = cache_of_rows(tmp_path / "ties", PAIR, TIE)
    refuse_missing_labels(config, ties, None)
    with pytest.raises(InputError, match="tie_parameter is 'learned', but no training comparison"):
        refuse_missing_labels(config, pairs, ties)
