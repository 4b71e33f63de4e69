import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rm_ray.config.column_rules import NO_RULES
from rm_ray.config.scoring import Rows
from rm_ray.errors import InputError
from rm_ray.scoring.ensemble import Ensemble, check_ensemble, member_folder
from rm_ray.scoring.output import MANIFEST, REFUSED, ROWS, ScoredRows, chunk_name, to_json_lines
from rm_ray.scoring.preferences import read_preferences
from rm_ray.storage import Storage

ORIGINS = ("here.jsonl",)


def pair(chosen: float, rejected: float, prompt: str = "How many?", **more: Any) -> dict[str, Any]:
    return {
        "prompt": prompt, "chosen": "Three", "rejected": "Four", **more, "chosen_reward": chosen,
        "rejected_reward": rejected, "chosen_tokens": 9, "rejected_tokens": 8,
    }  # fmt: skip


def listed(*rewards: float) -> dict[str, Any]:
    best = int(np.argmax(rewards))
    responses = ["Three", "Four", "Five"]
    return {
        "prompt": "How many?", "responses": responses, "rewards": [*rewards], "best": best,
        "best_response": responses[best], "num_tokens": [9, 8, 7],
    }  # fmt: skip


def single(reward: float) -> dict[str, Any]:
    return {"prompt": "Hi", "response": "Hello", "reward": reward, "num_tokens": 5}


def scored(folder: Path, *chunks: list[dict[str, Any]]) -> ScoredRows:
    storage = Storage.open(str(folder))
    for number, rows in enumerate(chunks):
        storage.write_text(f"{ROWS}/{chunk_name(0, number)}", to_json_lines(rows))
    return ScoredRows.collect(storage, ORIGINS, NO_RULES)


def ensemble(folder: Path, *members: list[dict[str, Any]]) -> Ensemble:
    names = tuple(f"model-{i}" for i in range(len(members)))
    rows = [scored(folder / name, part) for name, part in zip(names, members, strict=True)]
    return Ensemble(names=names, members=tuple(rows))


def test_rows_get_mean_rewards_and_their_spread(tmp_path: Path):
    both = ensemble(
        tmp_path,
        [pair(1.0, 0.0), listed(0.0, 2.0, 1.0), single(3.0)],
        [pair(2.0, 0.0), listed(4.0, 1.0, 3.0), single(-1.0)],
    )
    joined = [row for _, row in both.join(str(tmp_path / "joined"))]
    assert (joined[0]["chosen_reward"], joined[0]["rejected_reward"]) == (1.5, 0.0)
    assert joined[1]["rewards"] == [2.0, 1.5, 2.0]
    assert joined[2]["reward"] == 1.0
    # Each model's mean reward over all six responses is taken off first.
    shift = (1 + 0 + 0 + 2 + 1 + 3) / 6 - (2 + 0 + 4 + 1 + 3 - 1) / 6
    spread = [abs(1 - 2 - shift), abs(0 - 0 - shift), abs(3 + 1 - shift)] / np.sqrt(2)
    assert joined[0]["chosen_reward_spread"] == pytest.approx(spread[0])
    assert joined[0]["rejected_reward_spread"] == pytest.approx(spread[1])
    assert joined[2]["reward_spread"] == pytest.approx(spread[2])
    assert len(joined[1]["reward_spread"]) == 3


def test_a_shift_of_one_model_s_rewards_changes_no_spread(tmp_path: Path):
    rows, moved = [pair(1.0, 0.0), single(3.0)], [pair(101.0, 100.0), single(103.0)]
    joined = [row for _, row in ensemble(tmp_path, rows, moved).join(str(tmp_path / "joined"))]
    spreads = [value for row in joined for name, value in row.items() if name.endswith("_spread")]
    assert spreads == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)


def test_the_best_response_is_that_of_the_mean_even_if_no_model_says_so(tmp_path: Path):
    both = ensemble(tmp_path, [listed(3.0, 2.0, 0.0)], [listed(0.0, 2.0, 3.0)])
    ((_, row),) = both.join(str(tmp_path / "joined"))
    assert (row["best"], row["best_response"]) == (1, "Four")


