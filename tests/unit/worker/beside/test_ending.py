"""The wait for evaluations, and what it settles, on folders as a run leaves them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from local_actor import LocalActor, use_local_actors
from plain_training import PlainRank, small_config
from small_checkpoint import write_checkpoint

from rm_ray.config.sections.checkpoint import CheckpointConfig
from rm_ray.config.sections.evaluation import EvaluationConfig
from rm_ray.errors import LostError
from rm_ray.runs.history import History, Record
from rm_ray.runs.late_evaluations import LateEvaluation
from rm_ray.tracking.channel import Channel
from rm_ray.worker.beside import ending
from rm_ray.worker.beside.ending import MOST_DEATHS, await_evaluations, settle_evaluations
from rm_ray.worker.beside.pending import late_evaluations
from rm_ray.worker.job import TrainJob


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    """A job of 8 steps whose checkpoints of steps 4, 6 and 8 are there."""
    evaluation = EvaluationConfig(where="beside")
    checkpoint = CheckpointConfig(every_steps=2, keep=2, keep_best_by="eval/rm/loss")
    config = small_config(tmp_path, evaluation=evaluation, checkpoint=checkpoint)
    job = PlainRank.make(tmp_path, config).job
    for step in (4, 6, 8):
        write_checkpoint(job.run_folder, step)
    return job


def finish(job: TrainJob, step: int, loss: float) -> None:
    metrics = {"eval/rm/loss": loss}
    record = Record(step=step, kind="eval", episode=6 * step, hours=0.0, metrics=metrics)
    late_evaluations(job).write(LateEvaluation(step=step, attempt=1, tries=1, record=record))


def test_the_end_waits_for_every_checkpoint_and_says_so(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch
):
    channel, left, shown = Channel(), [4, 6, 8], list[str]()
    monkeypatch.setattr(ending, "_ask", lambda _: "")

    def sleep(seconds: float) -> None:
        shown.append(channel.fetch().status)
        finish(job, left.pop(0), 0.5)

    monkeypatch.setattr(ending.time, "sleep", sleep)
    await_evaluations(job, None, LocalActor(channel))
    assert left == []
    waiting = "training is finished; waiting for the evaluation of"
    assert shown == [
        f"{waiting} {steps}" for steps in ("steps 4, 6 and 8", "steps 6 and 8", "step 8")
    ]
    assert channel.fetch().status == (
        "training is finished, and no checkpoint waits for its evaluation"
    )


def test_an_evaluator_that_does_not_come_back_loses_the_attempt(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch
):
    looks: list[float] = []
    monkeypatch.setattr(ending.time, "sleep", looks.append)
    monkeypatch.setattr(ending, "_ask", lambda _: None)
    with pytest.raises(LostError, match="the evaluator died while checkpoints waited for it"):
        await_evaluations(job, None, LocalActor(Channel()))
    assert len(looks) == MOST_DEATHS - 1


def test_an_evaluator_that_keeps_failing_loses_the_attempt_to_an_outage(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch
):
    use_local_actors(monkeypatch)
    finish(job, 4, 0.5)
    evaluator = LocalActor(SimpleNamespace(answer=lambda: "no space left on device"))
    with pytest.raises(LostError) as lost:
        await_evaluations(job, evaluator, LocalActor(Channel()))
    assert lost.value.cause == "steps 6 and 8 cannot be evaluated: no space left on device"
    assert lost.value.is_outage


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (ray.exceptions.GetTimeoutError(), ""),
        (ray.exceptions.ActorUnavailableError("restarting", None), ""),
        (ray.exceptions.ActorDiedError(), None),
    ],
)
def test_only_an_actor_that_ray_calls_dead_is_dead(
    error: Exception, answer: str | None, monkeypatch: pytest.MonkeyPatch
):
    def get(reference: Any, timeout: float) -> None:
        raise error

    monkeypatch.setattr(ray, "get", get)
    evaluator = LocalActor(SimpleNamespace(answer=lambda: ""))
    assert ending._ask(evaluator) == answer


def test_the_outcome_has_the_late_metrics_and_the_best_of_all(
    job: TrainJob, caplog: pytest.LogCaptureFixture
):
    for step, loss in ((2, 0.4), (4, 0.1), (6, 0.3)):
        finish(job, step, loss)
    late_evaluations(job).write(LateEvaluation(step=8, attempt=1, tries=3, is_given_up=True))
    train = [
        Record(step=step, kind="train", episode=6 * step, hours=0.0, metrics={"train/rm/loss": 1.0})
        for step in range(1, 9)
    ]
    before = {"history": History(train).to_json_lines(), "metrics": {}, "best_checkpoint": "?"}

    outcome = settle_evaluations(job, {**before, "steps": 8})

    history = History.from_json_lines(outcome["history"].splitlines())
    assert [r.step for r in history.records if r.kind == "eval"] == [2, 4, 6]
    assert outcome["metrics"] == {"train/rm/loss": 1.0, "eval/rm/loss": 0.3}
    assert outcome["best_checkpoint"] == job.run_folder.join("checkpoint_00000004_0001")
    kept = {path.name for path in Path(job.run_folder.path).glob("checkpoint_*")}
    assert kept == {"checkpoint_00000004_0001", "checkpoint_00000008_0001"}
    assert (outcome["steps_not_evaluated"], outcome["steps"]) == ([8], 8)
    assert "there is no evaluation of step 8" in caplog.text


def test_only_checkpoints_of_the_schedule_are_waited_for(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch
):
    rare = replace(job.config.evaluation, every_steps=8)
    checkpoint = replace(job.config.checkpoint, keep_best_by=None)
    job = replace(job, config=replace(job.config, evaluation=rare, checkpoint=checkpoint))
    finish(job, 8, 0.5)
    await_evaluations(job, None, LocalActor(Channel()))
