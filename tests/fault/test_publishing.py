"""A run is published while the mirror, the job and the Hub are killed and the Hub fails."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hub_server import ask_for
from outcomes import assert_same_outcome
from servers import HubServer

from jobs import ROOT, Job, running, small_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

REPO = "someone/rewards"

STEPS, EVERY = 1500, 150
"""Ten checkpoints."""

LONG_S = 1_800.0

FAULTS: list[dict[str, Any]] = [
    {"match": "/commit/", "kind": "lost"},
    {"match": "/commit/", "kind": "status", "status": 503},
    {"match": "/tag/", "kind": "lost"},
    {"match": "/tag/", "kind": "status", "status": 500},
    {"match": "/branch/", "kind": "refuse"},
    {"match": "PUT /lfs", "kind": "corrupt"},
    {"match": "PUT /lfs", "kind": "status", "status": 403},
    {"match": "PUT /lfs", "kind": "lost"},
    {"match": "/preupload/", "kind": "status", "status": 429},
    {"match": "objects/batch", "kind": "slow", "seconds": 5},
    {"match": "/tree/", "kind": "slow", "seconds": 5},
]
KILLS = ["mirror", "mirror", "mirror", "hub", "hub", "hub", "command", "worker", "driver"]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub").running() as server:
        yield server


def job_with(folder: Path, name: str, *, num_steps: int, every_steps: int) -> dict[str, Any]:
    settings = small_job(folder, name, num_steps=num_steps)
    settings["checkpoint"] = {"every_steps": every_steps, "keep": 2, "keep_best_by": "eval/rm/loss"}
    settings["evaluation"]["every_steps"] = 0  # beside those at checkpoints
    settings["hub"] = {"repo_id": REPO, "every": "checkpoint", "patience_s": LONG_S}
    return settings


def repository(hub: HubServer) -> dict[str, Any]:
    """The Hub's own record of the repository."""
    return json.loads((hub.folder / "someone--rewards.json").read_text())


def assert_whole(hub: HubServer, files: dict[str, Any]) -> None:
    """Every file is stored with the contents that its checksum says."""
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= files.keys()
    for entry in files.values():
        if "lfs" in entry:
            blob = (hub.folder / "blobs" / entry["lfs"]["oid"]).read_bytes()
            assert hashlib.sha256(blob).hexdigest() == entry["lfs"]["oid"]


@dataclass
class Injections:
    """What is broken, in an order from a seed, one at a time while the job runs."""

    random: random.Random
    left: list[Any] = field(default_factory=lambda: [*FAULTS, *KILLS])
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random.shuffle(self.left)

    def inject(self, job: Job, hub: HubServer) -> None:
        """Break the next thing."""
        what = self.left.pop()
        if isinstance(what, dict):
            ask_for(hub.address, what)
            self.done.append(f"{what['kind']} at {what['match']}")
        elif what == "hub":
            hub.kill()
            time.sleep(self.random.uniform(0, 5))
            hub.start()
            self.done.append(what)
        elif what == "command":
            job.process.kill()
            self.done.append(what)
        else:
            name = {
                "mirror": "HubMirror",
                "worker": "RayTrainWorker",
                "driver": "rm_ray.driver.attempt",
            }
            found = job.find(name[what])
            if not found:  # between two attempts
                self.left.insert(0, what)
                return
            found[0].kill()
            self.done.append(what)


@pytest.mark.parametrize("seed", [1])
def test_whatever_is_broken_each_checkpoint_is_published_once(
    hub: HubServer, tmp_path: Path, seed: int
) -> None:
    settings = {
        name: job_with(tmp_path, name, num_steps=STEPS, every_steps=EVERY)
        for name in ("quiet", "broken")
    }
    del settings["quiet"]["hub"]
    with running(settings["quiet"], tmp_path / "quiet.log") as alone:
        assert alone.process.wait(LONG_S) == 0, alone.printed
    chosen = Injections(random.Random(seed))
    log = tmp_path / "broken.log"
    while True:
        with running(settings["broken"], log, **hub.environment) as job:
            began = job.printed.count("first step after")
            while chosen.left and job.process.poll() is None:
                time.sleep(chosen.random.uniform(0.5, 6))
                if job.printed.count("first step after") > began and job.process.poll() is None:
                    chosen.inject(job, hub)
                    if chosen.done[-1:] == ["command"]:
                        break
            if job.process.poll() is None and chosen.done[-1:] != ["command"]:
                job.process.wait(LONG_S)
            if job.process.poll() == 0:
                break
            chosen.done.append("again")
    injected = [what for what in chosen.done if what != "again"]
    print(f"{len(injected)} injections: {injected}; left: {chosen.left}")
    assert len(injected) >= 20
    assert_same_outcome(job.folder, alone.folder)
    found = repository(hub)
    expected = {f"step-{step:08d}" for step in range(EVERY, STEPS + 1, EVERY)}
    assert set(found["tags"]) == expected
    for commit in found["tags"].values():
        assert_whole(hub, found["commits"][commit]["files"])
    assert "main" in job.printed.split("published  ")[-1]
    history, commit = [], found["branches"]["main"]
    while commit is not None:
        history.append(found["commits"][commit])
        commit = history[-1]["parent"]
    assert [bool(each["files"]) for each in history] == [True, False]  # complete, at once
    assert_whole(hub, history[0]["files"])


@contextmanager
def published(hub: HubServer, tmp_path: Path, name: str, **faults: Any) -> Iterator[Job]:
    """A job whose Hub fails from the beginning."""
    if faults:
        ask_for(hub.address, faults)
    settings = job_with(tmp_path, name, num_steps=200, every_steps=40)
    settings["hub"]["patience_s"] = 20
    with running(settings, tmp_path / f"{name}.log", **hub.environment) as job:
        yield job


def test_a_token_that_is_refused_is_told_once_and_training_goes_on(
    hub: HubServer, tmp_path: Path
) -> None:
    fault = {"match": "repos/create", "kind": "status", "status": 401, "count": 999}
    with published(hub, tmp_path, "refused", **fault) as job:
        assert job.wait() == 0, job.printed
        assert job.printed.count("Training continues; unpublished versions stay") == 1
        assert "the token is wrong or has expired" in job.printed
        assert f"python jobs/publish.py {job.folder} --repo_id" in job.printed
    ask_for(hub.address)
    publish = [sys.executable, str(ROOT / "jobs" / "publish.py"), str(job.folder)]
    environment = os.environ | hub.environment
    done = subprocess.run(publish, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = repository(hub)
    assert len(found["tags"]) == 5
    assert_whole(hub, found["commits"][found["branches"]["main"]]["files"])
