"""The small run that the integration tests share, and what is held of every such run."""

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import mlflow

from rm_ray.data.sources.mixture import select
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.data.sources.synthetic import generate_pairs

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


def small_run(storage: Path, name: str, *, zero_stage: int | str = "auto") -> dict[str, Any]:
    """Settings of 20 steps over 153 generated pairs with 41 held out, on two workers.

    It is evaluated on a named set as well, with subsets of RewardBench.
    """
    storage.mkdir(parents=True, exist_ok=True)
    bench = storage / "bench.jsonl"
    bench.write_text("".join(json.dumps(row) + "\n" for row in bench_rows()))
    return {
        "run": {"name": name, "storage_path": str(storage), "seed": 1, "keep_pair_losses": True},
        "data": {"train": ["builtin:train=153"], "eval": ["builtin:test=41"], "max_length": 256},
        "batch": {"global_batch_size": 16, "tokens_per_micro_batch": 700},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 4, "epochs": 2},
        "model": {"gradient_checkpointing": "auto"},
        "cluster": {"num_workers": 2, "zero_stage": zero_stage},
        "evaluation": {
            "every_steps": 10,
            "sample_rows": 5,
            "sets": {"bench": str(bench)},
        },
        "checkpoint": {"every_steps": 5, "keep": 2, "keep_best_by": "eval/rm/loss"},
        "mlflow": {"experiment": "tests"},
    }


SUBSETS = ("alpacaeval-easy", "alpacaeval-hard", "hep-cpp")


def bench_rows() -> list[dict[str, Any]]:
    """Twelve pairs of three subsets of RewardBench."""
    pairs = islice(generate_pairs("test"), 12)
    return [{**pair, "subset": SUBSETS[i % 3], "id": i} for i, pair in enumerate(pairs)]


TRAIN_METRICS = {
    "episode", "epoch", "train/rm/accuracy", "train/rm/loss", "train/rm/chosen_rewards",
    "train/rm/rejected_rewards", "train/rm/reward_margin", "train/rm/lr", "train/rm/grad_norm",
}  # fmt: skip
EVAL_METRICS = {
    f"eval/{held_out}/{name}"
    for held_out in ("rm", "bench")
    for name in (
        "accuracy", "loss", "chosen_rewards", "rejected_rewards", "reward_margin", "ties",
    )
}  # fmt: skip

BENCH_METRICS = {
    f"eval/bench/{name}"
    for name in (
        "score", "score_on/chat", "score_on/reasoning",
        *(f"accuracy_on/{row['source'].rpartition('/')[2]}" for row in bench_rows()),
    )
}  # fmt: skip


def held_out_pairs() -> list[dict[str, Any]]:
    """The pairs that the small run holds out, in its order."""
    rows = set(select([SourceSpec.parse("builtin:test=41")], seed=1)[0].rows.tolist())
    return [pair for i, pair in enumerate(generate_pairs("test")) if i in rows]


def check_mlflow(result: dict[str, Any]) -> None:
    """See that MLflow has every metric of every step once, and the files of a finished run."""
    client = mlflow.MlflowClient(result["mlflow_tracking_uri"])
    run_id = result["mlflow_run_id"]
    for name in TRAIN_METRICS:
        steps = [point.step for point in client.get_metric_history(run_id, name)]
        assert sorted(steps) == list(range(1, NUM_STEPS + 1)), name
    for name in EVAL_METRICS | BENCH_METRICS:
        steps = [point.step for point in client.get_metric_history(run_id, name)]
        assert sorted(steps) == [5, 10, 15, 20], name
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.learning_rate"] == "0.001"
    assert run.data.params["run.seed"] == "1"
    artifacts = {item.path for item in client.list_artifacts(run_id)}
    assert {"config.yaml", "plots", "eval_samples"} <= artifacts
    for folder in ("eval_samples", "eval_samples/bench"):
        samples = {i.path for i in client.list_artifacts(run_id, folder) if not i.is_dir}
        assert samples == {f"{folder}/step-{step:06d}.json" for step in (5, 10, 15, 20)}
    plots = {item.path for item in client.list_artifacts(run_id, "plots")}
    assert plots == {"plots/training_over_episodes.png", "plots/training_over_hours.png"}


def first_checkpoint(folder: Path) -> Path | None:
    """A finished checkpoint of a run, if it has one."""
    return next((path.parent for path in folder.glob("checkpoint_*/manifest.json")), None)
