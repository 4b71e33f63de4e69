"""Comparison groups in plain Python, their labels, and objectives as explicit loops."""

import math
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor

from rm_ray.batches.labels import Labels
from rm_ray.objectives.losses import Losses, Objective

NAN = math.nan


@dataclass(frozen=True, kw_only=True)
class Comparison:
    better: int
    worse: int
    weight: float = 1.0
    margin: float = 0.0
    probability: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Group:
    rewards: tuple[float, ...]
    comparisons: tuple[Comparison, ...] = ()
    scores: tuple[float, ...] = ()
    weight: float = 1.0
    normalised: tuple[Comparison, ...] = field(init=False)

    def __post_init__(self) -> None:
        total = sum(c.weight for c in self.comparisons)
        shared = tuple(
            Comparison(**{**vars(c), "weight": c.weight / total}) for c in self.comparisons
        )
        object.__setattr__(self, "normalised", shared)
        object.__setattr__(self, "scores", self.scores or (NAN,) * len(self.rewards))


def ranking(*rewards: float) -> Group:
    """A group of responses, the best first, all of them compared."""
    pairs = [(i, j) for i in range(len(rewards)) for j in range(i + 1, len(rewards))]
    comparisons = tuple(Comparison(better=i, worse=j) for i, j in pairs)
    return Group(rewards=rewards, comparisons=comparisons)


def rewards_of(*groups: Group, dtype: torch.dtype = torch.float64) -> Tensor:
    values = [reward for group in groups for reward in group.rewards]
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def labels_of(*groups: Group) -> Labels:
    starts = [sum(len(g.rewards) for g in groups[:i]) for i in range(len(groups))]
    rows = [
        (start + c.better, start + c.worse, i, c.weight, c.margin, c.probability)
        for i, (start, group) in enumerate(zip(starts, groups, strict=True))
        for c in group.normalised
    ]
    better, worse, group, *numbers = zip(*rows, strict=True) if rows else [()] * 6
    weight, margin, probability = (torch.tensor(n, dtype=torch.float32) for n in numbers)
    scores = [score for g in groups for score in g.scores]
    response_group = [i for i, g in enumerate(groups) for _ in g.rewards]
    return Labels(
        better=torch.tensor(better, dtype=torch.int64),
        worse=torch.tensor(worse, dtype=torch.int64),
        group=torch.tensor(group, dtype=torch.int64),
        weight=weight,
        margin=margin,
        probability=probability,
        scores=torch.tensor(scores, dtype=torch.float32),
        response_group=torch.tensor(response_group, dtype=torch.int64),
        group_weights=torch.tensor([g.weight for g in groups], dtype=torch.float32),
    )


def losses_of(objective: Objective, *groups: Group) -> Losses:
    return objective(rewards_of(*groups), labels_of(*groups))


def loss_of(objective: Objective, *groups: Group) -> list[float]:
    return losses_of(objective, *groups).groups.tolist()


def one(objective: Objective, group: Group) -> float:
    (loss,) = loss_of(objective, group)
    return loss


def gradients_of(objective: Objective, *groups: Group) -> Tensor:
    rewards = rewards_of(*groups)
    objective(rewards, labels_of(*groups)).groups.sum().backward()
    assert rewards.grad is not None
    return rewards.grad


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


rewards = st.floats(-20, 20, width=32)


@st.composite
def groups(
    draw: st.DrawFn, *, probabilities: tuple[float, ...] = (0.5, 0.75, 1.0), most: int = 5
) -> Group:
    """Groups of 1 to ``most`` responses, any pairs of which are compared once."""
    values = tuple(draw(st.lists(rewards, min_size=1, max_size=most)))
    pairs = [(i, j) for i in range(len(values)) for j in range(i)]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    comparisons = []
    for i, j in chosen:
        better, worse = (i, j) if draw(st.booleans()) else (j, i)
        comparison = Comparison(
            better=better,
            worse=worse,
            weight=draw(st.sampled_from((1.0, 2.0, 3.0))),
            margin=draw(st.sampled_from((0.0, 0.5, 2.0))),
            probability=draw(st.sampled_from(probabilities)),
        )
        comparisons.append(comparison)
    scores = tuple(draw(st.sampled_from((NAN, -1.0, 0.5, 4.0))) for _ in values)
    return Group(rewards=values, comparisons=tuple(comparisons), scores=scores)
