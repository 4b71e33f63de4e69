"""Held-out pairs -> metrics and a table of samples; each pair once, whatever the world size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rm_ray.data.loading import LoadedMicroBatch
from rm_ray.train.engine import Engine
from rm_ray.train.loss import bradley_terry_loss
from rm_ray.train.metrics import PairMetrics


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Means over all held-out pairs, and some of the pairs with texts and rewards."""

    metrics: dict[str, float]
    num_pairs: int
    samples: list[dict[str, Any]]


def evaluate(
    engine: Engine,
    steps: Iterable[Sequence[LoadedMicroBatch]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    sample_rows: int,
) -> Evaluation:
    """Score every held-out pair; the first ``sample_rows`` of them come back as samples."""
    totals = PairMetrics.zero(engine.device)
    samples: list[dict[str, Any]] = []
    with engine.evaluating():
        for micro_batches in steps:
            for micro_batch in micro_batches:
                pairs = micro_batch.pad(tokenizer.pad_token_id).to(engine.device)
                rewards = engine.rewards(pairs)
                chosen, rejected = rewards.chunk(2)
                losses = bradley_terry_loss(chosen, rejected, pairs.margins)
                totals.add(rewards, losses, pairs.weights, num_tokens=micro_batch.num_tokens)
                if (micro_batch.plan.pairs < sample_rows).any():
                    scores = rewards.reshape(2, -1).cpu().numpy()
                    samples += _samples(micro_batch, scores, tokenizer, sample_rows)
    engine.sum_over_ranks(totals.sums)
    gathered = [sample for ranks in engine.gather_objects(samples) for sample in ranks]
    return Evaluation(
        metrics=totals.means("eval/rm"),
        num_pairs=totals.count,
        samples=sorted(gathered, key=lambda sample: int(sample["pair"])),
    )


def _samples(
    micro_batch: LoadedMicroBatch,
    scores: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    sample_rows: int,
) -> list[dict[str, Any]]:
    plan, num_pairs = micro_batch.plan, len(micro_batch.plan.pairs)
    samples = []
    for i, pair in enumerate(plan.pairs):
        if pair >= sample_rows or not plan.weights[i]:
            continue
        prompt_length = micro_batch.prompt_lengths[i]
        chosen, rejected = micro_batch.rows[i], micro_batch.rows[num_pairs + i]
        samples.append(
            {
                "pair": int(pair),
                "prompt": tokenizer.decode(chosen[:prompt_length]),
                "chosen": tokenizer.decode(chosen[prompt_length:]),
                "rejected": tokenizer.decode(rejected[prompt_length:]),
                "chosen_reward": float(scores[0, i]),
                "rejected_reward": float(scores[1, i]),
                "correct": bool(scores[0, i] > scores[1, i]),
            }
        )
    return samples
