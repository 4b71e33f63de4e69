import json
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.runs.attempts import (
    ATTEMPTS,
    Attempt,
    Ending,
    account,
    describe_ending,
    read_attempts,
    write_attempts,
)
from rm_ray.storage import Storage

SPENT = ("steps", "data wait", "evaluation", "checkpoints")

ENDINGS = get_args(Ending)


@pytest.fixture(params=["folder", "fsspec URI"])
def run_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    uris = {"folder": str(tmp_path), "fsspec URI": f"memory://{uuid.uuid4().hex}"}
    return Storage.open(uris[request.param]).folder("reward-model")


def attempt(number: int = 1, *, lasted: float = 100.0, **more: object) -> Attempt:
    began = 1e9 + 1_000 * number
    return Attempt(number=number, began=began, updated=began + lasted, **more)


seconds = st.floats(0, 1e5).map(lambda value: round(value, 3))
parts = st.dictionaries(st.sampled_from(SPENT), seconds)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Attempt], dict[str, float]]:
    """Attempts with or without training, and the seconds of work that were not lost."""
    attempts, kept = [], dict.fromkeys(SPENT, 0.0)
    for number in range(1, draw(st.integers(1, 5)) + 1):
        startup, spent = {}, {}
        if draw(st.booleans()):
            startup = {"imports and Ray": draw(seconds), "model": draw(seconds)}
            spent = draw(parts)
        lasted = sum(startup.values()) + sum(spent.values()) + draw(seconds)
        attempts.append(attempt(number, lasted=lasted, startup=startup, spent=spent))
        for what, value in spent.items():
            kept[what] += value * draw(st.floats(0, 1))
    return attempts, kept


@given(histories())
def test_the_parts_of_a_runs_time_add_up_to_the_total(
    history: tuple[list[Attempt], dict[str, float]],
):
    attempts, kept = history

    time = account(attempts, kept)

    total, goodput = time.pop("total"), time.pop("goodput")
    assert total == pytest.approx(sum(attempt.seconds for attempt in attempts))
    assert sum(time.values()) == pytest.approx(total, abs=1e-3)
    assert min(time.values()) >= 0
    assert 0 <= goodput <= 1 + 1e-9
    assert {name: time[name] for name in kept} == kept


def test_an_uninterrupted_run_redoes_no_work():
    spent = {"steps": 70.0, "data wait": 2.0, "checkpoints": 8.0}
    attempts = [attempt(lasted=100, startup={"imports and Ray": 6.0, "model": 4.0}, spent=spent)]

    assert account(attempts, spent) == {
        **spent,
        "start-up": 10.0,
        "work lost and redone": 0.0,
        "the rest": 10.0,
        "total": 100.0,
        "goodput": 0.7,
    }


def test_work_after_the_last_checkpoint_of_a_lost_attempt_is_redone():
    lost = attempt(1, lasted=60, startup={"model": 5.0}, spent={"steps": 50.0}, ending="lost")
    last = attempt(2, lasted=90, startup={"model": 6.0}, spent={"steps": 80.0, "evaluation": 1.0})
    kept = {"steps": 100.0, "evaluation": 1.0}  # 30 s of the first attempt's steps were lost

    time = account([lost, last], kept)

    assert time["work lost and redone"] == 30.0
    assert time["start-up"] == 11.0
    assert time["the rest"] == 150.0 - 101.0 - 11.0 - 30.0
    assert time["total"] == 150.0
    assert time["goodput"] == 100.0 / 150.0


def test_an_attempt_that_never_trained_counts_as_startup():
    never = attempt(1, lasted=25, ending="lost")
    last = attempt(2, lasted=50, startup={"model": 10.0}, spent={"steps": 40.0})

    time = account([never, last], {"steps": 40.0})

    assert time["start-up"] == 35.0
    assert time["the rest"] == 0.0
    assert time["goodput"] == 40.0 / 75.0


@pytest.mark.parametrize("startup", [{}, {"model": 0.0}])
def test_time_outside_of_work_counts_as_startup_if_startup_is_unknown(startup: dict[str, float]):
    unknown = attempt(lasted=25, startup=startup, spent={"steps": 15.0})

    time = account([unknown], {"steps": 15.0})

    assert (time["start-up"], time["the rest"]) == (10.0, 0.0)


def test_time_between_attempts_does_not_count():
    early = Attempt(number=1, began=0.0, updated=10.0, spent={"steps": 10.0}, startup={"a": 0.0})
    late = Attempt(number=2, began=9e9, updated=9e9 + 10, spent={"steps": 10.0}, startup={"a": 0.0})

    time = account([early, late], {"steps": 20.0})

    assert (time["total"], time["goodput"]) == (20.0, 1.0)


def test_a_run_of_zero_seconds_has_no_goodput():
    assert account([attempt(lasted=0)], {})["goodput"] == 0.0
    assert account([], {})["total"] == 0.0


