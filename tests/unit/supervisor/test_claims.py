import time
from dataclasses import replace
from pathlib import Path

import pytest

from rm_ray.errors import InputError
from rm_ray.runs.attempts import Attempt, write_attempts
from rm_ray.runs.checkpoint_names import checkpoint_name
from rm_ray.storage import Storage
from rm_ray.supervisor.claims import LONG_AGO_S, WRITE_EVERY_S, next_number, refuse_company

LOST = Attempt(number=1, began=0, updated=1, ending="lost", step=7, cause="rank 1 died")


@pytest.fixture
def run_folder(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path / "small"))


def make_checkpoint(run_folder: Storage, *, step: int, attempt: int) -> None:
    run_folder.write_text(f"{checkpoint_name(step, attempt)}/state.json", "{}")


def test_the_first_attempt_has_number_1(run_folder: Storage):
    assert next_number(run_folder, []) == 1


def test_a_number_follows_the_highest_of_the_attempts(run_folder: Storage):
    attempts = [replace(LOST, number=number) for number in (3, 12, 5)]

    assert next_number(run_folder, attempts) == 13


def test_a_number_follows_the_attempts_known_only_by_their_checkpoints(run_folder: Storage):
    for step, attempt in [(40, 2), (30, 11), (90, 9)]:
        make_checkpoint(run_folder, step=step, attempt=attempt)

    assert next_number(run_folder, []) == 12
    assert next_number(run_folder, [replace(LOST, number=4)]) == 12
    assert next_number(run_folder, [replace(LOST, number=20)]) == 21


def running(*, heard_of: float) -> Attempt:
    return Attempt(number=1, began=heard_of - 60, updated=heard_of)


@pytest.mark.parametrize("ago_s", [2 * LONG_AGO_S, -2 * LONG_AGO_S])
def test_a_command_silent_for_long_is_not_waited_for(run_folder: Storage, ago_s: float):
    write_attempts(run_folder, [running(heard_of=time.time() - ago_s)])

    started = time.monotonic()
    refuse_company(run_folder)

    assert time.monotonic() - started < 3 * WRITE_EVERY_S


def test_a_command_that_ended_a_moment_ago_is_not_waited_for(run_folder: Storage):
    refuse_company(run_folder)
    write_attempts(run_folder, [replace(running(heard_of=time.time()), ending="stopped")])

    started = time.monotonic()
    refuse_company(run_folder)

    assert time.monotonic() - started < 3 * WRITE_EVERY_S


def test_a_command_killed_a_moment_ago_is_taken_over_from(
    run_folder: Storage, monkeypatch: pytest.MonkeyPatch
):
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    write_attempts(run_folder, [running(heard_of=time.time())])

    refuse_company(run_folder)

    assert waited == [3 * WRITE_EVERY_S]


def test_a_second_command_on_an_active_run_is_refused(
    run_folder: Storage, monkeypatch: pytest.MonkeyPatch
):
    now = time.time()
    write_attempts(run_folder, [running(heard_of=now - 1)])

    def let_the_other_write(_: float) -> None:
        write_attempts(run_folder, [running(heard_of=now)])

    monkeypatch.setattr(time, "sleep", let_the_other_write)

    with pytest.raises(InputError, match="another command is at work on the run in"):
        refuse_company(run_folder)


def test_a_second_command_proceeds_if_the_first_ends_during_the_check(
    run_folder: Storage, monkeypatch: pytest.MonkeyPatch
):
    before = running(heard_of=time.time())
    write_attempts(run_folder, [before])

    def let_the_other_end(_: float) -> None:
        write_attempts(run_folder, [replace(before, ending="stopped", updated=time.time())])

    monkeypatch.setattr(time, "sleep", let_the_other_end)

    refuse_company(run_folder)
