"""The speed of a run, given or measured."""

from pathlib import Path
from typing import Any

import pytest
from planned_runs import resolve_run
from tables import builtin_table

from rm_ray.data.cache.token_table import TokenTable
from rm_ray.errors import InputError
from rm_ray.model.build import check_architecture
from rm_ray.preflight.resolved_run import ResolvedRun
from rm_ray.preflight.run_estimate import estimate_run
from rm_ray.preflight.speed import find_speed, measure_speed


@pytest.fixture
def small(tmp_path: Path, tokenizer: Any) -> tuple[ResolvedRun, TokenTable]:
    table, _ = builtin_table(tmp_path / "table", 40)
    resolved = resolve_run(
        tmp_path,
        tokenizer=tokenizer,
        lengths=table.lengths,
        batch={"global_batch_size": 16, "tokens_per_micro_batch": 1_024},
        cluster={"num_workers": 2, "cpus_per_worker": 1, "use_gpu": False},
    )
    classifier = check_architecture(resolved.config.model, tokenizer)
    return ResolvedRun(**{**vars(resolved), "classifier": classifier}), table


def test_steps_are_timed_after_a_warm_up_step(small, caplog):
    resolved, table = small
    with caplog.at_level("INFO", logger="rm_ray"):
        speed = measure_speed(resolved, table, num_steps=1, world_size=2, needed=1)
    steps = [record.args for record in caplog.records if "measured step" in record.message]
    assert [args[0] for args in steps] == [0, 1]
    assert speed == steps[1][1] > 0


def test_a_model_too_large_for_this_machine_is_refused(small):
    resolved, table = small
    with pytest.raises(InputError, match=r"--measure needs 1000000\.0 GB, but this machine has"):
        measure_speed(resolved, table, num_steps=1, world_size=2, needed=10**15)


def test_a_speed_is_given_or_unknown(small):
    resolved, _ = small
    estimate = estimate_run(resolved, least_workers=None, gpu_memory=None, most_steps=1)
    given = find_speed(resolved, estimate, pairs_per_second=12.5, num_steps=0)
    assert given is not None
    assert (given.pairs_per_second, given.source) == (12.5, "given")
    assert find_speed(resolved, estimate, pairs_per_second=None, num_steps=0) is None
