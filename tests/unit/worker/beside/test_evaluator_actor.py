"""How an evaluator is started; tests/integration/test_evaluation_beside.py kills a real one."""

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from local_actor import LocalActor, use_local_actors
from plain_training import PlainRank, small_config
from small_checkpoint import write_checkpoint

from rm_ray.config.sections.checkpoint import CheckpointConfig
from rm_ray.config.sections.cluster import ResolvedCluster
from rm_ray.config.sections.evaluation import EvaluationConfig
from rm_ray.runs.layout import RUN
from rm_ray.storage import Storage
from rm_ray.tracking.channel import Channel
from rm_ray.worker.beside import pulse
from rm_ray.worker.beside.evaluator_actor import (
    AFTER_FAILURE_S,
    CheckpointEvaluator,
    Failures,
    has_checkpoints,
    start_evaluator,
)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What would be started, and where."""
    noted = SimpleNamespace(restarts=None, options=None, arguments=None, gpus=0.0)

    class Actor:
        def options(self, **options: Any) -> "Actor":
            noted.options = options
            return self

        def remote(self, *arguments: Any) -> str:
            noted.arguments = arguments
            return "evaluator"

    def remote(**options: Any) -> Any:
        noted.restarts = options
        return lambda _: Actor()

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "available_resources", lambda: {"GPU": noted.gpus})
    return noted


def start(folder: Path, *, use_gpu: bool) -> str:
    config = small_config(
        folder,
        cluster=ResolvedCluster(num_workers=2, cpus_per_worker=4, use_gpu=use_gpu),
        evaluation=EvaluationConfig(where="beside", cpus=3),
    )
    job = PlainRank.make(folder, config, use_gpu=use_gpu, channel="handle").job
    return start_evaluator("board", job, {})


def test_an_evaluator_computes_with_its_own_cpus_and_comes_back(
    started: SimpleNamespace, tmp_path: Path
):
    assert start(tmp_path, use_gpu=False) == "evaluator"
    assert started.restarts == {"max_restarts": -1}
    assert started.options == {"num_cpus": 3, "num_gpus": 0}
    channel, job, streams = started.arguments
    assert (channel, job.channel, streams) == ("board", None, {})
    assert (job.config.cluster.cpus_per_worker, job.use_gpu) == (3, False)


def test_an_evaluator_takes_a_gpu_if_the_workers_leave_one(
    started: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    started.gpus = 3.0
    start(tmp_path / "free", use_gpu=True)
    assert started.options == {"num_cpus": 3, "num_gpus": 1}
    assert started.arguments[1].use_gpu
    assert caplog.text == ""

    started.gpus = 2.0
    start(tmp_path / "full", use_gpu=True)
    assert started.options == {"num_cpus": 3, "num_gpus": 0}
    job = started.arguments[1]
    assert not job.use_gpu and not job.config.cluster.use_gpu
    assert "on 3 CPUs, since the workers leave no GPU free" in caplog.text


def test_an_evaluator_begins_once_there_is_a_checkpoint(tmp_path: Path):
    run_folder = Storage.open(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"machine has no .*run.json: run.storage_path is"):
        has_checkpoints(run_folder)
    run_folder.write_json(RUN, {})
    assert not has_checkpoints(run_folder)
    write_checkpoint(run_folder, 2)
    assert has_checkpoints(run_folder)


def test_each_kind_of_failure_is_reported_once(caplog: pytest.LogCaptureFixture):
    failures = Failures(patience_s=60)
    for error in (OSError("away"), OSError("away"), ValueError("broken")):
        failures.add(error)
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert lines == [
        "away. Training continues; evaluations are tried again",
        "broken. Training continues; evaluations are tried again",
    ]


def test_failures_last_until_something_works(monkeypatch: pytest.MonkeyPatch):
    failures, now = Failures(patience_s=60), 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert failures.lasting == ""
    failures.add(OSError("away"))
    now += 50
    failures.add(OSError("still away"))
    assert failures.lasting == ""
    now += 11
    assert failures.lasting == ""  # an evaluation may have begun
    failures.add(OSError("still away"))
    assert failures.lasting == "still away"
    failures.end()
    assert failures.lasting == ""
    failures.add(OSError("away again"))
    assert failures.lasting == ""


class Killed(BaseException):
    """Ends the evaluator's thread."""


def test_an_evaluator_that_cannot_begin_tries_again_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    outcomes = [ValueError("no such actor"), None]

    def get_actor(name: str) -> LocalActor:
        assert name == "board"
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome
        return LocalActor(Channel())

    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise Killed

    config = small_config(tmp_path, checkpoint=CheckpointConfig(storage_patience_s=0))
    job = PlainRank.make(tmp_path, config).job
    use_local_actors(monkeypatch)
    monkeypatch.setattr(ray, "get_actor", get_actor)
    monkeypatch.setattr(os, "nice", lambda _: None)
    monkeypatch.setattr(threading.Thread, "start", lambda _: None)
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(pulse.faulthandler, "dump_traceback_later", lambda *_, exit: None)
    evaluator = CheckpointEvaluator("board", job, {})
    assert evaluator.answer() == ""
    with pytest.raises(Killed):
        evaluator._work()
    assert slept == [AFTER_FAILURE_S] * 3
    assert "the evaluator's machine has no" in evaluator.answer()
    assert caplog.text.count("no such actor. Training continues") == 1
    assert caplog.text.count("the evaluator's machine has no") == 1
