"""Whatever is killed or stopped, the run ends bit-identical to one that was left alone."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from outcomes import assert_same_outcome, history, result

from jobs import INJECT, Job, assert_tidy, finish, running, small_job


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "together"])
def quiet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was left alone, on one and on two workers."""
    storage = tmp_path_factory.mktemp(f"quiet-{request.param}")
    finish(small_job(storage, "quiet", num_workers=request.param), storage / "quiet.log")
    return storage / "quiet"


def job_like(quiet: Path, name: str) -> dict:
    """The same settings under another name; the token cache is shared."""
    num_workers = result(quiet)["workers"]
    return small_job(quiet.parent, name, num_workers=num_workers)


def check(job: Job, quiet: Path) -> None:
    """See that a job ends, and as the other did."""
    assert job.wait() == 0, job.printed
    assert_same_outcome(job.folder, quiet)
    assert_tidy(job.folder)


slow = pytest.mark.slow

WORKER, CONTROLLER = "RayTrainWorker", "ray::TrainController"
DRIVER = "rm_ray.driver.attempt"


@slow
@pytest.mark.parametrize(
    "victim", ["one worker", "all workers", "the controller", "the driver", "the raylet", "the gcs"]
)
def test_a_process_is_killed_in_training(quiet: Path, victim: str) -> None:
    names = {
        "one worker": WORKER, "all workers": WORKER, "the controller": CONTROLLER,
        "the driver": DRIVER, "the raylet": "raylet/raylet", "the gcs": "gcs_server",
    }  # fmt: skip
    name = victim.replace(" ", "-")
    with running(job_like(quiet, name), quiet.parent / f"{name}.log") as job:
        job.wait_for_checkpoint()
        found = job.find(names[victim])
        for process in found if victim == "all workers" else found[-1:]:
            process.kill()
        check(job, quiet)
        assert "attempt 1 ended at step" in job.printed
        assert len(result(job.folder)["attempts"]) == 2


@slow
@pytest.mark.parametrize(
    "place",
    ["start-up", "micro-batch", "evaluation", "save", "seal", "upload", "export", "end", "restore"],
)
def test_a_worker_dies_wherever_it_is(quiet: Path, place: str) -> None:
    log, mark = quiet.parent / f"dies-in-{place}.log", quiet.parent / f"died-in-{place}"
    settings = job_like(quiet, f"dies-in-{place}")
    inject = {"PYTHONPATH": INJECT, "DIES_IN": place, "DIED": str(mark)}
    with running(settings, log, **inject) as job:
        if place == "restore":  # it comes with the second attempt
            job.wait_for_checkpoint()
            job.find(WORKER)[0].kill()
        check(job, quiet)
        assert mark.exists()
        expected = 3 if place == "restore" else 2
        assert len(result(job.folder)["attempts"]) == expected


@slow
def test_a_killed_data_task_is_done_again(quiet: Path) -> None:
    with running(job_like(quiet, "data-task"), quiet.parent / "data-task.log") as job:
        killed = job.wait_for(lambda: [p.kill() or p for p in job.find("load_steps")], "a task")
        assert killed
        check(job, quiet)


@slow
def test_the_command_is_killed_and_given_again(quiet: Path) -> None:
    settings, log = job_like(quiet, "command"), quiet.parent / "command.log"
    with running(settings, log) as job:
        job.wait_for_checkpoint()
        job.process.kill()
    with running(settings, log) as job:
        check(job, quiet)
        causes = [attempt["cause"] for attempt in result(job.folder)["attempts"]]
        assert causes == ["the command was killed, or its machine lost", ""]


@slow
def test_a_second_command_on_the_same_run_is_refused(quiet: Path) -> None:
    settings = job_like(quiet, "company")
    with running(settings, quiet.parent / "company.log") as job:
        job.wait_for(lambda: (job.folder / "attempts.json").exists(), "the first command")
        with running(settings, quiet.parent / "refused.log") as second:
            assert second.wait() == 2, second.printed
            assert "another command is at work on the run" in second.printed
        check(job, quiet)


@slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_answered_with_a_checkpoint(quiet: Path, number: int, status: int) -> None:
    name = signal.Signals(number).name.lower()
    settings, log = job_like(quiet, name), quiet.parent / f"{name}.log"
    settings["checkpoint"]["every_steps"] = 0
    with running(settings, log) as job:
        job.wait_for_steps_of_attempt(1)
        job.process.send_signal(number)
        asked = time.monotonic()
        assert job.wait() == status, job.printed
        assert time.monotonic() - asked < 25
        (saved,) = job.checkpoints()
        line = r"ed at step (\d+); its newest checkpoint is from step \1;"
        stopped = re.search(line, job.printed)
        assert stopped is not None
        assert f"{int(stopped[1]):08d}" in saved.name
    with running(settings, log) as job:
        check(job, quiet)
        assert f"resumed from the checkpoint of step {stopped[1]}" in job.printed