def test_a_row_that_one_model_refused_is_left_out_and_repeated_ones_stay(tmp_path: Path):
    first = [pair(1.0, 0.0, "a"), pair(2.0, 0.0, "b"), pair(1.0, 0.0, "a")]
    second = [pair(3.0, 0.0, "a"), pair(3.0, 0.0, "a")]
    both = ensemble(tmp_path, first, second)
    joined = both.join(str(tmp_path / "joined"))
    assert [(row["prompt"], row["chosen_reward"]) for _, row in joined] == [("a", 2.0)] * 2
    assert joined.num_scored == 2
    members = [read_preferences(rows).groups.pairs.chosen_rewards for _, rows in both.each()]
    assert [each.tolist() for each in members] == [[1.0, 1.0], [3.0, 3.0]]


def test_a_column_that_belongs_to_the_rows_tells_them_apart(tmp_path: Path):
    first = [pair(1.0, 0.0, reward=1), pair(1.0, 0.0, reward=2)]
    joined = ensemble(tmp_path, first, first).join(str(tmp_path / "joined"))
    assert [row["reward"] for _, row in joined] == [1, 2]


def test_every_row_that_not_all_models_scored_counts_once_as_refused(tmp_path: Path):
    both = ensemble(tmp_path, [pair(1.0, 0.0, "a")], [pair(1.0, 0.0, "b")])
    for name, refused in (
        ("model-0", {1: "too long", 2: "empty"}),
        ("model-1", {0: "too long", 2: "new"}),
    ):
        lines = [{"origin": ORIGINS[0], "row": row, "reason": why} for row, why in refused.items()]
        folder = Storage.open(str(tmp_path / name))
        folder.write_text(f"{REFUSED}/{chunk_name(0, 0)}", to_json_lines(lines))
    joined = both.join(str(tmp_path / "joined"))
    assert (joined.num_scored, joined.refused) == (0, {"too long": 2, "empty": 1})


def write_rows(folder: Path, *rows: Any) -> Rows:
    path = folder / "rows.jsonl"
    path.write_text(to_json_lines(rows))
    return Rows(data=(str(path),))


PAIR = {"prompt": "How many?", "chosen": "Three", "rejected": "Four"}
ASKED = {"prompt": "How many?", "response": "Three"}


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({**PAIR, "chosen_reward_spread": 1}, "chosen_reward_spread"),
        ({**PAIR, "rejected_reward_spread": None}, "rejected_reward_spread"),
        ({**ASKED, "reward_spread": 1}, "reward_spread"),
    ],
)
def test_a_column_with_the_name_of_a_spread_is_refused(tmp_path: Path, row: dict, column: str):
    rows = write_rows(tmp_path, *[PAIR] * 300, row)
    with pytest.raises(InputError, match=f"row 300 of .* already has a column '{column}'"):
        check_ensemble(None, rows)


def test_columns_that_no_spread_overwrites_are_left_alone(tmp_path: Path):
    broken = {"reward_spread": 1}
    rows = [{**PAIR, "reward_spread": 1}, {**ASKED, "chosen_reward_spread": 1}, PAIR, broken]
    check_ensemble(None, write_rows(tmp_path, *rows))


def test_the_folder_of_one_model_s_scores_is_refused(tmp_path: Path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / MANIFEST).write_text("{}")
    with pytest.raises(InputError, match="has the scores of one model"):
        check_ensemble(str(tmp_path / "one"), write_rows(tmp_path, PAIR))


def test_the_joined_folder_says_whose_rewards_it_has(tmp_path: Path):
    ensemble(tmp_path, [pair(1.0, 0.0)], [pair(1.0, 0.0)]).join(str(tmp_path / "joined"))
    said = json.loads((tmp_path / "joined" / "models.json").read_text())
    assert said == [f"{tmp_path}/model-0", f"{tmp_path}/model-1"]


def test_models_score_into_folders_of_their_own():
    assert member_folder("s3://bucket/out/", 2) == "s3://bucket/out/model-2"
    assert member_folder(None, 2) is None
