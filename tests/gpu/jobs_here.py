"""Trainings through Ray on this machine, at once where it has the cores, and what came of them."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.bench import Bench
from gpu.finding import Values
from jobs import Job, result, running
from rm_ray.publish.gate import ClientsError, check_export
from rm_ray.train.files import EXPORT, PROBES

CORES_A_JOB = 3
"""Cores that Ray, its data and a worker keep busy while a run starts."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One run, and whether its worker is killed."""

    name: str
    settings: dict[str, Any]
    killed: bool

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.settings["run"]["storage_path"]) / self.name


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a run; ``problem`` where it did not come to its end."""

    asked: Asked
    seconds: float
    recovered: float = 0.0
    """Seconds from the kill until steps were taken again."""
    off_by: float = 0.0
    """How far plain transformers' rewards on the export are from those of training."""
    problem: str = ""

    @property
    def values(self) -> Values:
        """Return the row of a run."""
        if self.problem:
            return {"failed": self.problem, "s": self.seconds}
        found = result(self.asked.folder)
        metrics = found["metrics"]
        return {
            "s": self.seconds,
            "s from kill to steps": self.recovered or "not killed",
            "steps": found["steps"],
            "loss": metrics["train/rm/loss"],
            "held-out accuracy": metrics["eval/rm/accuracy"],
            "pairs/s": found["pairs_per_second"],
            "export off by": self.off_by,
        }


def settings_of(
    bench: Bench,
    name: str,
    *,
    zero_stage: int,
    steps: int,
    epochs: int = 1,
    **sections: dict[str, Any],
) -> dict[str, Any]:
    """Return the debug recipe in bfloat16, for so many steps of an epoch or of several."""
    settings: dict[str, dict[str, Any]] = {
        "run": {"name": name, "storage_path": str(bench.folder / "runs"), "seed": 1},
        "data": {"train": [f"builtin:train={steps // epochs * 64}"], "eval": ["builtin:test=100"],
                 "max_length": 256},
        "model": {"dtype": "bfloat16"},
        "batch": {"global_batch_size": 64, "tokens_per_micro_batch": 2048},
        "optimizer": {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 10,
                      "epochs": epochs},
        "cluster": {"num_workers": 1, "zero_stage": zero_stage, "use_gpu": not bench.is_dry},
        "checkpoint": {"every_steps": max(2, steps // 8)},
    }  # fmt: skip
    for section, fields in sections.items():
        settings[section] = {**settings.get(section, {}), **fields}
    return settings


def train_all(bench: Bench, asked: list[Asked]) -> list[Outcome]:
    """Train all of them, as many at once as the cores allow."""
    at_once = max(1, (os.cpu_count() or 1) // CORES_A_JOB)
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda each: train(bench, each), asked))


def has_begun_again(job: Job) -> bool:
    """Tell whether a second attempt has taken a step."""
    return job.printed.count("first step after") >= 2


def wait_for(bench: Bench, job: Job, condition: Callable[[], Any], what: str) -> Any:
    """Return what a condition gives once that is true, in the time that the part has.

    Raises:
        AssertionError: the job ended before, or the time did.
    """
    while bench.left > 0:
        if found := condition():
            return found
        assert job.process.poll() is None, f"ended before {what}"
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come in the part's time")


def train(bench: Bench, asked: Asked) -> Outcome:
    """Train one, and kill its worker once there is a checkpoint, where that is asked for."""
    started, recovered = time.monotonic(), 0.0
    log = bench.folder / f"{asked.name}.log"
    try:
        with running(asked.settings, log, RAY_AUTH_MODE="disabled") as job:
            if asked.killed:
                wait_for(bench, job, lambda: job.checkpoints(at_least=1), "a checkpoint")
                [worker] = wait_for(bench, job, lambda: job.find("RayTrainWorker"), "a worker")
                worker.kill()
                killed = time.monotonic()
                again = functools.partial(has_begun_again, job)
                wait_for(bench, job, again, "the first step after the kill")
                recovered = time.monotonic() - killed
            code = job.process.wait(max(1.0, bench.left))
            assert code == 0, f"ended with {code}"
        gate = check_export(
            asked.folder / EXPORT,
            json.loads((asked.folder / PROBES).read_text()),
            asked.settings["model"]["dtype"],
        )
        assert not gate.problem, gate.problem
    except (AssertionError, subprocess.TimeoutExpired, ClientsError) as error:
        print(f"{asked.name}: {error}\n{log.read_text(errors='replace')[-5000:]}", flush=True)
        problem = str(error).splitlines()[0][:200]
        return Outcome(asked=asked, seconds=time.monotonic() - started, problem=problem)
    return Outcome(
        asked=asked,
        seconds=time.monotonic() - started,
        recovered=recovered,
        off_by=max(gate.differences.values()),
    )
