"""What jobs/recipes/tulu3_8b.yaml takes on GPUs, predicted, for pairs of assumed lengths.

The mixture cannot be read without a network, so that its lengths are assumed: conversations of
log-normal length whose pairs have some 441 distinct tokens on average. README.md shows what it
prints:

    python tests/benchmarks/predict.py
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import yaml
from machine import ROOT

sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from rm_ray.batches.plan import Plan, PlanSettings  # noqa: E402
from rm_ray.data.cache.group_tokens import GroupLengths  # noqa: E402
from rm_ray.estimate.architecture import Architecture  # noqa: E402
from rm_ray.estimate.gpu_speed import COMPUTE_SHARE, GPU_PEAK, Compute  # noqa: E402
from rm_ray.estimate.memory_setting import MemorySetting  # noqa: E402
from rm_ray.estimate.network import Network  # noqa: E402
from rm_ray.estimate.prediction import (  # noqa: E402
    Prediction,
    describe_prediction,
    predict_run,
)
from rm_ray.model.architecture import attention_weight  # noqa: E402
from rm_ray.model.flops import ModelFlops  # noqa: E402

RECIPE = ROOT / "jobs" / "recipes" / "tulu3_8b.yaml"

NUM_PAIRS = 270_000
"""About as many as the mixture has."""

GPU_MEMORY = 80 * 10**9

NETWORK = Network(within_node=450e9, between_nodes=50e9, gpus_per_node=8)
"""NVLink of an H100, and a card of 400 Gbit/s for each GPU."""

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 4_096, "intermediate_size": 14_336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128_264, "num_labels": 1,
}  # fmt: skip


def assumed_lengths(longest: int, *, num_pairs: int = NUM_PAIRS) -> GroupLengths:
    """Draw lengths: prompts and responses of log-normal length, cut at the longest allowed."""
    rng = np.random.default_rng(0)
    prefix = np.minimum(rng.lognormal(4.6, 0.9, num_pairs), longest // 2).astype(np.int64)
    tails = rng.lognormal(4.7, 0.75, (2, num_pairs)).astype(np.int64) + 1
    chosen, rejected = np.minimum(prefix + tails, longest)
    return GroupLengths.of_pairs(chosen=chosen, rejected=rejected, prefix=prefix)


def recipe() -> dict[str, Any]:
    """Return the settings of the recipe."""
    settings: dict[str, Any] = yaml.safe_load(RECIPE.read_text())
    return settings


def _classifier() -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**LLAMA_8B))


def architecture() -> Architecture:
    """Return the sizes of the recipe's model."""
    return Architecture.of(_classifier())


def predict() -> Prediction:
    """Predict the recipe's run."""
    settings, classifier = recipe(), _classifier()
    model, batch, cluster = settings["model"], settings["batch"], settings["cluster"]
    plan = Plan(
        lengths=assumed_lengths(settings["data"]["max_length"]),
        settings=PlanSettings(
            global_batch_size=batch["global_batch_size"],
            tokens_per_micro_batch=batch["tokens_per_micro_batch"],
            attention_weight=attention_weight(classifier),
            seed=settings["run"]["seed"],
        ),
    )
    setting = MemorySetting(
        dtype=model["dtype"],
        zero_stage=cluster["zero_stage"],
        checkpointing=model["gradient_checkpointing"],
        world_size=cluster["num_workers"],
        on_gpu=True,
        attention="varlen",
        liger=True,
    )
    return predict_run(
        plan,
        ModelFlops.of(classifier),
        Architecture.of(classifier),
        setting,
        compute=Compute(
            peak=GPU_PEAK,
            reached=COMPUTE_SHARE * GPU_PEAK,
            source=f"{COMPUTE_SHARE:g} of an H100's peak in its passes, assumed",
        ),
        network=NETWORK,
        gpu_memory=GPU_MEMORY,
    )


if __name__ == "__main__":
    print("\n".join(describe_prediction(predict())))
