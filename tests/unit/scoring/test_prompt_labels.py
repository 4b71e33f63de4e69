import json
from pathlib import Path

import numpy as np
from tables import make_table

from rm_ray.config.column_rules import NO_RULES
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.evaluation.held_out_set import PromptLabel, scored_prompts
from rm_ray.evaluation.scored_groups import ScoredGroups
from rm_ray.scoring.output import ROWS, ScoredRows, chunk_name, to_json_lines
from rm_ray.scoring.preferences import read_preferences
from rm_ray.scoring.prompt_labels import label_row, read_prompt_labels
from rm_ray.storage import Storage

PAIR = {"prompt": "How many?", "chosen": "Three", "rejected": "Four"}
BENCH = [
    {**PAIR, "subset": "hep-cpp", "id": 3},
    {**PAIR, "rejected": "Three", "subset": "hep-go", "id": 4},  # refused: identical
    {**PAIR, "chosen": "3", "subset": "donotanswer", "id": 5},
]
LIST = {
    "prompt": "How many?", "chosen": ["Three"], "rejected": ["Four", "Five", "Four"],
    "subset": "Focus", "id": "7",
}  # fmt: skip


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(folder: Path, rows: list[dict]) -> tuple[PromptLabel, ...] | None:
    table = make_table(folder / "table", rows, load_tokenizer("builtin"))
    file = write(folder / "rows.jsonl", rows)
    return read_prompt_labels([file], table, seed=0, rules=NO_RULES)


def test_labels_belong_to_the_rows_that_were_kept(tmp_path: Path):
    assert read(tmp_path, BENCH) == (
        PromptLabel(subset="hep-cpp", id="3", num_correct=1, places=(0, 1)),
        PromptLabel(subset="donotanswer", id="5", num_correct=1, places=(0, 1)),
    )


def test_rows_without_subsets_have_no_labels(tmp_path: Path):
    assert read(tmp_path, [PAIR, {**PAIR, "chosen": "3"}]) is None


def test_a_repeated_response_has_the_place_of_its_first(tmp_path: Path):
    (label,) = read(tmp_path, [LIST]) or ()
    assert label == PromptLabel(subset="Focus", id="7", num_correct=1, places=(0, 1, 2, 1))


def test_a_preference_for_the_other_side_says_nothing_of_correctness():
    label = label_row({**PAIR, "subset": "x", "preference": 0.2}, "", NO_RULES)
    assert (label.subset, label.num_correct) == ("x", 0)


def test_prompts_are_those_of_the_evaluation_command(tmp_path: Path):
    """The same rows with the same rewards, read from a cache and from scored rows."""
    kept = [BENCH[0], BENCH[2], {**LIST, "rejected": ["Four", "Five"]}]
    labels = read(tmp_path, kept)
    assert labels is not None
    rewards = [[0.5, 1.0], [2.0, -1.0], [1.0, 3.0, 0.25]]
    rows = [
        {
            **row,
            "chosen_reward": each[0], "rejected_reward": each[1],
            "chosen_tokens": 1, "rejected_tokens": 1,
        } if len(each) == 2 else {**row, "rewards": each, "num_tokens": [1, 1, 1]}
        for row, each in zip(kept, rewards, strict=True)
    ]  # fmt: skip
    storage = Storage.open(str(tmp_path / "scored"))
    storage.write_text(f"{ROWS}/{chunk_name(0, 0)}", to_json_lines(rows))
    theirs = read_preferences(ScoredRows.collect(storage, ("here",), NO_RULES)).prompts
    groups = ScoredGroups.join(
        [
            ScoredGroups.one(rewards=each, tokens=[1] * len(each), better=[0], worse=[1])
            for each in rewards
        ]
    )
    ours = scored_prompts(labels, np.arange(3), groups)
    assert ours == theirs


def test_a_subset_that_only_the_last_of_many_rows_names_is_found(tmp_path: Path):
    rows = [{**PAIR, "prompt": f"How many {i}?"} for i in range(100)]
    labels = read(tmp_path, [*rows, BENCH[0]])
    assert labels is not None
    assert [label.subset for label in labels] == [""] * 100 + ["hep-cpp"]
