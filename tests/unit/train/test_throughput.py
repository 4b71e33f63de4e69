import os
import time

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForSequenceClassification,
    Gemma3Config,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from rm_ray.batches.collate import Collator
from rm_ray.batches.labels import pair_labels
from rm_ray.batches.loading import LoadedMicroBatch
from rm_ray.batches.plan import MicroBatch
from rm_ray.config.sections.batch import Layout
from rm_ray.data.cache.group_columns import GroupColumns
from rm_ray.data.cache.group_tokens import TokenCounts, join_groups
from rm_ray.model.architecture import attention_weight, count_parameters
from rm_ray.model.flops import LayerFlops, ModelFlops
from rm_ray.model.reward_model import RewardModel
from rm_ray.objectives.bradley_terry import BradleyTerry
from rm_ray.train import throughput
from rm_ray.train.metrics import GroupMetrics
from rm_ray.train.throughput import Throughput, measure_matrix_peak, peak_memory_bytes

CPU = torch.device("cpu")
HIDDEN, HEADS, HEAD_DIM, LAYERS, VOCABULARY = 32, 4, 8, 3, 100

PER_LAYER = (
    2 * 32 * 32  # queries and output
    + 2 * 32 * 16  # keys and values of two heads
    + 3 * 32 * 48  # gate, up and down
    + 2 * 32  # norms
)
BACKBONE = LAYERS * PER_LAYER + 32  # and the last norm
CLASSIFIER = BACKBONE + 32  # and the head


def llama(**changes: object) -> LlamaConfig:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "num_labels": 1,
    }
    return LlamaConfig(**(sizes | changes))


def classifier(config: PretrainedConfig, device: str = "meta") -> PreTrainedModel:
    with torch.device(device):
        return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")


def measured(tokens: TokenCounts, weights: list[float], flops: float = 0.0) -> GroupMetrics:
    metrics = GroupMetrics.zero(CPU)
    metrics.add_flops(flops)
    add(metrics, tokens, weights)
    return metrics


def add(metrics: GroupMetrics, tokens: TokenCounts, weights: list[float]) -> None:
    """Add pairs with equal rewards."""
    labels = pair_labels(torch.zeros(len(weights)), torch.tensor(weights))
    rewards = torch.zeros(2 * len(weights))
    metrics.add(rewards, BradleyTerry()(rewards, labels), labels, tokens=tokens)


FLOPS = ModelFlops(layers=(LayerFlops(token=3, product=1),), last=None, head=5)


def of(layout: Layout) -> Throughput:
    return Throughput(flops=FLOPS, matrix_peak=8e6, device=CPU, layout=layout)


def test_metrics_of_a_packed_step_follow_from_its_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(throughput, "peak_memory_bytes", lambda device: 2_500_000_000)
    step = measured(TokenCounts(all=600, distinct=400, computed=500), [1.0, 1.0, 1.0, 0.0], 2.4e6)

    assert of("packed").metrics(step, seconds=2.0, waited=0.5) == pytest.approx(
        {
            "perf/pairs_per_second": 1.5,
            "perf/tokens_per_second": 300.0,
            "perf/distinct_tokens_per_second": 200.0,
            "perf/computed_over_distinct_tokens": 1.25,
            "perf/padding_share": 0.2,  # 100 of 500 belong to no pair with a weight
            "perf/data_wait_share": 0.25,
            "perf/model_flops_per_second": 1.2e6,
            "perf/matrix_peak_ratio": 0.15,
            "perf/peak_memory_gb": 2.5,
        }
    )


def test_a_padded_step_needs_the_tokens_of_both_conversations():
    step = measured(TokenCounts(all=600, distinct=400, computed=800), [1.0] * 3)

    packed, padded = (
        of(layout).metrics(step, seconds=2.0, waited=0.0) for layout in ("packed", "padded")
    )

    assert padded["perf/padding_share"] == 0.25
    assert packed["perf/padding_share"] == 0.5
    differing = {name for name in packed if packed[name] != padded[name]}
    assert differing <= {"perf/padding_share", "perf/peak_memory_gb"}
    assert padded["perf/computed_over_distinct_tokens"] == 2.0
    assert padded["perf/data_wait_share"] == 0.0


def test_a_step_adds_up_the_counts_of_its_micro_batches():
    step = measured(TokenCounts(all=10, distinct=6, computed=6), [1.0])
    add(step, TokenCounts(all=20, distinct=14, computed=14), [1.0, 1.0])

    metrics = of("packed").metrics(step, seconds=10.0, waited=1.0)

    assert metrics["perf/pairs_per_second"] == 0.3
    assert metrics["perf/tokens_per_second"] == 3.0
    assert metrics["perf/distinct_tokens_per_second"] == 2.0
    assert metrics["perf/padding_share"] == 0.0


def test_the_parameters_of_a_llama_match_a_count_by_hand():
    assert count_parameters(classifier(llama())) == CLASSIFIER
    assert count_parameters(RewardModel(classifier(llama()), "packed")) == CLASSIFIER
    assert count_parameters(RewardModel(classifier(llama()), "padded")) == CLASSIFIER


