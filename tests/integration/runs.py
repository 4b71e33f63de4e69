"""The small run that the integration tests share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUM_STEPS = 20

SECRETS = {
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz",
    "MLFLOW_TRACKING_TOKEN": "correct-horse-battery-staple",
}
"""What the environment of all runs has, and nothing may write down."""


@dataclass(frozen=True)
class FinishedRun:
    """A run's settings, its folder and its ``result.json``."""

    settings: dict[str, Any]
    folder: Path
    result: dict[str, Any]


def small_run(storage: Path, name: str) -> dict[str, Any]:
    """Settings of 20 steps over 153 generated pairs with 41 held out, on two workers."""
    return {
        "run": {"name": name, "storage_path": str(storage), "seed": 1},
        "data": {"train": ["builtin:train=153"], "eval": ["builtin:test=41"], "max_length": 256},
        "batch": {"global_batch_size": 16, "tokens_per_micro_batch": 700},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 4, "epochs": 2},
        "model": {"gradient_checkpointing": "auto"},
        "cluster": {"num_workers": 2, "zero_stage": "auto"},
        "evaluation": {"every_steps": 10, "sample_rows": 5},
        "checkpoint": {"every_steps": 5, "keep": 2, "keep_best_by": "eval/rm/loss"},
        "mlflow": {"experiment": "tests"},
    }
