from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_checkpoint import described

from rm_ray.config.recipe import parse_config
from rm_ray.config.sections.evaluation import EvaluationConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.runs.checkpoint_names import checkpoint_name
from rm_ray.runs.history import History, Record
from rm_ray.runs.late_evaluations import (
    LateEvaluation,
    LateEvaluations,
    describe_steps,
    is_due,
    merge_records,
    read_records,
)
from rm_ray.storage import Storage
from rm_ray.worker.schedule import Schedule

LOSS = "eval/rm/loss"
LAST = 20


def config_of(
    every: int = 0, *, saves: int = 4, at_end: bool = True, best_by: str | None = None
) -> TrainConfig:
    return parse_config(
        {
            "data": {"eval": ["a.jsonl"]},
            "evaluation": {"where": "beside", "every_steps": every, "at_end": at_end},
            "checkpoint": {"every_steps": saves, "keep_best_by": best_by},
        }
    )


def record(step: int, loss: float = 0.5) -> Record:
    metrics = {LOSS: loss}
    return Record(
        step=step, kind="eval", episode=8 * step, hours=0.0, metrics=metrics, timestamp=step
    )


@pytest.fixture
def late(tmp_path: Path) -> LateEvaluations:
    run_folder = Storage.open(str(tmp_path))
    return LateEvaluations(run_folder=run_folder, config=config_of(), last_step=LAST)


def test_evaluations_are_read_as_they_were_written(late: LateEvaluations):
    written = {
        8: LateEvaluation(step=8, attempt=2, tries=1, problem="out of memory"),
        4: LateEvaluation(step=4, attempt=1, tries=2, record=record(4)),
        12: LateEvaluation(step=12, attempt=1, tries=3, problem="no", is_given_up=True),
    }
    assert (late.read(), late.records) == ({}, [])
    for one in written.values():
        late.write(one)
    assert late.read() == written
    assert [*late.read()] == [4, 8, 12]
    assert late.records == read_records(late.run_folder) == [record(4)]
    assert [step for step, one in late.read().items() if one.is_settled] == [4, 12]
    done = LateEvaluation(step=8, record=record(8))
    late.write(done)  # what was not done is read again
    assert late.read()[8] == done


def test_an_unreadable_file_is_one_that_is_not_there(
    late: LateEvaluations, caplog: pytest.LogCaptureFixture
):
    late.run_folder.write_json("late_evaluations/step-00000004.json", {"another": "version"})
    late.run_folder.write_text("late_evaluations/step-00000008.json.tmp", "{")
    assert late.read() == {}
    assert "late_evaluations/step-00000004.json is unreadable, evaluating again" in caplog.text


@given(
    st.sampled_from([0, 3, 6, 9]),
    st.booleans(),
    st.sampled_from([None, "train/rm/loss", LOSS]),
)
def test_the_steps_are_those_at_which_the_workers_would_evaluate(
    every: int, at_end: bool, best_by: str | None
):
    config = config_of(every, saves=3, at_end=at_end, best_by=best_by)
    found = [step for step in range(1, LAST + 1) if is_due(config, step, last_step=LAST)]
    within = EvaluationConfig(every_steps=every or 3, at_end=at_end)
    schedule = Schedule(last_step=LAST, evaluation=within, checkpoint=config.checkpoint)
    assert found == [step for step in range(1, LAST + 1) if schedule.is_evaluation_due(step)]
    alone = replace(config, evaluation=within)
    assert not any(is_due(alone, step, last_step=LAST) for step in range(1, LAST + 1))


def test_a_checkpoint_is_pending_until_it_is_evaluated_or_given_up(late: LateEvaluations):
    checkpoints = [described(step, {}) for step in (12, 4, 8, 10, 20)]

    def pending() -> list[int]:
        return [found.manifest.step for found in late.find_pending(checkpoints)]

    assert pending() == [4, 8, 12, 20]  # 10 was saved before a stop
    late.write(LateEvaluation(step=4, tries=1))
    assert pending() == [4, 8, 12, 20]
    late.write(LateEvaluation(step=4, record=record(4)))
    late.write(LateEvaluation(step=12, is_given_up=True))
    assert pending() == [8, 20]
    checkpoints[2] = described(8, {LOSS: 0.1})  # evaluated by the workers of an earlier attempt
    assert pending() == [20]