@pytest.mark.parametrize("is_tied", [True, False])
def test_tied_weights_are_embeddings_and_others_are_not(is_tied: bool):
    config = llama(tie_word_embeddings=is_tied)

    assert count_parameters(classifier(config)) == CLASSIFIER
    output = 0 if is_tied else VOCABULARY * HIDDEN
    assert count_parameters(LlamaForCausalLM(config)) == BACKBONE + output


@pytest.mark.parametrize("vocabulary", [10, 5_000])
def test_the_number_of_parameters_does_not_depend_on_the_vocabulary(vocabulary: int):
    assert count_parameters(classifier(llama(vocab_size=vocabulary))) == CLASSIFIER


def test_frozen_parameters_count_as_well():
    model = classifier(llama())
    model.requires_grad_(False)

    assert count_parameters(model) == CLASSIFIER


@pytest.mark.parametrize("head_dim", [HEAD_DIM, 24])
def test_the_weight_of_attention_is_its_flops_over_those_of_a_token(head_dim: int):
    heads = LAYERS * (2 * HIDDEN * HEADS * head_dim + 2 * HIDDEN * 2 * head_dim)
    parameters = heads + LAYERS * (3 * HIDDEN * 48 + 2 * HIDDEN) + 2 * HIDDEN

    # Query times key, and weight times value: two FLOPs per element each.
    product = LAYERS * HEADS * (2 * head_dim + 2 * head_dim)
    assert attention_weight(classifier(llama(head_dim=head_dim))) == product / (2 * parameters)


def test_the_weight_of_attention_matches_counted_flops():
    model = classifier(llama(), device="cpu").base_model
    flops = {}
    for num_tokens in (10, 20):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input_ids=torch.zeros(1, num_tokens, dtype=torch.long), use_cache=False)
        flops[num_tokens] = counter.get_total_flops()

    # a T + b T^2, so that T = 10 and 20 give b; eager attention computes every product.
    product = (flops[20] - 2 * flops[10]) / (20**2 - 2 * 10**2)
    assert attention_weight(classifier(llama())) == product / (2 * CLASSIFIER)
    matrices = BACKBONE - (2 * LAYERS + 1) * HIDDEN  # the rest are norms
    assert flops[10] == 10 * 2 * matrices + 10**2 * product


def test_the_weight_of_attention_uses_the_text_config_of_a_multimodal_model():
    """Like Gemma 3 from 4B up, whose decoder sizes are in a nested config."""
    text = {
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 48,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 2,
        "head_dim": HEAD_DIM,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }  # fmt: skip
    model = classifier(Gemma3Config(text_config=text, vision_config=vision, num_labels=1))

    product = 4 * LAYERS * HEADS * HEAD_DIM
    assert attention_weight(model) == product / (2 * count_parameters(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_matrix_peak_is_measured_quickly(dtype: torch.dtype):
    started = time.perf_counter()
    peak = measure_matrix_peak(CPU, dtype)
    seconds = time.perf_counter() - started

    assert 1e7 < peak < 1e15  # FLOP/s: more than a microcontroller, less than a cluster
    assert seconds < 60


def test_the_matrix_peak_leaves_the_random_numbers_of_the_run_alone():
    """How many products it takes depends on the load, and checkpoints hold the generator."""
    before = torch.get_rng_state()
    measure_matrix_peak(CPU, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_matrix_peak_comes_from_the_best_product_of_the_best_size(
    monkeypatch: pytest.MonkeyPatch,
):
    """On a device that another program keeps busy during all but a few products."""
    seconds = {256: 0.01, 512: 0.04, 1_024: 0.4}
    now, products = [0.0], []

    def multiply(left: Tensor, right: Tensor) -> None:
        products.append(len(left))
        is_undisturbed = len(products) % 4 == 3
        now[0] += seconds[len(left)] * (1 if is_undisturbed else 3)

    monkeypatch.setattr(torch, "mm", multiply)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    assert measure_matrix_peak(CPU, torch.float32) == pytest.approx(2 * 512**3 / 0.04)
    assert set(products) == {256, 512}  # one of 1,024 would take 0.32 s


def test_the_flops_of_a_step_follow_from_the_lengths_of_its_weighted_groups():
    pairs = join_groups([([1, 2, 3], [1, 2, 4, 5]), ([6, 7], [8])])
    plan = MicroBatch(
        step=0, position=0, num_micro_batches=1, rank=0, groups=np.array([4, 5]),
        weights=np.array([1.0, 0.0], dtype=np.float32),
    )  # fmt: skip
    loaded = LoadedMicroBatch(
        plan=plan, columns=GroupColumns.of_pairs(pairs.lengths), tokens=pairs.tokens
    )
    collator = Collator(layout="packed", kernel="grouped", pad_token_id=0, device=CPU)

    # 5 distinct tokens, which see 1 + 2 + 3 + 3 + 4 keys, and a head's product for either reward.
    once = 3 * (5 * 3 + 13 * 1 + 2 * 5)
    assert of("packed").count(collator.lay_out([loaded])) == once
    assert of("packed").count(collator.lay_out([loaded, loaded])) == 2 * once


def test_peak_memory_is_in_bytes_and_never_falls():
    before = peak_memory_bytes(CPU)
    after = peak_memory_bytes(CPU)

    # This process has loaded torch, and fits into the machine.
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 50 * 2**20 < before <= after < machine
