"""Models and steps to measure with: built on the device, from a config and lengths alone."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pair_set import PairSet, Vocabulary
from torch import nn
from transformers import AutoModelForSequenceClassification

from gpu.bench import Bench
from rm_ray.batches.attention_index import Kernel
from rm_ray.batches.collate import Collator, ReadyMicroBatch
from rm_ray.batches.loading import load_step
from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.config.sections.batch import Layout
from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.cache.group_tokens import GroupLengths, GroupTokens
from rm_ray.model.architecture import load_config
from rm_ray.model.attention import PACKED_ATTENTION
from rm_ray.model.heads import Float32Linear
from rm_ray.model.reward_model import RewardModel

WIDE = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
    "max_position_embeddings": 8_192,
}  # fmt: skip
"""Layers of a Llama of 8 billion parameters, of which it has 32."""

NARROW = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 1, "vocab_size": 512, "max_position_embeddings": 8_192,
}  # fmt: skip
"""What stands for them on a CPU."""


def build_on(
    device: torch.device, fields: dict[str, Any], folder: Path, *, dtype: torch.dtype
) -> RewardModel:
    """Build the model of a config with random weights, on the device that is to have it.

    It is what ``build_reward_model`` makes but for its numbers: those are drawn on the device, in
    a moment where a CPU takes a minute.
    """
    path = folder / "model.json"
    path.write_text(json.dumps(fields))
    vocabulary: Any = Vocabulary(size=fields["vocab_size"], pad_token_id=fields["vocab_size"] - 1)
    architecture = load_config(ModelConfig(name_or_path=str(path)), vocabulary)
    with torch.device(device):
        classifier = AutoModelForSequenceClassification.from_config(
            architecture, dtype=dtype, attn_implementation=PACKED_ATTENTION
        )
        classifier.score = Float32Linear(architecture.hidden_size, 1, bias=False, dtype=dtype)
    classifier.config.pad_token_id = vocabulary.pad_token_id
    nn.init.normal_(classifier.score.weight, std=1 / math.sqrt(architecture.hidden_size + 1))
    return RewardModel(classifier, "packed").train()


def set_layout(model: RewardModel, layout: Layout) -> None:
    """Have the model attend as batches of a layout ask."""
    model.classifier.set_attn_implementation(PACKED_ATTENTION if layout == "packed" else "sdpa")


def set_recomputation(model: RewardModel, on: bool) -> None:
    """Recompute activations in the backward pass, or keep them.

    By the name that transformers had before 5.23 and still knows.
    """
    if on:
        model.classifier.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.classifier.gradient_checkpointing_disable()


def read_lengths(file: Path | None, *, count: int, seed: int = 0) -> GroupLengths:
    """Return lengths of real pairs, or some of the same distribution, in random order."""
    rng = np.random.default_rng(seed)
    if file is not None:
        with np.load(file) as known:
            lengths = GroupLengths.of_pairs(**{name: known[name] for name in known.files})
        return lengths[rng.permutation(len(lengths))[:count]]
    return generated_lengths(rng, count)


def generated_lengths(rng: np.random.Generator, count: int, *, most: int = 1024) -> GroupLengths:
    """Draw lengths like those of the real pairs: log-normal prompts and responses.

    Means and spreads are those of the logarithms of the 3,354 real pairs up to 1,024 tokens that
    the benchmarks use, whose lengths ``pack.sh`` writes to a file.
    """
    prefix, chosen, rejected = (
        np.exp(rng.normal(center, spread, size=count)).clip(1, most // 2).astype(np.int32)
        for center, spread in (PREFIX, CHOSEN_TAIL, REJECTED_TAIL)
    )
    return GroupLengths.of_pairs(chosen=prefix + chosen, rejected=prefix + rejected, prefix=prefix)


PREFIX, CHOSEN_TAIL, REJECTED_TAIL = (5.13, 1.09), (3.96, 1.04), (3.98, 1.05)
"""Mean and standard deviation of the logarithms of lengths."""


def with_random_tokens(lengths: GroupLengths, *, vocabulary: int, seed: int = 0) -> PairSet:
    """Return pairs of these lengths; what the tokens are does not matter to speed."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocabulary - 1, size=int(lengths.distinct.sum()), dtype=np.int32)
    return PairSet(
        name="lengths",
        pairs=GroupTokens(tokens=ids, lengths=lengths),
        vocabulary=Vocabulary(size=vocabulary, pad_token_id=vocabulary - 1),
    )


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Steps of the same pairs for every contestant."""

    pairs: PairSet
    pairs_per_step: int
    tokens: int
    """Distinct tokens of a step, at most."""

    @classmethod
    def of(cls, bench: Bench, *, tokens: int, steps: int, vocabulary: int) -> Workload:
        """Deal pairs of real lengths into steps of nearly so many distinct tokens."""
        lengths = read_lengths(bench.lengths, count=3_000)
        if bench.is_dry:
            lengths = shortened(lengths, 16)
        size = max(1, round(tokens / float(lengths.distinct.mean())))
        pairs = with_random_tokens(lengths, vocabulary=vocabulary).deal(steps=steps, size=size)
        sums = pairs.lengths.distinct.reshape(steps, size).sum(axis=1)
        return cls(pairs=pairs, pairs_per_step=size, tokens=int(sums.max()))

    def plan(self, layout: Layout) -> Plan:
        """Return its steps; a packed one is one micro-batch, a padded one as many as it takes."""
        longest = 2 * int(self.pairs.lengths.longest.max())
        settings = PlanSettings(
            global_batch_size=self.pairs_per_step,
            tokens_per_micro_batch=max(self.tokens, longest),
            layout=layout,
            shuffle=False,
        )
        return Plan(lengths=self.pairs.lengths, settings=settings)

    def lengths_of(self, step: int) -> GroupLengths:
        """Return the lengths of a step's pairs."""
        first = step * self.pairs_per_step
        return self.pairs.lengths[np.arange(first, first + self.pairs_per_step)]

    def ready(
        self, step: int, *, layout: Layout, kernel: Kernel, device: torch.device
    ) -> list[ReadyMicroBatch]:
        """Return a step's micro-batches on the device."""
        collator = Collator(
            layout=layout,
            kernel=kernel,
            pad_token_id=self.pairs.vocabulary.pad_token_id,
            device=device,
        )
        table: Any = self.pairs
        loaded = load_step(table, self.plan(layout), step, rank=0, world_size=1)
        return collator.move(collator.lay_out(loaded))


def shortened(lengths: GroupLengths, divisor: int) -> GroupLengths:
    """Return lengths of the same shape, so many times shorter."""
    prefix = lengths.prefix // divisor
    sides = lengths.conversations.reshape(-1, 2).T
    tails = (side - lengths.prefix for side in sides)
    chosen, rejected = (prefix + np.maximum(tail // divisor, 1) for tail in tails)
    return GroupLengths.of_pairs(chosen=chosen, rejected=rejected, prefix=prefix)


def shape(bench: Bench, *, layers: int, **fields: Any) -> dict[str, Any]:
    """Return the config of so many wide layers, or of 2 narrow ones on a CPU."""
    if bench.is_dry:
        return {**NARROW, "num_hidden_layers": 2}
    return {**WIDE, "num_hidden_layers": layers, **fields}
