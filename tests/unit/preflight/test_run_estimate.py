"""The estimate of a run at every stage."""

from dataclasses import replace

import pytest
from planned_runs import random_lengths, resolve_run
from shapes import meta_classifier

from rm_ray.estimate.gpu_memory import usable_memory
from rm_ray.estimate.network import Network
from rm_ray.estimate.prediction import prefer
from rm_ray.estimate.timing import Compute
from rm_ray.model.flops import ModelFlops
from rm_ray.preflight.resolved_run import ResolvedRun
from rm_ray.preflight.run_estimate import (
    RunEstimate,
    Speed,
    estimate_run,
    flops_of_pair,
    predict_times,
    recommend,
    recommend_choice,
)

GPU = 80 * 10**9


@pytest.fixture
def resolved(tmp_path) -> ResolvedRun:
    return resolve_run(
        tmp_path,
        model={"name_or_path": "some/model", "dtype": "bfloat16"},
        cluster={"num_workers": 64, "use_gpu": True, "zero_stage": 3},
    )


def estimate_of(resolved: ResolvedRun, *, gpu_memory: int | None = GPU) -> RunEstimate:
    return estimate_run(resolved, least_workers=None, gpu_memory=gpu_memory, most_steps=2)


def test_pairs_steps_and_workers_are_counted(resolved):
    estimate = estimate_of(resolved)
    assert (len(estimate.lengths), estimate.num_eval_pairs, estimate.num_refused) == (2_000, 0, 3)
    assert (estimate.num_steps, estimate.num_episodes, estimate.num_workers) == (8, 2_000, 64)
    assert estimate.num_parameters == 7_504_928_768
    packed, padded = estimate.workloads
    assert (packed.layout, padded.layout) == ("packed", "padded")
    assert packed.computed == random_lengths().distinct.sum() < padded.computed


def test_an_unpackable_model_has_one_layout(tmp_path):
    gpt2 = meta_classifier(model_type="gpt2", num_hidden_layers=1)
    resolved = resolve_run(
        tmp_path, classifier=gpt2, batch={"layout": "padded"}, cluster={"num_workers": 1}
    )
    estimate = estimate_of(resolved)
    assert [workload.layout for workload in estimate.workloads] == ["padded"]
    assert estimate.why_no_memory.startswith("the memory of 'gpt2' models is not modelled")
    assert (estimate.alternatives, estimate.chosen, estimate.recommended) == ((), None, None)
    assert not estimate.is_predictable


def test_the_first_fitting_alternative_is_recommended_and_the_configured_one_marked(resolved):
    estimate = estimate_of(resolved)
    assert estimate.chosen is not None and estimate.recommended is not None
    assert estimate.chosen.setting.zero_stage == 3
    assert estimate.recommended.setting.zero_stage == 2
    assert estimate.recommended.memory.device <= usable_memory(GPU)
    before = estimate.alternatives[: estimate.alternatives.index(estimate.recommended)]
    assert [option.fits(GPU) for option in before] == [False, False]
    assert sum(option.is_recommended for option in estimate.alternatives) == 1


def test_nothing_is_recommended_if_gpu_memory_is_unknown(resolved):
    estimate = estimate_of(resolved, gpu_memory=None)
    assert estimate.recommended is None
    assert {option.fits(None) for option in estimate.alternatives} == {None}


def test_memory_is_estimated_for_the_fewest_workers(resolved):
    estimate = estimate_run(resolved, least_workers=8, gpu_memory=GPU, most_steps=2)
    assert {option.setting.world_size for option in estimate.alternatives} == {8}
    assert estimate.num_workers == 64


def test_a_predicted_choice_replaces_the_recommendation(resolved):
    options = recommend(estimate_of(resolved).alternatives, GPU)
    prediction = predict_times(
        resolved,
        compute=Compute(peak=1e15, reached=4e14, source="given"),
        network=Network(within_node=450e9, between_nodes=50e9),
        gpu_memory=GPU,
    )
    assert [point.num_workers for point in prediction.curve] == [8, 16, 32, 64, 128]
    third = next(c for c in prediction.choices if c.setting.zero_stage == 3)
    (marked,) = [o for o in recommend_choice(options, third) if o.is_recommended]
    assert marked.setting.zero_stage == 3
    assert marked.setting.checkpointing == third.setting.checkpointing
    assert recommend_choice(options, None) == options
    best = prefer(prediction.choices)
    assert best is not None and best.fits


def test_hours_follow_from_the_speed_of_all_workers(resolved):
    estimate = estimate_of(resolved)
    assert estimate.hours is None
    fast = replace(estimate, speed=Speed(pairs_per_second=20.0, source="given"))
    assert fast.hours == 2_000 / 20 / 3_600


def test_flops_per_pair_are_the_mean_over_all_pairs(resolved):
    flops = ModelFlops.of(resolved.classifier).training(random_lengths())
    assert flops_of_pair(resolved) == pytest.approx(flops.mean())
