"""Mean and standard deviation of a model's rewards on held-out responses, beside its config.json.

A Bradley-Terry reward is defined up to a constant, and its scale depends on how sure the model is.
Standardized rewards, (reward - mean) / standard deviation, have neither.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rm_ray.config.scoring import RewardScale
from rm_ray.errors import InputError
from rm_ray.pretrained import PretrainedName, find_file, forget_missing
from rm_ray.runs.layout import EVALUATIONS
from rm_ray.storage import Storage

STATISTICS = "reward_statistics.json"
"""Name of the file: in an export, and in the folder of an evaluation by ``jobs/evaluate.py``."""


@dataclass(frozen=True, kw_only=True)
class RewardStatistics:
    """The mean and the standard deviation of rewards over N responses."""

    mean: float
    std: float
    """Of the N responses as a whole, above 0."""
    num_responses: int

    @classmethod
    def of(cls, rewards: np.ndarray) -> RewardStatistics | None:
        """Describe rewards, ``[N]``; None if they are all the same, or not finite."""
        exact = rewards.astype(np.float64)
        if not np.isfinite(exact).all() or len(np.unique(exact)) < 2 or not exact.std() > 0:
            return None
        return cls(mean=float(exact.mean()), std=float(exact.std()), num_responses=len(exact))

    def standardize(self, rewards: np.ndarray) -> np.ndarray:
        """Return (reward - mean) / standard deviation, float64 of any shape."""
        standardized: np.ndarray = (rewards.astype(np.float64) - self.mean) / self.std
        return standardized

    def restore(self, standardized: np.ndarray) -> np.ndarray:
        """Return the raw rewards of standardized ones, float64 of any shape."""
        return standardized.astype(np.float64) * self.std + self.mean

    def to_json(self) -> dict[str, float]:
        """Return what ``STATISTICS`` holds."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Any, where: str) -> RewardStatistics:
        """Parse what ``STATISTICS`` holds; ``where`` names it in errors.

        Raises:
            InputError: a number is missing or cannot be one of rewards.
        """
        values: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
        names = ("mean", "std", "num_responses")
        mean, std, count = (values.get(name, math.nan) for name in names)
        if not (_is_finite(mean) and _is_finite(std) and std > 0 and type(count) is int):
            raise InputError(
                f"{where} must be an object with the finite numbers 'mean' and 'std', which is "
                f"above 0, and the count 'num_responses'; got {str(found)[:200]}. "
                "jobs/evaluate.py writes such a file"
            )
        return cls(mean=float(mean), std=float(std), num_responses=count)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def describe_rewards(rewards: np.ndarray) -> dict[str, float] | None:
    """Return the statistics of rewards, ``[N]``, for a report; None if there are none."""
    found = RewardStatistics.of(rewards)
    return None if found is None else found.to_json()


def keep_statistics(run_folder: Storage, step: int, export: Storage) -> None:
    """Write the statistics of a run's step beside its exported model, if it was evaluated then.

    They are those of ``data.eval``, from the step's report.
    """
    if (found := _read_statistics(run_folder, step)) is not None:
        export.write_json(STATISTICS, found)


def has_statistics(run_folder: Storage, step: int) -> bool:
    """Return whether a run has the statistics of a step."""
    return _read_statistics(run_folder, step) is not None


def _read_statistics(run_folder: Storage, step: int) -> Any:
    report = run_folder.read_json(f"{EVALUATIONS}/step-{step:08d}.json") or {}
    return report.get("rewards")  # reports of earlier versions have none


def find_statistics(
    name: PretrainedName, rewards: RewardScale, *, shown: str = ""
) -> RewardStatistics | None:
    """Return the statistics by which a model's rewards are standardized; None if they stay raw.

    The model is in a folder or on the Hub; ``shown`` is its name in errors, by default as it is.

    Raises:
        InputError: it has none, or they are broken.
    """
    if rewards == "raw":
        return None
    path = find_file(name, STATISTICS)
    if path is not None:
        return _parse(path)
    forget_missing()  # the Hub may have been away: ask it again next time
    model = shown or name.name
    raise InputError(
        f"--rewards standardized needs the mean and the standard deviation of the model's rewards, "
        f"and {name.option} '{model}' has no {STATISTICS}. A run writes it beside the model of a "
        "step after which it evaluated on data.eval. For any other model, run python "
        f"jobs/evaluate.py --model {model} --data HELD_OUT_PAIRS with raw rewards, and copy the "
        f"{STATISTICS} of its output into the model's folder; download a model on the Hub for that"
    )


def _parse(path: Path) -> RewardStatistics:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error})") from None
    return RewardStatistics.from_json(found, str(path))
