"""A training command under test: its process, its descendants, its folder."""

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
from outcomes import result

ROOT = Path(__file__).resolve().parents[2]

INJECT = str(Path(__file__).parent / "inject")
"""What breaks a worker on purpose, where it is on PYTHONPATH."""

PATIENCE_S = 240.0
"""How long anything may take on a busy machine before it is held never to come."""


def small_job(storage: Path, name: str, *, num_steps: int = 40, num_workers: int = 1) -> Any:
    """Settings of short steps over 160 generated pairs, ten steps an epoch."""
    return {
        "run": {"name": name, "storage_path": str(storage), "seed": 1, "keep_pair_losses": True},
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


def assert_tidy(folder: Path) -> None:
    """No more checkpoints than are to be kept, and one."""
    keep = json.loads((folder / "run.json").read_text())["config"]["checkpoint"]["keep"]
    assert len(list(folder.glob("checkpoint_*"))) <= keep + 1
