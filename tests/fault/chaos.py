"""Kills random processes of a job at random moments; it must end as if left alone.

    python tests/fault/chaos.py SEED KILLS [--workers 2] [--zero-stage 2] [--lists] [--lora]

Prints, for each kill, what was killed and how long it was until steps were taken again.
"""

import argparse
import json
import random
import re
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
from outcomes import assert_same_outcome, history, result

from jobs import PATIENCE_S, Job, assert_tidy, command, finish, running, small_job

KINDS = {
    "driver": r"rm_ray\.driver\.attempt",
    "controller": r"ray::TrainController",
    "worker": r"ray::\S*RayTrainWorker",
    "data task": r"ray::\S*(MapBatches|load_steps)",
    "channel": r"ray::Channel",
    "raylet": r"raylet/raylet",
    "gcs": r"gcs_server",
    "other": r"ray::|dashboard|agent|monitor",
}
"""What may be killed, beside the command itself; each is as likely as the others that run."""


LISTS = {
    "train": ["builtin:lists=100", "builtin:ties=53"],
    "eval": ["builtin:scores=30", "builtin:truth=11"],
}
"""Groups of 2 to 6 responses, as many as there are pairs otherwise."""

TRAINS = "first step after"
"""What an attempt prints once it has taken a step."""

NOTICED_S = {"raylet": 180.0, "gcs": 180.0}
"""Within how long it shows whether the death of a kind of process ends the attempt."""


@dataclass
class Chaos:
    """A plan of kills, from a seed, and what came of it."""

    seed: int
    kills: int
    killed: list[str] = field(default_factory=list)
    recovered: list[float] = field(default_factory=list)
    """Seconds until steps were taken again, of the kills that stopped them."""
    trained_before: int = 0
    """Attempts of earlier commands that took a step."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def run(self, settings: dict[str, Any], log: Path) -> None:
        """Run the command until it is finished, however often that takes."""
        while True:
            before = log.read_text().count(TRAINS) if log.exists() else 0
            with running(settings, log) as job:
                self.trained_before = before
                while len(self.killed) < self.kills and job.process.poll() is None:
                    self.strike(job)
                if job.process.poll() is None:
                    job.wait()
                if job.process.returncode == 0:
                    return
                assert job.process.returncode == -9, job.printed[-5000:]

    def strike(self, job: Job) -> None:
        """Wait for a moment in start-up or in training; kill something; see it recover."""
        if self.random.random() < 0.7:
            until(lambda: steps_begun(job) > self.trained_before, job)
            pause = self.random.uniform(0, 5)
        else:
            pause = self.random.uniform(0, 20)
        until(lambda: False, job, pause)
        if job.process.poll() is not None:
            return
        name, process = self.choose(job)
        begun, at, driver = steps_begun(job), time.monotonic(), driver_of(job)
        try:
            process.kill()
        except psutil.NoSuchProcess:
            return  # it ended by itself a moment ago
        self.killed.append(name)
        took = "nothing stopped"
        if name == "command":
            job.process.wait(PATIENCE_S)
            took = "the same command resumes the run"
        elif until(lambda: driver_of(job) != driver, job, NOTICED_S.get(name, 10.0)) and until(
            lambda: steps_begun(job) > begun, job
        ):
            self.recovered.append(time.monotonic() - at)
            took = f"steps again after {self.recovered[-1]:.1f} s"
        print(f"kill {len(self.killed)}: {name}; {took}", flush=True)

    def choose(self, job: Job) -> tuple[str, psutil.Process]:
        """Return a kind of process that runs, and one of that kind."""
        by_kind: dict[str, list[psutil.Process]] = {"command": [psutil.Process(job.process.pid)]}
        for child in job.descendants():
            kind = next((k for k, p in KINDS.items() if re.search(p, command(child))), None)
            if kind is not None:
                by_kind.setdefault(kind, []).append(child)
        kind = self.random.choice(sorted(by_kind))
        return kind, self.random.choice(by_kind[kind])


def steps_begun(job: Job) -> int:
    """How often an attempt has taken its first step."""
    return job.printed.count(TRAINS)


def driver_of(job: Job) -> int | None:
    """The process of the attempt that is under way."""
    return next((child.pid for child in job.find("rm_ray.driver.attempt")), None)


def until(condition: Any, job: Job, seconds: float = PATIENCE_S) -> bool:
    """Wait for a condition or the job's end; tell whether it came true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and job.process.poll() is None:
        if condition():
            return True
        time.sleep(0.05)
    return False


def main() -> None:
    """Run quietly, then with kills; compare; report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seed", type=int)
    parser.add_argument("kills", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--zero-stage", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400, help="a multiple of 10")
    parser.add_argument(
        "--lists", action="store_true", help="lists and ties, whose parameter is learned, not pairs"
    )
    parser.add_argument(
        "--lora", action="store_true", help="adapters and the head, not all weights"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rm_ray-chaos-") as name:
        storage = Path(name)
        settings = {
            which: small_job(storage, which, num_steps=options.steps, num_workers=options.workers)
            for which in ("quiet", "chaos")
        }
        for each in settings.values():
            each["cluster"]["zero_stage"] = options.zero_stage
            each["evaluation"]["every_steps"] = 50
            each["checkpoint"]["every_steps"] = 10
            if options.lists:
                each["data"] |= LISTS
                each["objective"] = {"ties": "davidson", "tie_parameter": "learned"}
            if options.lora:
                each["lora"] = {"rank": 4, "alpha": 8.0}
        quiet = finish(settings["quiet"], storage / "quiet.log")
        chaos = Chaos(options.seed, options.kills)
        started = time.monotonic()
        try:
            chaos.run(settings["chaos"], storage / "chaos.log")
            assert len(chaos.killed) == options.kills, "the run ended before; give it more steps"
            assert chaos.recovered or "command" in chaos.killed, "no kill stopped it; another seed"
            assert_same_outcome(storage / "chaos", storage / "quiet")
            assert_tidy(storage / "chaos")
        except BaseException:
            print((storage / "chaos.log").read_text(errors="replace")[-20_000:])
            raise
        found = result(storage / "chaos")
        report = {
            "seed": options.seed,
            "workers": options.workers,
            "zero_stage": options.zero_stage,
            "lists": options.lists,
            "lora": options.lora,
            "kills": len(chaos.killed),
            "killed": chaos.killed,
            "attempts": len(found["attempts"]),
            "recovery_s_median": statistics.median(chaos.recovered) if chaos.recovered else None,
            "recovery_s_most": max(chaos.recovered, default=None),
            "goodput": found["time"]["goodput"],
            "goodput_left_alone": quiet["time"]["goodput"],
            "redone_s": found["time"]["work lost and redone"],
            "seconds": time.monotonic() - started,
            "records": len(history(storage / "chaos")),
        }
        unit = "group" if options.lists else "pair"
        print(f"bit-identical to the run that was left alone, every {unit} once an epoch")
        print(json.dumps(report))


if __name__ == "__main__":
    main()