def test_of_a_step_saved_twice_the_newest_checkpoint_is_evaluated(late: LateEvaluations):
    twice = [described(4, {}, attempt=2), described(4, {}, attempt=1)]
    assert [found.name for found in late.find_pending(twice)] == [checkpoint_name(4, 2)]


def test_a_checkpoint_s_own_metrics_and_late_ones_are_joined(late: LateEvaluations):
    late.write(LateEvaluation(step=4, record=record(4, loss=0.25)))
    four, eight = described(4, {"train/rm/loss": 1.0}), described(8, {"train/rm/loss": 0.5})
    found = late.add_metrics([eight, four])
    assert found[0] == eight
    assert found[1].manifest.metrics == {"train/rm/loss": 1.0, LOSS: 0.25}
    assert found[1].manifest.files == four.manifest.files


def test_checkpoints_after_a_pending_one_cannot_be_compared_yet(late: LateEvaluations):
    checkpoints = [described(step, {}) for step in (4, 8, 12)]
    late.write(LateEvaluation(step=12, record=record(12)))
    assert late.choose_comparable(checkpoints) == []
    late.write(LateEvaluation(step=4, record=record(4)))
    assert [c.manifest.metrics for c in late.choose_comparable(checkpoints)] == [{LOSS: 0.5}]
    late.write(LateEvaluation(step=8, is_given_up=True))
    assert [c.manifest.step for c in late.choose_comparable(checkpoints)] == [4, 8, 12]


def test_pending_checkpoints_are_held_unless_the_storage_is_nearly_full(
    late: LateEvaluations, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    checkpoints = [described(step, {}) for step in (4, 8)]
    late.write(LateEvaluation(step=4, record=record(4)))
    assert late.choose_held(checkpoints) == {checkpoint_name(8, 1)}
    monkeypatch.setattr(Storage, "free_bytes", lambda _: 1)
    assert late.choose_held(checkpoints) == set()
    assert "1 checkpoints may be deleted before they are evaluated" in caplog.text
    within = replace(late, config=TrainConfig())
    assert within.find_pending(checkpoints) == []
    assert within.choose_comparable(checkpoints) == late.add_metrics(checkpoints)


@given(st.sets(st.integers(1, 12)), st.sets(st.integers(1, 12)), st.sets(st.integers(1, 12)))
def test_late_records_stand_where_they_would_have_stood(
    train: set[int], within: set[int], late: set[int]
):
    def step_record(step: int) -> Record:
        return Record(step=step, kind="train", episode=step, hours=0.0, metrics={})

    def in_order(evaluated: set[int]) -> list[tuple[int, str]]:
        return sorted([(s, "train") for s in train] + [(s, "eval") for s in evaluated], key=place)

    def place(one: tuple[int, str]) -> tuple[int, bool]:
        return one[0], one[1] == "eval"

    own = {(s, "train"): step_record(s) for s in train}
    own |= {(s, "eval"): record(s, loss=0.0) for s in within}
    history = History([own[one] for one in in_order(within)])
    merged = merge_records(history, [record(step, loss=1.0) for step in sorted(late)])
    assert [(r.step, r.kind) for r in merged.records] == in_order(within | late)
    assert {r.step for r in merged.records if r.metrics.get(LOSS) == 1.0} == late - within
    assert merge_records(merged, [record(step) for step in late]) == merged


def test_a_history_gets_the_late_records_up_to_its_step(late: LateEvaluations):
    for step in (4, 8):
        late.write(LateEvaluation(step=step, record=record(step)))
    assert late.merge_into(History(), until=4).records == [record(4)]
    assert late.merge_into(History()).records == [record(4), record(8)]


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([8], "step 8"),
        ([8, 1200], "steps 8 and 1,200"),
        ([1, 2, 3], "steps 1, 2 and 3"),
        ([1, 2, 3, 4, 5, 6, 7], "steps 1, 2, 3, 4, 5 and 2 more"),
    ],
)
def test_steps_in_words(steps: list[int], text: str):
    assert describe_steps(steps) == text
