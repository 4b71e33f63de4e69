"""Trainings through Ray on this machine, at once where it has the cores, and what came of them."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from outcomes import result

from gpu.bench import Bench
from gpu.finding import Values, describe_error
from jobs import Job, running
from rm_ray.publish.export_gate import run_export_gate
from rm_ray.runs.layout import EXPORT, REFERENCE_REWARDS

CORES_A_JOB = 3
"""Cores that Ray, its data and a worker keep busy while a run starts."""

LEAST_S = 10.0
"""With less than this left of the part's time no run is begun."""


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
    values: Values
    """Its row."""
    problem: str = ""


def settings_of(
    bench: Bench,
    name: str,
    *,
    zero_stage: int,
    steps: int,
    epochs: int = 1,
    **sections: dict[str, Any],
) -> dict[str, Any]:
    """Return the debug recipe in bfloat16, for so many steps of an epoch or of several.

    Runs at once have storage of their own each, or two would create one MLflow file.
    """
    settings: dict[str, dict[str, Any]] = {
        "run": {"name": name, "storage_path": str(bench.folder / "runs" / name), "seed": 1},
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


def train_all(bench: Bench, asked: list[Asked]) -> Iterator[Outcome]:
    """Train all of them, as many at once as the cores allow; yield each as soon as it is over."""
    at_once = max(1, (os.cpu_count() or 1) // CORES_A_JOB)
    with ThreadPoolExecutor(at_once) as pool:
        for done in as_completed([pool.submit(train, bench, each) for each in asked]):
            yield done.result()


def train(bench: Bench, asked: Asked) -> Outcome:
    """Train one; whatever goes wrong with it is its row, and others go on."""
    started = time.monotonic()
    log = bench.folder / f"{asked.name}.log"
    try:
        if bench.left < LEAST_S:
            raise TimeoutError("no time was left")
        recovered = run_to_end(bench, asked, log)
        values = {"s from kill to steps": recovered or "not killed", **describe_run(asked)}
    except Exception as error:
        printed = log.read_text(errors="replace")[-5000:] if log.exists() else ""
        print(f"{asked.name}: {error}\n{printed}", flush=True)
        problem = describe_error(error)
        values = {"failed": problem, "s": time.monotonic() - started}
        return Outcome(asked=asked, values=values, problem=problem)
    return Outcome(asked=asked, values={"s": time.monotonic() - started, **values})


def run_to_end(bench: Bench, asked: Asked, log: Path) -> float:
    """Train, and kill the worker once there is a checkpoint, where that is asked for.

    Returns the seconds from the kill until steps were taken again, 0 without one.

    Raises:
        AssertionError: the run failed.
        TimeoutError: the part's time was over before it ended.
    """
    recovered = 0.0
    with running(asked.settings, log, RAY_AUTH_MODE="disabled") as job:
        try:
            if asked.killed:
                wait_for(bench, job, lambda: job.checkpoints(at_least=1), "a checkpoint")
                [worker] = wait_for(bench, job, lambda: job.find("RayTrainWorker"), "a worker")
                worker.kill()
                killed = time.monotonic()
                again = functools.partial(has_begun_again, job)
                wait_for(bench, job, again, "the first step after the kill")
                recovered = time.monotonic() - killed
            wait_for(bench, job, lambda: job.process.poll() is not None, "the run's end")
            assert job.process.returncode == 0, f"ended with {job.process.returncode}"
        except Exception:
            end_at_once(job)
            raise
    return recovered


def describe_run(asked: Asked) -> Values:
    """Return what a run that came to its end left behind.

    Raises:
        AssertionError: plain transformers' rewards on its export are not those of training.
    """
    gate = run_export_gate(
        asked.folder / EXPORT,
        json.loads((asked.folder / REFERENCE_REWARDS).read_text()),
        asked.settings["model"]["dtype"],
    )
    assert not gate.problem, gate.problem
    found = result(asked.folder)
    return {
        "steps": found["steps"],
        "loss": found["metrics"]["train/rm/loss"],
        "held-out accuracy": found["metrics"]["eval/rm/accuracy"],
        "pairs/s": found["pairs_per_second"],
        "export off by": max(gate.differences.values()),
    }


def has_begun_again(job: Job) -> bool:
    """Tell whether a second attempt has taken a step."""
    return job.printed.count("first step after") >= 2


def wait_for(bench: Bench, job: Job, condition: Callable[[], Any], what: str) -> Any:
    """Return what a condition gives once that is true, in the time that the part has.

    Raises:
        AssertionError: the job ended before.
        TimeoutError: the time did.
    """
    while bench.left > 0:
        over = job.process.poll() is not None
        if found := condition():
            return found
        assert not over, f"ended before {what}"
        time.sleep(0.05)
    raise TimeoutError(f"{what} did not come in the part's time")


def end_at_once(job: Job) -> None:
    """Kill a job with all of its processes: Ray's own end takes longer than the part has."""
    processes = job.descendants()
    job.process.kill()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
