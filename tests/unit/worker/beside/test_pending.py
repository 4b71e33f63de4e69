"""Tries of an evaluator that fails; test_evaluator.py has one that works."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from plain_training import PlainChannel, PlainRank, small_config
from small_checkpoint import write_checkpoint

from rm_ray.config.sections.evaluation import EvaluationConfig
from rm_ray.runs.late_evaluations import LateEvaluation
from rm_ray.runs.manifest import Checkpoint
from rm_ray.train.progress import Progress
from rm_ray.worker.beside.pending import MOST_TRIES, PendingEvaluations

Failing = Callable[[Checkpoint], None]


class Run:
    """A run with checkpoints, and an evaluator that finds nothing or raises."""

    def __init__(self, folder: Path) -> None:
        evaluation = EvaluationConfig(where="beside")
        self.rank = PlainRank.make(folder, small_config(folder, evaluation=evaluation))
        self.folder = self.rank.job.run_folder
        self.channel = PlainChannel()
        self.tried: list[int] = []
        self.failed: list[int] = []
        self.fail: Failing = lambda found: None

    def save(self, step: int) -> Path:
        folder = write_checkpoint(self.folder, step)
        record = {"progress": asdict(Progress(step=step, episode=6 * step, seconds=3600.0))}
        (folder / "state.json").write_text(json.dumps(record))
        return folder

    def evaluate(self, found: Checkpoint) -> list[Any]:
        self.tried.append(found.manifest.step)
        self.fail(found)
        return []

    def pending(self, *, attempt: int = 1) -> PendingEvaluations:
        """As a new process sees the run."""
        return PendingEvaluations(
            job=replace(self.rank.job, attempt=attempt),
            streams={},
            channel=self.channel,  # type: ignore[arg-type]
            build=lambda *_: self,  # type: ignore[arg-type, return-value]
            after_failure=lambda: self.failed.append(len(self.tried)),
        )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path)
    run.save(2)
    run.save(4)
    return run


def test_checkpoints_are_evaluated_once_oldest_first(run: Run):
    pending = run.pending()
    assert [pending.run_next() for _ in range(3)] == [True, True, False]
    assert run.tried == [2, 4]
    assert [(r.step, r.episode, r.hours) for r in run.channel.records] == [(2, 12, 1), (4, 24, 1)]
    run.save(6)
    assert run.pending().run_next()
    assert run.tried == [2, 4, 6]


def test_it_is_said_once_that_training_is_faster(run: Run, caplog: pytest.LogCaptureFixture):
    for step in (6, 8, 10):
        run.save(step)
    pending = run.pending()
    for step in range(12, 30, 6):  # six waited before this process; of three more it does one
        assert pending.run_next()
        assert "slower than training" not in caplog.text
        for more in (0, 2, 4):
            run.save(step + more)
    assert pending.run_next()
    assert caplog.text.count("evaluations are slower than training: 11 checkpoints wait") == 1
    for step in (30, 32, 34):
        run.save(step)
    assert pending.run_next()
    assert caplog.text.count("slower than training") == 1


def test_a_new_process_sends_again_what_is_done(run: Run):
    run.pending().run_next()
    run.folder.write_json("samples/step-000002.json", [{"pair": 0}])
    run.channel = PlainChannel()
    run.pending().replay()
    assert [record.step for record in run.channel.records] == [2]
    assert run.channel.tables == {"eval_samples/step-000002.json": [{"pair": 0}]}


def test_a_failure_is_tried_again_after_the_others_and_given_up_in_the_end(
    run: Run, caplog: pytest.LogCaptureFixture
):
    def fail(found: Checkpoint) -> None:
        if found.manifest.step == 2:
            raise RuntimeError("out of memory")

    run.fail = fail
    pending = run.pending()
    assert [pending.run_next() for _ in range(5)] == [False, True, False, True, False]
    assert run.tried == [2, 4, 2, 2]
    assert run.failed == [1, 3, 4]  # each after so many tries
    assert pending.late.read()[2] == LateEvaluation(
        step=2, attempt=1, tries=MOST_TRIES, problem="out of memory", is_given_up=True
    )
    assert "step 2 could not be evaluated, trying again: out of memory" in caplog.text
    assert "step 2 is not evaluated, after 3 tries: out of memory" in caplog.text

    run.fail = lambda found: None
    again = run.pending(attempt=2)  # another attempt tries it again
    assert again.run_next()
    assert again.late.read()[2].record is not None
    assert not again.run_next()


class Killed(BaseException):
    """Ends a try as SIGKILL does: nothing is written after it."""


def test_a_checkpoint_that_kills_the_evaluator_is_given_up_after_some_tries(
    run: Run, caplog: pytest.LogCaptureFixture
):
    def fail(found: Checkpoint) -> None:
        if found.manifest.step == 2:
            raise Killed

    run.fail = fail
    for _ in range(MOST_TRIES):
        with pytest.raises(Killed):
            run.pending().run_next()
    assert run.tried == [2, 2, 2]
    assert run.pending().run_next()
    problem = "the evaluator was killed, or hung, 3 times"
    assert f"step 2 is not evaluated, after 3 tries: {problem}" in caplog.text
    assert caplog.text.count("the evaluator was killed, or hung, at step 2, which is tried") == 2
    assert run.pending().run_next()
    assert run.tried == [2, 2, 2, 4]


def test_kills_of_the_whole_attempt_do_not_add_up(run: Run):
    def fail(found: Checkpoint) -> None:
        raise Killed

    run.fail = fail
    for attempt in range(1, 6):
        with pytest.raises(Killed):
            run.pending(attempt=attempt).run_next()
    assert run.tried == [2] * 5
    assert run.pending().late.read()[2].tries == 1


def test_a_failing_storage_does_not_count_as_a_try(run: Run):
    def fail(found: Checkpoint) -> None:
        raise OSError("the storage is away")

    run.fail = fail
    for _ in range(MOST_TRIES + 1):
        with pytest.raises(OSError, match="away"):
            run.pending().run_next()
    assert run.pending().late.read()[2].tries == 0
    assert run.failed == []


def test_a_checkpoint_that_is_deleted_meanwhile_is_no_failure(
    run: Run, caplog: pytest.LogCaptureFixture
):
    def fail(found: Checkpoint) -> None:
        run.folder.delete(found.name)
        raise FileNotFoundError(found.name)

    run.fail = fail
    pending = run.pending()
    assert pending.run_next()
    assert "checkpoint_00000002_0001 was deleted before it was evaluated" in caplog.text
    run.fail = lambda found: None
    assert pending.run_next()
    assert run.tried == [2, 4]


def test_a_checkpoint_with_a_changed_byte_is_not_evaluated(run: Run):
    slices = Path(run.folder.path) / "checkpoint_00000002_0001" / "slices-00000.safetensors"
    slices.write_bytes(b"\1" + slices.read_bytes()[1:])
    pending = run.pending()
    while not (late := pending.late.read()).get(2, LateEvaluation(step=2)).is_given_up:
        pending.run_next()
    assert run.tried == [4]
    assert "does not match the checksum" in late[2].problem


def test_a_checkpoint_that_is_still_being_copied_waits(run: Run):
    slices = Path(run.folder.path) / "checkpoint_00000002_0001" / "slices-00000.safetensors"
    whole = slices.read_bytes()
    slices.write_bytes(whole[:-1])
    pending = run.pending()
    assert pending.run_next()
    assert not pending.run_next()
    assert run.tried == [4]
    slices.write_bytes(whole)
    assert pending.run_next()
    assert run.tried == [4, 2]
