"""The speed of a run, given or measured."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planned_runs import resolve_run
from reward_heads import head_weight, save
from tables import builtin_table

from rm_ray.config.sections.lora import LoraConfig
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


def test_random_weights_are_timed_whatever_head_is_to_be_kept(small, tmp_path):
    resolved, table = small
    name = str(save(tmp_path / "base", {"score.weight": head_weight()}))
    model = replace(resolved.config.model, name_or_path=name, tokenizer="builtin", head="keep")
    config = replace(resolved.config, model=model)
    classifier = check_architecture(model, resolved.tokenizer)
    kept = replace(resolved, config=config, classifier=classifier)
    assert measure_speed(kept, table, num_steps=1, world_size=2, needed=1) > 0


@pytest.mark.parametrize("stage", [0, 2])
def test_4_bit_weights_are_timed_as_they_are_trained(small, stage):
    resolved, table = small
    model = replace(resolved.config.model, quantization="nf4", dtype="bfloat16")
    cluster = replace(resolved.config.cluster, zero_stage=stage)
    config = replace(resolved.config, model=model, lora=LoraConfig(rank=2), cluster=cluster)
    quantized = replace(resolved, config=config)
    assert measure_speed(quantized, table, num_steps=1, world_size=2, needed=1) > 0


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
