"""Held-out groups -> metrics and samples; each group counts once, for any world size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rm_ray.batches.collate import ReadyMicroBatch
from rm_ray.data.cache.group_columns import GroupColumns
from rm_ray.data.rows.groups import TIE
from rm_ray.evaluation.lists import list_metrics
from rm_ray.evaluation.scored_groups import ScoredGroups
from rm_ray.objectives.losses import Objective
from rm_ray.train.collectives import gather_objects, sum_over_ranks
from rm_ray.train.engine import Engine
from rm_ray.train.metrics import GroupMetrics


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Means over all held-out groups, and samples with texts and rewards."""

    metrics: dict[str, float]
    num_groups: int
    samples: list[dict[str, Any]]
    order: np.ndarray
    """``[G]``: the held-out group of each of ``groups``."""
    groups: ScoredGroups


def evaluate_held_out(
    engine: Engine,
    objective: Objective,
    steps: Iterable[Sequence[ReadyMicroBatch]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    sample_rows: int,
    prefix: str = "eval/rm",
    on_micro_batch: Callable[[], None] = lambda: None,
    gives_up: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Score every held-out group, and return the first ``sample_rows`` as samples.

    The metrics' names begin with ``prefix``. Returns None if ``gives_up`` returns true after a
    step, as it must on every rank alike.
    """
    totals = GroupMetrics.zero(engine.device, objective.parts)
    samples: list[dict[str, Any]] = []
    scored: list[tuple[np.ndarray, ScoredGroups]] = []
    with engine.evaluating():
        for micro_batches in steps:
            by_micro_batch = []
            for micro_batch in micro_batches:
                labels = micro_batch.groups.labels
                outputs = engine.outputs(micro_batch.groups)
                losses = objective(outputs, labels)
                rewards = outputs[: len(labels.response_group)]
                totals.add(rewards, losses, labels, tokens=micro_batch.tokens)
                by_micro_batch.append(rewards)
                on_micro_batch()
            read = torch.cat(by_micro_batch).cpu()  # synchronizes once per step
            sizes = [len(rewards) for rewards in by_micro_batch]
            for micro_batch, one in zip(micro_batches, torch.split(read, sizes), strict=True):
                scores = one.numpy()
                scored.append(_keep(micro_batch, scores))
                if (micro_batch.loaded.plan.groups < sample_rows).any():
                    samples += _samples(micro_batch, scores, tokenizer, sample_rows)
            if gives_up():
                return None
    sum_over_ranks(totals.sums)
    gathered = [sample for ranks in gather_objects(samples) for sample in ranks]
    everywhere = [one for rank in gather_objects(scored) for one in rank]
    groups = ScoredGroups.join([groups for _, groups in everywhere])
    return Evaluation(
        order=np.concatenate([order for order, _ in everywhere]),
        groups=groups,
        metrics=totals.means(prefix) | list_metrics(groups, prefix),
        num_groups=totals.count,
        samples=sorted(gathered, key=lambda sample: int(sample["pair"])),
    )


def _keep(micro_batch: ReadyMicroBatch, rewards: np.ndarray) -> tuple[np.ndarray, ScoredGroups]:
    """Return the groups of a micro-batch with a weight, and their rewards."""
    loaded = micro_batch.loaded
    columns = loaded.columns
    better, worse = columns.responses_compared()
    scored = ScoredGroups(
        num_groups=len(columns),
        rewards=rewards,
        tokens=columns.length,
        response_group=columns.response_group,
        scores=columns.score,
        better=better,
        worse=worse,
        group=columns.comparison_group,
        weights=columns.weight,
        margins=columns.margin,
        probabilities=columns.probability,
    )
    counts = loaded.plan.weights > 0
    return loaded.plan.groups[counts], scored[counts]


def _samples(
    micro_batch: ReadyMicroBatch,
    rewards: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    sample_rows: int,
) -> list[dict[str, Any]]:
    loaded = micro_batch.loaded
    plan, columns, groups = loaded.plan, loaded.columns, loaded.groups
    by_group = np.split(rewards, columns.lengths.starts[1:])
    samples = []
    for i, group in enumerate(plan.groups):
        if group >= sample_rows or not plan.weights[i]:
            continue
        prompt_length = columns.prompt_length[i]
        conversations = groups.conversations(i)
        responses = [tokenizer.decode(ids[prompt_length:]) for ids in conversations]
        about = {
            "pair": int(group),
            "prompt": tokenizer.decode(conversations[0][:prompt_length]),
        }
        one = columns[np.array([i])]
        samples.append({**about, **_sides(responses, by_group[i].tolist(), one)})
    return samples


def _sides(responses: list[str], rewards: list[float], group: GroupColumns) -> dict[str, Any]:
    """Return a sample's responses with their rewards: the two sides of a pair, or a list.

    A tie is no win, and neither right nor wrong.
    """
    is_decided = group.probability != TIE
    if len(responses) == 2 and len(group.better) == 1 and is_decided.all():
        better, worse = int(group.better[0]), int(group.worse[0])
        return {
            "chosen": responses[better],
            "rejected": responses[worse],
            "chosen_reward": rewards[better],
            "rejected_reward": rewards[worse],
            "correct": rewards[better] > rewards[worse],
        }
    decided = [
        (int(better), int(worse))
        for better, worse, sure in zip(group.better, group.worse, is_decided, strict=True)
        if sure
    ]
    right = [rewards[better] > rewards[worse] for better, worse in decided]
    return {
        "responses": responses,
        "rewards": rewards,
        "wins": [sum(better == i for better, _ in decided) for i in range(len(responses))],
        "correct": all(right) if right else None,
    }
