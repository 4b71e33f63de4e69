"""Held-out pairs -> metrics and samples; each pair counts once, for any world size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rm_ray.batches.collate import ReadyMicroBatch
from rm_ray.evaluation.pairwise import ScoredPairs
from rm_ray.train.collectives import gather_objects, sum_over_ranks
from rm_ray.train.engine import Engine
from rm_ray.train.loss import bradley_terry_loss
from rm_ray.train.metrics import PairMetrics


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Means over all held-out pairs, and samples with texts and rewards."""

    metrics: dict[str, float]
    num_pairs: int
    samples: list[dict[str, Any]]
    order: np.ndarray
    """``[N]``: the held-out pair of each row of ``pairs``."""
    pairs: ScoredPairs


def evaluate_held_out(
    engine: Engine,
    steps: Iterable[Sequence[ReadyMicroBatch]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    sample_rows: int,
    on_micro_batch: Callable[[], None] = lambda: None,
    gives_up: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Score every held-out pair, and return the first ``sample_rows`` as samples.

    Returns None if ``gives_up`` returns true after a step, as it must on every rank alike.
    """
    totals = PairMetrics.zero(engine.device)
    samples: list[dict[str, Any]] = []
    scored: list[tuple[np.ndarray, ScoredPairs]] = []
    with engine.evaluating():
        for micro_batches in steps:
            by_micro_batch = []
            for micro_batch in micro_batches:
                pairs = micro_batch.pairs
                rewards = engine.rewards(pairs)
                chosen, rejected = rewards.chunk(2)
                losses = bradley_terry_loss(chosen, rejected, pairs.margins)
                totals.add(rewards, losses, pairs.weights, tokens=micro_batch.tokens)
                by_micro_batch.append(rewards.reshape(2, -1))
                on_micro_batch()
            read = torch.cat(by_micro_batch, dim=1).cpu()  # synchronizes once per step
            sizes = [rewards.shape[1] for rewards in by_micro_batch]
            for micro_batch, one in zip(
                micro_batches, torch.split(read, sizes, dim=1), strict=True
            ):
                scores = one.numpy()
                scored.append(_keep(micro_batch, scores))
                if (micro_batch.loaded.plan.pairs < sample_rows).any():
                    samples += _samples(micro_batch, scores, tokenizer, sample_rows)
            if gives_up():
                return None
    sum_over_ranks(totals.sums)
    gathered = [sample for ranks in gather_objects(samples) for sample in ranks]
    everywhere = [one for rank in gather_objects(scored) for one in rank]
    return Evaluation(
        order=np.concatenate([order for order, _ in everywhere]),
        pairs=ScoredPairs.join([pairs for _, pairs in everywhere]),
        metrics=totals.means("eval/rm"),
        num_pairs=totals.count,
        samples=sorted(gathered, key=lambda sample: int(sample["pair"])),
    )


def _keep(micro_batch: ReadyMicroBatch, scores: np.ndarray) -> tuple[np.ndarray, ScoredPairs]:
    """Return the pairs of a micro-batch with a weight, and their rewards."""
    loaded = micro_batch.loaded
    counts = loaded.plan.weights > 0
    return loaded.plan.pairs[counts], ScoredPairs(
        chosen_rewards=scores[0][counts],
        rejected_rewards=scores[1][counts],
        margins=loaded.margins[counts],
        chosen_tokens=loaded.pairs.lengths.chosen[counts],
        rejected_tokens=loaded.pairs.lengths.rejected[counts],
    )


def _samples(
    micro_batch: ReadyMicroBatch,
    scores: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    sample_rows: int,
) -> list[dict[str, Any]]:
    loaded = micro_batch.loaded
    plan = loaded.plan
    samples = []
    for i, pair in enumerate(plan.pairs):
        if pair >= sample_rows or not plan.weights[i]:
            continue
        prompt_length = loaded.prompt_lengths[i]
        chosen, rejected = loaded.pairs.chosen(i), loaded.pairs.rejected(i)
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
