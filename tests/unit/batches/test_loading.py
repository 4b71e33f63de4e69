from pathlib import Path

import numpy as np
from made_cache import Row, group_row
from tables import map_rows

from rm_ray.batches.loading import load_step
from rm_ray.batches.plan import Plan, PlanSettings


def rows_of_groups(count: int) -> list[Row]:
    """Return rows of 1 to 5 responses that share 3 tokens; the first one is the best."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        size = 1 + i % 5
        tails = [rng.integers(0, 90, 1 + rng.integers(0, 9)).tolist() for _ in range(size)]
        conversations = [[i, i, i, 100 + k, *tail] for k, tail in enumerate(tails)]
        wins = [(0, k) for k in range(1, size)]
        about = {"prefix_length": 3, "prompt_length": i % 3, "margin": [i / 4] * len(wins)}
        rows.append(group_row(0, i, conversations, wins, **about))
    return rows


def test_a_rank_s_micro_batches_have_the_token_ids_labels_and_prompts_of_their_groups(
    tmp_path: Path,
):
    rows = rows_of_groups(40)
    table = map_rows(tmp_path / "table", rows, origins=("rows",))
    settings = PlanSettings(global_batch_size=16, tokens_per_micro_batch=100)
    plan = Plan(lengths=table.lengths, settings=settings)

    taken: list[int] = []
    for rank in range(2):
        loaded = list(load_step(table, plan, 1, rank=rank, world_size=2))
        planned = plan.micro_batches(1, rank=rank, world_size=2)
        assert len(loaded) == len(planned) > 1
        for micro_batch, expected in zip(loaded, planned, strict=True):
            np.testing.assert_array_equal(micro_batch.plan.groups, expected.groups)
            first = 0
            for i, group in enumerate(expected.groups.tolist()):
                row, columns = rows[group], micro_batch.columns
                found = micro_batch.groups.conversations(i)
                assert [ids.tolist() for ids in found] == row["ids"]
                assert columns.prompt_length[i] == row["prompt_length"]
                after = first + columns.num_comparisons[i]
                for name in ("better", "worse", "margin"):
                    assert getattr(columns, name)[first:after].tolist() == row[name]
                first = after
            taken += expected.groups[expected.weights > 0].tolist()

    assert sorted(taken) == sorted(plan.groups_of_step(1).tolist())
