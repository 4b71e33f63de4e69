import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rm_ray.config.column_rules import NO_RULES
from rm_ray.config.scoring import ScoringModel
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.evaluation.reward_statistics import RewardStatistics
from rm_ray.scoring.chunks import ChunkScorer
from rm_ray.scoring.output import READINGS, REFUSED, ROWS, chunk_name
from rm_ray.storage import Storage


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path))


def score(
    exported: Path,
    folder: Storage,
    rows: list[Any],
    max_length: int = 500,
    statistics: RewardStatistics | None = None,
) -> dict:
    """Score rows as the third chunk of the second file; return its counts."""
    scorer = ChunkScorer(
        model=ScoringModel(model=str(exported), max_length=max_length),
        rules=NO_RULES,
        day=date(2024, 2, 29),
        origins=["a.jsonl", "b.jsonl"],
        folder=folder,
        cluster=ClusterConfig(use_gpu=False),
        statistics=statistics,
    )
    texts, numbers = np.empty(1, dtype=object), np.empty(1, dtype=object)
    texts[0], numbers[0] = [json.dumps(row) for row in rows], list(range(700, 700 + len(rows)))
    batch = {"fragment": np.array([1]), "chunk": np.array([2]), "row": numbers, "json": texts}
    return {name: values[0] for name, values in scorer(batch).items()}


def read(folder: Storage, kind: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.read_text(f"{kind}/{NAME}").splitlines()]


NAME = chunk_name(1, 2)

QUESTION = [{"role": "user", "content": "How many?"}]


def test_every_form_of_row_gets_its_rewards(exported: Path, folder: Storage):
    rows = [
        {"prompt": "How many?", "response": "Three", "mine": 1},
        {"prompt": "How many?", "chosen": "Three", "rejected": "Four"},
        {"prompt": "How many?", "responses": ["Four", "Three", "Five"]},
    ]

    counts = score(exported, folder, rows)

    assert (counts["file"], counts["rows"], counts["error"]) == (NAME, 3, "")
    alone, pair, several = read(folder, ROWS)
    assert {"prompt", "response", "mine", "reward", "num_tokens"} == alone.keys()
    assert pair["chosen_reward"] == pytest.approx(alone["reward"], abs=1e-5)
    assert several["rewards"][:2] == pytest.approx(
        [pair["rejected_reward"], pair["chosen_reward"]], abs=1e-5
    )
    assert several["best"] == int(np.argmax(several["rewards"]))
    assert several["best_response"] == rows[2]["responses"][several["best"]]
    assert counts["tokens"] == (
        alone["num_tokens"] + pair["chosen_tokens"] + pair["rejected_tokens"]
        + sum(several["num_tokens"])
    )  # fmt: skip


def test_refused_rows_go_to_their_own_file_with_origin_row_and_reason(
    exported: Path, folder: Storage
):
    sound = {"prompt": "How many?", "response": "Three"}
    rows = [sound, "no row", {"prompt": "How many?"}, {"prompt": "long " * 60, "response": "x"}]

    assert score(exported, folder, rows, max_length=40)["rows"] == 4

    assert len(read(folder, ROWS)) == 1
    refused = read(folder, REFUSED)
    assert [row["row"] for row in refused] == [701, 702, 703]
    assert {row["origin"] for row in refused} == {"b.jsonl"}
    assert [row["raw"] for row in refused] == rows[1:]
    assert refused[2]["detail"].endswith("tokens")
    (counted,) = read(folder, READINGS)
    assert sum(counted.values()) == 2  # a long row was read, and the others were not


def test_a_column_that_scoring_would_write_is_named_and_nothing_is_written(
    exported: Path, folder: Storage
):
    counts = score(exported, folder, [{"prompt": "a", "response": "b", "reward": 1.0}])
    assert counts["error"] == (
        "the rows already have a column 'reward', which scoring would overwrite; rename it"
    )
    assert not folder.exists(ROWS)


def test_rewards_are_standardized_as_asked(exported: Path, tmp_path: Path):
    rows = [
        {"prompt": "How many?", "response": "Three"},
        {"prompt": "How many?", "responses": ["Four", "Three"]},
    ]
    statistics = RewardStatistics(mean=0.5, std=0.25, num_responses=9)
    raw, standardized = (Storage.open(str(tmp_path / name)) for name in ("raw", "standardized"))
    score(exported, raw, rows)
    score(exported, standardized, rows, statistics=statistics)
    one, several = read(raw, ROWS)
    found, others = read(standardized, ROWS)
    assert found["reward"] == (one["reward"] - 0.5) / 0.25
    assert others["rewards"] == [(reward - 0.5) / 0.25 for reward in several["rewards"]]
    assert others["best"] == several["best"]
