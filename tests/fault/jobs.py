"""A training command under test: its process, its descendants, its folder, what it must end as."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]

INJECT = str(Path(__file__).parent / "inject")
"""What breaks a worker on purpose, where it is on PYTHONPATH."""

PATIENCE_S = 240.0
"""How long anything may take on a busy machine before it is held never to come."""


def small_job(storage: Path, name: str, *, num_steps: int = 40, num_workers: int = 1) -> Any:
    """Settings of short steps over 160 generated pairs, ten steps an epoch."""
    return {
        "run": {"name": name, "storage_path": str(storage), "seed": 1},
        "data": {"train": ["builtin:train=153"], "eval": ["builtin:test=41"], "max_length": 256},
        "batch": {"global_batch_size": 16, "tokens_per_micro_batch": 700},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 4, "epochs": num_steps // 10},
        "cluster": {"num_workers": num_workers},
        "evaluation": {"every_steps": 20, "sample_rows": 2},
        "checkpoint": {"every_steps": 5, "keep": 2},
        "mlflow": {"experiment": "faults"},
    }


@dataclass
class Job:
    """A command and its log, started as a user starts it, with a local Ray of its own."""

    settings: dict[str, Any]
    folder: Path
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def printed(self) -> str:
        """All that the command has printed so far."""
        return self.log.read_text(errors="replace")

    def descendants(self) -> list[psutil.Process]:
        """Every process of the job but the command itself."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def find(self, *names: str) -> list[psutil.Process]:
        """Descendants whose command line holds one of the names."""
        return [child for child in self.descendants() if any(n in command(child) for n in names)]

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """Return what the condition gives once that is true; fail where the job ends before."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if found := condition():
                return found
            assert self.process.poll() is None, f"ended before {what}:\n{self.printed}"
            time.sleep(0.02)
        raise AssertionError(f"{what} did not come:\n{self.printed}")

    def wait_for_steps_of_attempt(self, number: int) -> None:
        """Wait until so many attempts have taken steps."""
        self.wait_for(lambda: self.printed.count("first step after") >= number, "the first steps")

    def wait_for_checkpoint(self, count: int = 1) -> list[Path]:
        """Wait until so many checkpoints have a manifest."""
        return self.wait_for(lambda: self.checkpoints(at_least=count), f"{count} checkpoints")

    def checkpoints(self, *, at_least: int = 0) -> list[Path]:
        """Folders with a manifest, the oldest first; none where they are too few."""
        found = sorted(path.parent for path in self.folder.glob("checkpoint_*/manifest.json"))
        return found if len(found) >= at_least else []

    def wait(self) -> int:
        """Wait until the command ends, a second for each step too; return its exit status."""
        steps = 10 * self.settings["optimizer"]["epochs"]
        return self.process.wait(PATIENCE_S + steps)


def command(process: psutil.Process) -> str:
    """A process's command line; Ray names its workers there."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def running(
    settings: dict[str, Any], log: Path, *, within: Sequence[str] = (), **environment: str
) -> Iterator[Job]:
    """Start ``jobs/train.py``; in the end see that nothing of it is left.

    ``within`` are words before the command, which run it elsewhere.
    """
    recipe = log.with_suffix(".yaml")
    recipe.write_text(json.dumps(settings))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*within, sys.executable, str(ROOT / "jobs/train.py"), "--recipe", str(recipe)],
            stdout=output,
            stderr=output,
            cwd=log.parent,  # anywhere
            env=clean | environment,
        )
    folder = Path(settings["run"]["storage_path"]) / settings["run"]["name"]
    job = Job(settings, folder, log, process)
    try:
        yield job
    finally:
        left = job.descendants()
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        _, alive = psutil.wait_procs(left, timeout=60)
        for child in alive:
            child.kill()
        assert not alive, f"left behind: {[command(child) or child for child in alive]}"


def finish(settings: dict[str, Any], log: Path, **environment: str) -> dict[str, Any]:
    """Run a job to its end; return its ``result.json``."""
    with running(settings, log, **environment) as job:
        assert job.wait() == 0, job.printed
        return result(job.folder)


def result(folder: Path) -> dict[str, Any]:
    """The run's ``result.json``."""
    return json.loads((folder / "result.json").read_text())


def history(folder: Path) -> list[dict[str, Any]]:
    """The run's metrics, a record for each step and evaluation."""
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def assert_same_outcome(folder: Path, expected: Path) -> None:
    """All that was trained, bit for bit, every metric of every step, each pair as often.

    That is the exported weights, and of the last checkpoint the weights, the optimizer's state, the
    state of each rank's random numbers, and how often each pair was trained on.
    """
    weights, theirs = (load_file(f / "export" / "model.safetensors") for f in (folder, expected))
    assert weights.keys() == theirs.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, theirs[name]), name
    assert state_checksums(folder) == state_checksums(expected)
    ours, others = history(folder), history(expected)
    assert [(r["step"], r["kind"]) for r in ours] == [(r["step"], r["kind"]) for r in others]
    for mine, other in zip(ours, others, strict=True):
        for name in mine["metrics"]:
            if not name.startswith("perf/"):
                assert mine["metrics"][name] == other["metrics"][name], (mine["step"], name)
    epochs = result(folder)["steps"] // 10
    trained = result(folder)["times_each_pair_was_trained_on"]
    assert trained == {"least": epochs, "most": epochs}


def state_checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of the last checkpoint that holds no times and paths."""
    last = max(folder.glob("checkpoint_[0-9]*"), key=lambda path: path.name)
    files = json.loads((last / "manifest.json").read_text())["files"]
    found = {
        name: hashlib.sha256((last / name).read_bytes()).hexdigest()
        for name in files
        if name.startswith(("slices-", "rng-")) or name in ("data/trained_pairs.npz", "probes.json")
    }
    assert len(found) == 2 * result(folder)["workers"] + 2, sorted(files)
    return found


def assert_same_losses(folder: Path, expected: Path) -> None:
    """The loss of every step and evaluation, as equal as other numbers of workers leave it."""
    ours, others = history(folder), history(expected)
    assert [(r["step"], r["kind"]) for r in ours] == [(r["step"], r["kind"]) for r in others]
    for mine, other in zip(ours, others, strict=True):
        name = f"{mine['kind']}/rm/loss"
        assert mine["metrics"][name] == pytest.approx(other["metrics"][name], rel=1e-3, abs=1e-4)


def assert_tidy(folder: Path) -> None:
    """No more checkpoints than are to be kept, and one."""
    keep = json.loads((folder / "run.json").read_text())["config"]["checkpoint"]["keep"]
    assert len(list(folder.glob("checkpoint_*"))) <= keep + 1