attempts_of_a_run = st.lists(
    st.builds(
        Attempt,
        number=st.integers(1, 9_999),
        began=st.floats(0, 2e9),
        updated=st.floats(0, 2e9),
        ending=st.sampled_from([ending for ending in ENDINGS if ending != "running"]),
        cause=st.text(),
        signature=st.text(),
        skips=st.none() | st.integers(0, 10**7),
        num_workers=st.integers(0, 64),
        first_step=st.none() | st.integers(0, 10**7),
        step=st.integers(0, 10**7),
        startup=st.dictionaries(st.text(), seconds),
        spent=parts,
    ),
    max_size=4,
)


@given(attempts_of_a_run)
def test_attempts_survive_a_round_trip(attempts: list[Attempt]):
    run_folder = Storage.open(f"memory://{uuid.uuid4().hex}")

    write_attempts(run_folder, attempts)

    assert read_attempts(run_folder) == attempts


def test_all_attempts_are_written_each_time(run_folder: Storage):
    first = attempt(1, ending="lost", cause="rank 1 died", spent={"steps": 1.5})
    second = attempt(2, ending="finished", num_workers=4, first_step=10, step=20)

    write_attempts(run_folder, [first])
    write_attempts(run_folder, [first, second])

    assert read_attempts(run_folder) == [first, second]
    assert run_folder.read_json(ATTEMPTS) == json.loads(json.dumps([asdict(first), asdict(second)]))
    assert [info.name for info in run_folder.list()] == [ATTEMPTS]


def test_a_run_that_has_not_started_has_no_attempts(run_folder: Storage):
    assert read_attempts(run_folder) == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[{",
        "no JSON",
        "7",
        "[7]",
        '{"number": 1}',
        '[{"number": 1}]',
        '[{"number": 1, "began": 0, "updated": 1, "of": "another version"}]',
    ],
)
def test_a_damaged_file_of_attempts_is_reported_and_replaced(
    run_folder: Storage, caplog: pytest.LogCaptureFixture, content: str
):
    run_folder.write_text(ATTEMPTS, content)

    assert read_attempts(run_folder) == []

    assert f"{run_folder.join(ATTEMPTS)} is unreadable" in caplog.text
    write_attempts(run_folder, [attempt(ending="finished")])
    assert read_attempts(run_folder) == [attempt(ending="finished")]


def test_attempts_in_an_unknown_encoding_are_damaged_too(tmp_path: Path):
    (tmp_path / ATTEMPTS).write_bytes(b"\xff\xfe\x00")

    assert read_attempts(Storage.open(str(tmp_path))) == []


def test_an_attempt_found_running_was_lost_at_its_last_update(run_folder: Storage):
    running = attempt(2, lasted=33, num_workers=2, first_step=5, step=9, spent={"steps": 3.0})
    before = attempt(1, ending="stopped", cause="preempted")
    write_attempts(run_folder, [before, running])

    first, second = read_attempts(run_folder)

    assert first == before
    assert (second.ending, second.signature) == ("lost", "")
    assert second.cause == "the command was killed, or its machine lost"
    assert (second.number, second.first_step, second.step) == (2, 5, 9)
    assert (second.seconds, second.spent) == (33, {"steps": 3.0})


@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if ending != "running"])
def test_an_attempt_that_ended_is_unchanged(run_folder: Storage, ending: Ending):
    ended = attempt(ending=ending, cause="its cause", signature="its signature")
    write_attempts(run_folder, [ended])

    assert read_attempts(run_folder) == [ended]


def test_an_attempt_lasts_until_its_last_update():
    assert Attempt(number=1, began=100.0, updated=130.5).seconds == 30.5


def test_an_attempt_is_never_shorter_than_zero_seconds():
    assert Attempt(number=1, began=100.0, updated=40.0).seconds == 0.0
    assert account([Attempt(number=1, began=100.0, updated=40.0)], {})["total"] == 0.0


def test_a_clock_set_back_makes_no_time_negative():
    attempts = [Attempt(number=1, began=100.0, updated=40.0, spent={"steps": 30.0})]

    assert min(account(attempts, {"steps": 30.0}).values()) >= 0


def test_an_attempt_that_never_trained_has_no_first_step_in_the_timeline():
    assert describe_ending(attempt(ending="lost"))["first_step"] is None


def test_a_row_of_the_timeline_summarizes_an_attempt():
    row = describe_ending(
        attempt(
            3,
            lasted=12.345,
            ending="lost",
            cause="rank 1 died",
            num_workers=2,
            first_step=10,
            step=14,
            startup={"imports and Ray": 4.04, "model": 1.0},
        )
    )

    assert row == {
        "attempt": 3,
        "workers": 2,
        "first_step": 10,
        "last_step": 14,
        "seconds": 12.3,
        "start_up_seconds": 5.0,
        "ending": "lost",
        "cause": "rank 1 died",
    }
