"""Inputs of the estimates, taken from a run."""

import json
from typing import Any

import numpy as np
import pytest
from planned_runs import resolve_run
from shapes import LLAMA_8B, Vocabulary, meta_classifier

from rm_ray.config.sections.cluster import ResolvedCluster
from rm_ray.estimate.workload import in_layout, measure_workload
from rm_ray.preflight.estimate_inputs import (
    architecture_of,
    count_trained,
    count_workers,
    estimate_memory,
    flops_of,
    memory_setting,
    secondary_size,
    why_not_estimated,
)
from rm_ray.train.deepspeed_config import find_secondary_size

BF16 = {"name_or_path": "some/model", "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("num_workers", "gpus_per_node", "over"),
    [(64, 8, 8), (16, 4, 4), (8, 8, 0), (12, 8, 0), (4, 1, 0), (1, 8, 0)],
)
def test_a_second_partition_spans_a_full_machine(num_workers, gpus_per_node, over):
    asked = ResolvedCluster(zero_stage=3, zero_secondary_partition=True)
    assert secondary_size(asked, num_workers, gpus_per_node) == over
    assert secondary_size(ResolvedCluster(zero_stage=3), num_workers, gpus_per_node) == 0
    nodes = [rank // gpus_per_node for rank in range(num_workers)]
    assert find_secondary_size(nodes) == max(over, 1)


def test_a_memory_setting_follows_the_run_for_its_own_or_another_number_of_workers(tmp_path):
    resolved = resolve_run(
        tmp_path,
        model=BF16 | {"gradient_checkpointing": True},
        cluster={"num_workers": 8, "use_gpu": True, "zero_stage": 2},
    )
    workload = measure_workload(resolved.plan, world_size=8, most_steps=2)
    setting = memory_setting(resolved, workload)
    assert (setting.dtype, setting.zero_stage, setting.checkpointing) == ("bfloat16", 2, True)
    assert (setting.world_size, setting.on_gpu, setting.from_files) == (8, True, True)
    assert (setting.attention, setting.liger) == ("varlen", True)
    assert memory_setting(resolved, workload, world_size=64).world_size == 64


@pytest.mark.parametrize(
    ("model", "use_gpu", "layout", "attention"),
    [
        (BF16, True, "packed", "varlen"),
        (
            {"name_or_path": "some/model"},
            True,
            "packed",
            "repeated",
        ),  # float32, grouped-query attention
        (BF16, False, "packed", "grouped"),
        (BF16, True, "padded", "sdpa"),
    ],
)
def test_the_kernel_follows_from_layout_dtype_and_device(
    tmp_path, model: dict[str, Any], use_gpu, layout, attention
):
    cluster = {"num_workers": 2, "use_gpu": use_gpu, "zero_stage": 0}
    resolved = resolve_run(tmp_path, model=model, cluster=cluster)
    plan = in_layout(resolved.plan, layout)
    workload = measure_workload(plan, world_size=2, most_steps=1)
    assert memory_setting(resolved, workload).attention == attention


def test_the_embedding_holds_all_tokens_of_the_tokenizer(tmp_path):
    tokenizer = Vocabulary(LLAMA_8B["vocab_size"] + 10)
    larger = architecture_of(resolve_run(tmp_path, tokenizer=tokenizer, cluster={"num_workers": 1}))
    assert larger.parameters[0] == (LLAMA_8B["vocab_size"] + 10) * 4_096


@pytest.mark.parametrize(
    ("model", "lora", "from_files"),
    [
        ({}, {}, True),
        ({"trainable": "last:2"}, {}, True),
        ({"quantization": "nf4"}, {"rank": 8}, True),
        ({"name_or_path": "builtin", "trainable": "head"}, {}, False),
    ],
)
def test_weights_come_from_files_unless_they_are_random(tmp_path, model, lora, from_files):
    resolved = resolve_run(tmp_path, model=BF16 | model, lora=lora, cluster={"num_workers": 1})
    workload = measure_workload(resolved.plan, world_size=1, most_steps=1)
    setting = memory_setting(resolved, workload)
    assert setting.from_files == from_files
    assert setting.is_quantized == ("quantization" in model)


def test_a_model_that_is_an_adapter_is_not_read_in_parts(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    base = {"base_model_name_or_path": str(tmp_path), "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(base))
    resolved = resolve_run(
        tmp_path, model={"name_or_path": str(folder)}, cluster={"num_workers": 1}
    )
    workload = measure_workload(resolved.plan, world_size=1, most_steps=1)
    assert not memory_setting(resolved, workload).from_files


def test_what_is_trained_is_counted_with_its_adapters(tmp_path):
    lora = resolve_run(tmp_path, lora={"rank": 64}, cluster={"num_workers": 1})
    assert count_trained(lora) == architecture_of(lora).num_trained == 167_776_256
    every = resolve_run(tmp_path, cluster={"num_workers": 1})
    assert count_trained(every) == 7_504_928_768
    lengths = every.plan.lengths[np.arange(50)]
    ratio = flops_of(lora).training(lengths).sum() / flops_of(every).training(lengths).sum()
    assert 2 / 3 < ratio < 0.7


def test_workers_are_counted_as_configured(tmp_path):
    assert count_workers(resolve_run(tmp_path, cluster={"num_workers": 3})) == 3


def test_memory_is_not_estimated_for_unknown_families(tmp_path):
    known = resolve_run(tmp_path, cluster={"num_workers": 1})
    assert why_not_estimated(known) == ""
    gpt2 = meta_classifier(model_type="gpt2", num_hidden_layers=1)
    unknown = resolve_run(tmp_path, classifier=gpt2, cluster={"num_workers": 1})
    assert why_not_estimated(unknown).startswith(
        "the memory of 'gpt2' models is not modelled (only llama, "
    )


def test_memory_follows_the_largest_forward_pass(tmp_path):
    resolved = resolve_run(tmp_path, model=BF16, cluster={"num_workers": 8, "use_gpu": True})
    small, large = (
        estimate_memory(resolved, measure_workload(resolved.plan, world_size=world, most_steps=2))
        for world in (256, 1)
    )
    assert (
        small.part("weights")
        == large.part("weights")
        == 4 * architecture_of(resolved).num_parameters
    )
    assert small.part("activations") < large.part("activations")
