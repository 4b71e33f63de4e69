"""A sweep of two learning rates and two seeds, and folders as its trials leave them."""

from pathlib import Path
from typing import Any

from rm_ray.config.recipe import parse_config
from rm_ray.config.sweep import SweepConfig, parse_sweep
from rm_ray.config.train_config import TrainConfig
from rm_ray.storage import Storage
from rm_ray.sweep.trials import Trial, make_trials

METRIC = "eval/rm/loss"
RATES = (1e-3, 1e-4)


def make_config(storage: Path, **sections: dict[str, Any]) -> TrainConfig:
    """The recipe that the sweep varies."""
    settings: dict[str, dict[str, Any]] = {
        "run": {"name": "lr", "storage_path": str(storage), "seed": 5},
        "data": {"train": ["builtin:train"], "eval": ["builtin:test"]},
        "evaluation": {"every_steps": 5},
    }
    return parse_config(settings | sections)


def make_sweep(**given: Any) -> SweepConfig:
    """The sweep's settings."""
    settings = {"optimizer.learning_rate": {"grid": list(RATES)}}
    return parse_sweep({"settings": settings, "seeds": 2, **given}, "sweep.yaml")


def trials_in(storage: Path) -> tuple[Storage, list[Trial]]:
    """The sweep's folder and its four trials."""
    trials = make_trials(make_config(storage), make_sweep(), "sweep.yaml")
    return Storage.open(str(storage / "lr")), trials


def leave(folder: Storage, trial: Trial, *losses: float, finished: bool = True) -> None:
    """Leave a trial's folder as a run does that had these losses every 5 steps of 20."""
    run = folder.folder(trial.name)
    run.write_json("run.json", {"key": f"key of {trial.name}", "steps": 20})
    for step, loss in enumerate(losses, start=1):
        found = {"step": 5 * step, "metrics": {METRIC: loss}}
        run.write_json(f"evaluations/step-{5 * step:08d}.json", found)
    if finished:
        run.write_json("result.json", {"steps": 20})