@slow
def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(quiet: Path) -> None:
    """The next command evaluates; its history is that of a run that was left alone."""
    settings, log = job_like(quiet, "evaluating"), quiet.parent / "evaluating.log"
    settings["checkpoint"] |= {"every_steps": 20, "keep_best_by": "eval/rm/loss"}
    mark = quiet.parent / "dawdles"
    with running(settings, log, PYTHONPATH=INJECT, DAWDLES=str(mark)) as job:
        job.wait_for(mark.exists, "an evaluation")
        job.process.send_signal(signal.SIGTERM)
        assert job.wait() == 143, job.printed
        assert "evaluation at step" not in job.printed
        assert "terminated at step 20; its newest checkpoint is from step 20" in job.printed
    with running(settings, log) as job:
        check(job, quiet)
        assert {folder.name for folder in job.checkpoints()} == {
            "checkpoint_00000020_0002",  # with what was measured, by which it may be the best
            "checkpoint_00000040_0002",
        }


@slow
def test_a_stopped_worker_is_found_and_started_again(quiet: Path) -> None:
    with running(job_like(quiet, "stopped"), quiet.parent / "stopped.log") as job:
        job.wait_for_checkpoint()
        (*_, worker) = job.find(WORKER)
        worker.suspend()
        stopped = time.monotonic()
        job.wait_for(lambda: "silent for" in job.printed, "the watch")
        assert time.monotonic() - stopped < 60
        check(job, quiet)
        ranks = result(quiet)["workers"]
        assert job.printed.count(", process ") == ranks  # the stacks of all
        assert job.printed.count("in train_loop_per_worker") >= ranks
        assert not psutil.pid_exists(worker.pid)


@slow
def test_a_hung_collective_is_found_and_started_again(quiet: Path) -> None:
    if result(quiet)["workers"] == 1:
        pytest.skip("one worker has no partner to wait for")
    log, mark = quiet.parent / "hung.log", quiet.parent / "hung"
    with running(job_like(quiet, "hung-rank"), log, PYTHONPATH=INJECT, HANGS_ONCE=str(mark)) as job:
        job.wait_for(mark.exists, "the hang")
        hung = time.monotonic()
        job.wait_for(lambda: "no rank made progress for" in job.printed, "the watch")
        assert time.monotonic() - hung < 60
        check(job, quiet)
        assert "in hang" in job.printed


@slow
def test_an_error_in_the_code_is_shown_once_and_ends_the_run(quiet: Path) -> None:
    log = quiet.parent / "broken.log"
    with running(job_like(quiet, "broken"), log, PYTHONPATH=INJECT, FAILS_AT_STEP="7") as job:
        assert job.wait() == 1, job.printed
        assert "the same error came twice at step" in job.printed
        assert "ValueError: broken on purpose" in job.printed
        assert len(job.checkpoints()) == 1


@slow
def test_a_step_that_is_not_finite_may_be_left_out(quiet: Path) -> None:
    settings, log = job_like(quiet, "skipping"), quiet.parent / "skipping.log"
    settings["optimizer"]["max_skipped_steps"] = 1
    with running(settings, log, PYTHONPATH=INJECT, SPOILS_STEP="12") as job:
        assert job.wait() == 0, job.printed
    outcome = result(job.folder)
    assert outcome["skipped_steps"] == [12]
    assert outcome["times_each_pair_was_trained_on"] == {"least": 3, "most": 4}
    first, second = outcome["attempts"]
    assert "the loss or gradient of step 13 is not a finite number" in first["cause"]
    assert (first["ending"], second["first_step"]) == ("lost", 10)
    steps = [r["step"] for r in history(job.folder) if r["kind"] == "train"]
    assert steps == [step for step in range(1, 41) if step != 13]
    assert "step 13 is left out" in job.printed


@slow
def test_a_checkpoint_knows_of_a_step_that_was_left_out(quiet: Path) -> None:
    """Where the record of the attempts is damaged, nothing else does."""
    settings, log = job_like(quiet, "damaged"), quiet.parent / "damaged.log"
    settings["optimizer"]["max_skipped_steps"] = 1
    broken = {"PYTHONPATH": INJECT, "SPOILS_STEP": "12"}
    with running(settings, log, **broken) as job:
        job.wait_for(lambda: list(job.folder.glob("checkpoint_*_0002")), "a checkpoint after it")
        job.process.kill()
    (job.folder / "attempts.json").write_text("{")
    with running(settings, log, **broken) as job:
        assert job.wait() == 0, job.printed
    outcome = result(job.folder)
    assert outcome["skipped_steps"] == [12]
    assert outcome["times_each_pair_was_trained_on"] == {"least": 3, "most": 4}


@slow
def test_many_kills_leave_few_checkpoints(quiet: Path) -> None:
    """Also one that comes while a checkpoint is written or copied."""
    settings, log = job_like(quiet, "many"), quiet.parent / "many.log"
    settings["checkpoint"]["every_steps"] = 1
    with running(settings, log) as job:
        for kills in range(4):
            job.wait_for_steps_of_attempt(kills + 1)
            for worker in job.find(WORKER):
                worker.kill()
            assert_tidy(job.folder)
        check(job, quiet)


@slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", [[], ["--lists"], ["--lora"]], ids=["pairs", "lists", "adapters"])
def test_two_random_kills_change_nothing(kind: list[str]) -> None:
    chaos = Path(__file__).with_name("chaos.py")
    command = [sys.executable, str(chaos), "1", "2", "--workers", "2", "--zero-stage", "2"]
    done = subprocess.run([*command, "--steps", "100", *kind], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-3_000:]
    assert "bit-identical to the run that was left alone" in done.stdout
