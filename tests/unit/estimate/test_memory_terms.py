"""The quantities that make up memory at every stage."""

from dataclasses import replace

import pytest
from shapes import ON_64_GPUS, llama_8b

from rm_ray.estimate.activations import Activations
from rm_ray.estimate.memory_terms import MemoryTerms
from rm_ray.train.deepspeed_config import BUCKET

EIGHT_BILLION = llama_8b()
N = EIGHT_BILLION.num_parameters
EMBEDDING, LARGEST = 128_256 * 4_096, 4_096 * 14_336

ACTIVATIONS = Activations(
    layer=100, last_layer=60, between=10, angles=5, last_norm=0, working=40, num_layers=32,
    is_trimmed=True,
)  # fmt: skip


def terms(**changes):
    return MemoryTerms(
        architecture=EIGHT_BILLION,
        setting=replace(ON_64_GPUS, **changes),
        activations=ACTIVATIONS,
    )


def test_a_shard_is_rounded_up():
    assert terms(world_size=64).shard == -(-N // 64)
    assert terms(world_size=7).shard == N // 7 + 1
    assert terms(world_size=1).shard == terms().full == N


def test_activations_peak_after_the_forward_pass():
    kept = 31 * 100 + 60 + 5
    assert terms(checkpointing=False).activations_after_forward == kept
    assert terms(checkpointing=False).peak_activations == max(kept, kept - 60 + 40)
    inputs = 31 * 10 + 60 + 5
    assert terms(checkpointing=True).activations_after_forward == inputs
    assert terms(checkpointing=True).peak_activations == inputs - 60 + 100 + 40


def test_activations_are_freed_as_gradients_arrive():
    left = terms(checkpointing=False).activations_at_first_exchange
    assert left == int(3_165 * (1 - BUCKET / N)) == 3_080
    assert terms().in_bucket == BUCKET == 200_000_000


def test_a_small_model_s_gradients_fit_one_bucket_that_the_embedding_s_completes():
    small = replace(EIGHT_BILLION, parameters=(1_000, 60, 40))
    of_small = MemoryTerms(architecture=small, setting=ON_64_GPUS, activations=ACTIVATIONS)
    assert of_small.in_bucket == 1_100
    assert of_small.last_gradient(2) == 2_000
    assert terms().last_gradient(2) == terms().new_gradient(2) == 2 * LARGEST
    assert terms().embedding == EMBEDDING


@pytest.mark.parametrize(("stage", "num_buckets"), [(1, 2), (2, 2), (3, 1)])
def test_stages_1_and_2_fill_one_bucket_while_exchanging_another(stage, num_buckets):
    on_gpu, on_cpu = terms(zero_stage=stage), terms(zero_stage=stage, on_gpu=False)
    assert on_gpu.empty_buckets(2) == on_gpu.full_bucket(2) == num_buckets * 2 * BUCKET
    # On a CPU, memory counts only once it is written to.
    assert (on_cpu.empty_buckets(2), on_cpu.full_bucket(2)) == (0, 2 * BUCKET)


def test_adamw_allocates_two_float32_copies_on_a_cpu_and_nothing_if_fused():
    assert terms(on_gpu=False).adamw(1_000) == 8_000
    assert terms(on_gpu=True).adamw(1_000) == 0
