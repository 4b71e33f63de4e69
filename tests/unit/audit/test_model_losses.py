"""Losses that a run kept, and losses from scores; ``integration/test_audit.py`` scores for real."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_run import MadeRun, make_run

from rm_ray.audit.model_losses import (
    find_change,
    find_obstacle,
    find_suspects,
    read_losses,
    score_losses,
    whole_epochs,
)
from rm_ray.config.column_rules import NO_RULES, ColumnRules
from rm_ray.config.recipe import parse_config
from rm_ray.config.scoring import Rows, ScoringModel
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.data.cache.exclusions import NO_EXCLUSIONS, Exclusions
from rm_ray.data.sources.mixture import mixture_fingerprint, select
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.errors import InputError
from rm_ray.runs.layout import RUN
from rm_ray.runs.row_losses import RowLosses
from rm_ray.scoring.conversations import SCORED_PARTS
from rm_ray.scoring.output import (
    REFUSED,
    ROWS,
    ROWS_PER_CHUNK,
    ScoredRows,
    chunk_name,
    to_json_lines,
)
from rm_ray.storage import Storage

CLUSTER = ClusterConfig()


def kept(path: Path, losses: list[list[float]]) -> RowLosses:
    """Losses of the rows of a file, the first of which training refused."""
    count = len(losses[0])
    return RowLosses(
        origins=("elsewhere.jsonl", str(path)),
        fragment=np.ones(count, dtype=np.int32),
        row=np.arange(1, count + 1),
        floor=np.zeros(count),
        losses=np.array(losses, dtype=np.float32),
    )


def pair_rows(path: Path, count: int) -> Path:
    pair = {"prompt": "How many?", "chosen": "Three", "rejected": "Four"}
    path.write_text("".join(json.dumps(pair) + "\n" for _ in range(count)))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return pair_rows(tmp_path / "pairs.jsonl", 9)


def suspects(models: list[str], data: str, share: float) -> list[tuple[str, int, float]]:
    found = find_suspects(
        [ScoringModel(model=name) for name in models],
        Rows(data=(data,)),
        CLUSTER,
        share=share,
        exclusions=NO_EXCLUSIONS,
    )
    return [(one.source, one.row, round(one.score, 4)) for one in found.findings]


def make_run_on(folder: Path, *sources: Path) -> MadeRun:
    """Make a run whose record says that it was trained on these sources."""
    made = make_run(folder)
    record = made.run.read_json(RUN)
    record["config"]["data"] |= {"train": [*map(str, sources)], "eval": [*map(str, sources)]}
    selections = select([SourceSpec.parse(str(each)) for each in sources], 0)
    record["config"]["run"]["seed"] = 0
    record["data"]["train"]["data_hash"] = mixture_fingerprint(selections)
    made.run.write_json(RUN, record)
    return made


def test_a_run_that_kept_losses_needs_no_scores(tmp_path: Path, pairs: Path):
    made = make_run_on(tmp_path, pairs)
    kept(pairs, [[0.5, 3.0, 0.1, 4.0], [0.5, 1.0, 0.1, 1.0]]).write(made.run)
    origin = str(pairs)
    assert suspects([made.folder], origin, 1.0) == [(origin, 4, 2.0), (origin, 2, 1.6667)]
    assert suspects([made.folder], origin, 0.25) == [(origin, 4, 2.0)]


def test_rows_to_exclude_are_those_of_the_audited_data_whether_or_not_a_model_knows_them(
    tmp_path: Path, pairs: Path
):
    made = make_run_on(tmp_path, pairs)
    kept(pairs, [[0.5, 3.0, 0.1, 4.0], [0.5, 1.0, 0.1, 1.0]]).write(made.run)
    other, file = pair_rows(tmp_path / "other.jsonl", 3), tmp_path / "exclude.jsonl"
    data = (str(other), str(pairs))
    for origin, expected in ((other, [4, 2]), (pairs, [2])):
        file.write_text(json.dumps({"origin": str(origin), "row": 4}) + "\n")
        found = find_suspects(
            [ScoringModel(model=made.folder)],
            Rows(data=data),
            CLUSTER,
            share=1.0,
            exclusions=Exclusions.read([str(file)], data),
        )
        assert [one.row for one in found.findings] == expected


def test_an_epoch_that_half_of_the_rows_went_through_says_nothing(tmp_path: Path, pairs: Path):
    made = make_run_on(tmp_path, pairs)
    whole = [[0.5, 3.0, 0.1, 4.0], [0.5, 1.0, 0.1, 1.0]]
    kept(pairs, [*whole, [9.0, 9.0, np.nan, np.nan]]).write(made.run)
    assert [row for _, row, _ in suspects([made.folder], str(pairs), 1.0)] == [4, 2]


def test_only_rows_of_the_data_are_suspect(tmp_path: Path, pairs: Path):
    made = make_run_on(tmp_path, pairs)
    kept(pairs, [[2.0] * 8] * 2).write(made.run)
    (selection,) = select([SourceSpec.parse(f"{pairs}=4")], seed=0)
    assert selection.rows is not None
    expected = {row for row in selection.rows.tolist() if row}  # the first has no loss
    assert {row for _, row, _ in suspects([made.folder], f"{pairs}=4", 1.0)} == expected


def test_a_run_on_other_rows_is_refused(tmp_path: Path, pairs: Path):
    made = make_run_on(tmp_path, pairs)
    kept(tmp_path / "moved.jsonl", [[2.0] * 8] * 2).write(made.run)
    with pytest.raises(
        InputError, match=r"trained on none of these rows: .*moved.jsonl.* name its"
    ):
        suspects([made.folder], str(pairs), 1.0)


def test_runs_without_a_common_row_are_refused(tmp_path: Path, pairs: Path):
    folders = []
    for number, losses in enumerate(([2.0, np.nan], [np.nan, 2.0])):
        made = make_run_on(tmp_path / str(number), pairs)
        kept(pairs, [losses] * 2).write(made.run)
        folders.append(made.folder)
    with pytest.raises(InputError, match=r"have no rows of .*pairs.jsonl in common"):
        suspects(folders, str(pairs), 1.0)


@pytest.mark.parametrize(
    ("data", "objective", "reason"),
    [
        ({}, {}, None),  # a record from before there were objectives
        ({}, {"loss": "bradley_terry", "margin": "add"}, None),
        ({"group_by_prompt": True}, {}, "data.group_by_prompt"),
        ({}, {"loss": "plackett_luce"}, "objective.loss plackett_luce"),
        ({}, {"loss": "bradley_terry", "margin": "scale"}, "objective.margin scale"),
        ({}, {"ties": "davidson"}, "objective.ties davidson"),
        ({}, {"label_smoothing": 0.1}, "objective.label_smoothing"),
    ],
)
def test_kept_losses_are_used_where_they_depend_on_one_row_s_labels(data, objective, reason):
    losses = kept(Path("pairs.jsonl"), [[1.0], [0.5]])
    found = find_obstacle({"data": data, "objective": objective}, losses)
    assert (found is None) == (reason is None)
    assert reason is None or reason in str(found)


def test_losses_with_margins_show_no_wrong_labels_unless_margins_are_ignored():
    losses = replace(kept(Path("pairs.jsonl"), [[1.0], [0.5]]), has_margins=True)
    for objective, reason in (({}, "objective.margin add"), ({"margin": "ignore"}, None)):
        found = find_obstacle({"data": {}, "objective": objective}, losses)
        assert (found is None) if reason is None else (reason in str(found))


def test_only_epochs_that_nearly_all_rows_went_through_count():
    nan = np.nan
    losses = np.array([[nan, nan, 1, nan], [1, 1, 1, nan], [2, 2, 2, nan], [3, 3, nan, nan]])
    assert whole_epochs(losses).tolist() == [False, True, True, False]
    assert whole_epochs(np.full((2, 3), nan)).tolist() == [False, False]


def test_losses_of_rows_that_have_changed_since_are_not_used(tmp_path: Path, pairs: Path):
    other = pair_rows(tmp_path / "other.jsonl", 3)
    sources = [str(other), f"{pairs}=4"]
    selections = select([SourceSpec.parse(each) for each in sources], 7)
    config = parse_config({"data": {"train": sources, "eval": sources}, "run": {"seed": 7}})
    record = {
        "config": config.to_json(),
        "data": {"train": {"data_hash": mixture_fingerprint(selections)}},
    }
    assert find_change(record, NO_RULES) is None
    other_rules = ColumnRules(columns={"chosen": "best"})
    assert "by other settings" in str(find_change(record, other_rules))
    record["config"]["data"]["ignore_columns"] = ["b", "a"]
    assert find_change(record, ColumnRules(ignore=("a", "b"))) is None
    pair_rows(pairs, 8)  # whatever the rows that are asked about are called
    assert "have changed" in str(find_change(record, NO_RULES))
    other.unlink()
    assert "cannot be read any more" in str(find_change(record, NO_RULES))
    record["config"]["data"]["of_another_version"] = 1
    assert "cannot be read any more" in str(find_change(record, NO_RULES))


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_that_kept_too_little_has_its_export_score_the_rows(
    tmp_path: Path, pairs: Path, caplog, epochs: int
):
    made = make_run_on(tmp_path, pairs)
    if epochs:
        kept(pairs, [[2.0] * 8]).write(made.run)
    with caplog.at_level(logging.INFO), pytest.raises(InputError, match="made/export"):
        read_losses(  # the run has exported nothing yet
            ScoringModel(model=made.folder), Rows(data=(str(pairs),)), str(tmp_path / "o"), CLUSTER
        )
    reason = "it kept less than two whole epochs" if epochs else "it kept no losses"
    assert f"its export scores the rows, because {reason}" in caplog.text


def test_rows_that_have_changed_since_are_scored_by_the_export(
    tmp_path: Path, pairs: Path, caplog: pytest.LogCaptureFixture
):
    made = make_run_on(tmp_path, pairs)
    kept(pairs, [[2.0] * 8] * 2).write(made.run)
    pair_rows(pairs, 8)
    rows = Rows(data=(str(pairs),))
    with caplog.at_level(logging.INFO), pytest.raises(InputError, match="made/export"):
        read_losses(ScoringModel(model=made.folder), rows, str(tmp_path / "o"), CLUSTER)
    assert "its export scores the rows, because the rows have changed" in caplog.text


Scores = dict[str, Any]


def score_rows(folder: Path, rows: list[Scores | None], fragment: int = 0) -> None:
    """Write the scores of a file's rows, of which None are refused, as scoring does."""
    storage = Storage.open(str(folder))
    for chunk in range(0, len(rows), ROWS_PER_CHUNK):
        name = chunk_name(fragment, chunk // ROWS_PER_CHUNK)
        part = [*enumerate(rows)][chunk : chunk + ROWS_PER_CHUNK]
        refused = [{"row": number, "reason": "empty"} for number, row in part if row is None]
        if refused:
            storage.write_text(f"{REFUSED}/{name}", to_json_lines(refused))
        scored = to_json_lines([row for _, row in part if row is not None])
        storage.write_text(f"{ROWS}/{name}", scored)


def scored_pair(chosen: float, rejected: float, **more: Any) -> Scores:
    return {
        "prompt": "How many?", "chosen": "Three", "rejected": "Four", **more,
        "chosen_reward": chosen, "rejected_reward": rejected, "chosen_tokens": 9,
        "rejected_tokens": 8,
    }  # fmt: skip


def losses_of(folder: Path, paths: list[Path]) -> RowLosses:
    selections = select([SourceSpec.parse(str(path)) for path in paths], 0, any_of=SCORED_PARTS)
    origins = tuple(str(path) for path in paths)
    return score_losses(
        ScoredRows.collect(Storage.open(str(folder)), origins, NO_RULES), selections
    )


def test_scored_rows_get_back_their_numbers_over_refused_ones_and_chunks(tmp_path: Path):
    count = ROWS_PER_CHUNK + 3
    paths = [pair_rows(tmp_path / "a.jsonl", 2), pair_rows(tmp_path / "b.jsonl", count)]
    refused = {0, 7, ROWS_PER_CHUNK + 1}
    score_rows(tmp_path / "out", [scored_pair(0.5, 0.0), None])
    rows = [None if i in refused else scored_pair(i / 100, 0.0) for i in range(count)]
    score_rows(tmp_path / "out", rows, fragment=1)

    found = losses_of(tmp_path / "out", paths)

    expected = [(0, 0), *((1, i) for i in range(count) if i not in refused)]
    assert [*zip(found.fragment.tolist(), found.row.tolist(), strict=True)] == expected
    leads = [0.5, *(i / 100 for i in range(count) if i not in refused)]
    np.testing.assert_allclose(found.losses, [np.log1p(np.exp(-np.array(leads)))], rtol=1e-6)
    assert not found.floor.any()


def test_a_tie_may_cost_no_less_than_a_coin_and_rows_without_a_label_are_left_out(tmp_path: Path):
    path = pair_rows(tmp_path / "a.jsonl", 3)
    single = {"prompt": "Hi", "response": "Hello", "reward": 1.0, "num_tokens": 5}
    score_rows(tmp_path / "out", [single, scored_pair(1.0, 1.0, tie=True), scored_pair(1.0, 0.0)])
    found = losses_of(tmp_path / "out", [path])
    assert found.row.tolist() == [1, 2]
    assert found.floor.tolist() == pytest.approx([np.log(2), 0])
    assert found.losses[0, 0] == pytest.approx(np.log(2))


def test_rows_that_say_nothing_of_better_responses_are_refused(tmp_path: Path):
    path = pair_rows(tmp_path / "a.jsonl", 1)
    score_rows(
        tmp_path / "out", [{"prompt": "Hi", "response": "Yes", "reward": 1, "num_tokens": 5}]
    )
    with pytest.raises(InputError, match=r"no row of .*a.jsonl tells which response is better"):
        losses_of(tmp_path / "out", [path])


def test_rows_that_changed_since_they_were_scored_are_refused(tmp_path: Path):
    path = pair_rows(tmp_path / "a.jsonl", 3)
    score_rows(tmp_path / "out", [scored_pair(1.0, 0.0)] * 2)
    with pytest.raises(InputError, match=r"has 2 rows instead of 3: .*a.jsonl has changed"):
        losses_of(tmp_path / "out", [path])
