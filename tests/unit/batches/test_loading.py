from pathlib import Path

import numpy as np
from tables import builtin_table

from rm_ray.batches.loading import load_step
from rm_ray.batches.plan import Plan, PlanSettings


def test_a_rank_s_micro_batches_have_the_token_ids_margins_and_prompts_of_their_pairs(
    tmp_path: Path,
):
    table, _ = builtin_table(tmp_path / "table", 40)
    settings = PlanSettings(global_batch_size=16, tokens_per_micro_batch=200)
    plan = Plan(lengths=table.lengths, settings=settings)

    taken: list[int] = []
    for rank in range(2):
        loaded = list(load_step(table, plan, 1, rank=rank, world_size=2))
        planned = plan.micro_batches(1, rank=rank, world_size=2)
        assert len(loaded) == len(planned) > 1
        for micro_batch, expected in zip(loaded, planned, strict=True):
            pairs = expected.pairs
            np.testing.assert_array_equal(micro_batch.plan.pairs, pairs)
            np.testing.assert_array_equal(micro_batch.pairs.tokens, table.gather(pairs).tokens)
            np.testing.assert_array_equal(micro_batch.margins, table.margin[pairs])
            np.testing.assert_array_equal(micro_batch.prompt_lengths, table.prompt_length[pairs])
            taken += pairs[expected.weights > 0].tolist()

    assert sorted(taken) == sorted(plan.pairs_of_step(1).tolist())
