import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.config.sections.checkpoint import CheckpointConfig
from rm_ray.config.sections.evaluation import EvaluationConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.runs.history import History, Record
from rm_ray.worker.schedule import Schedule

LAST_STEP = 20


def schedule(
    every_steps: int = 0, *, at_end: bool = True, saves: int = 0, best_by: str | None = None
) -> Schedule:
    return Schedule(
        last_step=LAST_STEP,
        evaluation=EvaluationConfig(every_steps=every_steps, at_end=at_end),
        checkpoint=CheckpointConfig(every_steps=saves, keep_best_by=best_by),
    )


def steps_with(is_due) -> list[int]:
    return [step for step in range(1, LAST_STEP + 1) if is_due(step)]


@pytest.mark.parametrize(
    ("saves", "expected"), [(0, [20]), (1, list(range(1, 21))), (7, [7, 14, 20]), (30, [20])]
)
def test_checkpoints_come_at_intervals_and_after_the_last_step(saves, expected):
    assert steps_with(schedule(saves=saves).is_checkpoint_due) == expected


@pytest.mark.parametrize(
    ("every_steps", "at_end", "expected"),
    [
        (0, True, [20]),
        (0, False, []),
        (6, True, [6, 12, 18, 20]),
        (6, False, [6, 12, 18]),
        (5, False, [5, 10, 15]),  # at_end decides the last step, whatever the interval
    ],
)
def test_evaluations_come_at_intervals_and_at_the_end_if_configured(every_steps, at_end, expected):
    assert steps_with(schedule(every_steps, at_end=at_end).is_evaluation_due) == expected


def test_every_checkpoint_is_evaluated_if_an_eval_metric_ranks_them():
    by_loss = schedule(5, at_end=False, saves=8, best_by="eval/rm/loss")
    assert steps_with(by_loss.is_evaluation_due) == [5, 8, 10, 15, 16, 20]
    by_training = schedule(5, at_end=False, saves=8, best_by="train/rm/loss")
    assert steps_with(by_training.is_evaluation_due) == [5, 10, 15]


def test_an_attempt_that_is_stopping_evaluates_only_after_the_last_step():
    always = schedule(1)
    assert steps_with(lambda step: always.is_evaluation_due(step, is_stopping=True)) == [20]


@given(st.integers(0, LAST_STEP), st.integers(-1, LAST_STEP))
def test_an_evaluation_is_overdue_if_it_was_due_at_the_resumed_step(step, evaluated_at):
    every_four = schedule(4)
    every_four.evaluated_at = evaluated_at
    expected = step > 0 and step % 4 == 0 and step != evaluated_at
    assert every_four.is_evaluation_overdue(step) == expected


def test_a_new_schedule_knows_the_last_evaluation_in_the_history():
    records = [
        Record(step=step, kind=kind, episode=0, hours=0.0, metrics={})
        for step, kind in ((1, "train"), (2, "train"), (2, "eval"), (3, "train"))
    ]
    assert Schedule.of(TrainConfig(), LAST_STEP, History(records)).evaluated_at == 2
    assert Schedule.of(TrainConfig(), LAST_STEP, History()).evaluated_at == -1


def test_the_workers_evaluate_nothing_if_an_evaluator_does():
    beside = schedule(2, saves=2, best_by="eval/rm/loss")
    beside.evaluation = EvaluationConfig(every_steps=2, where="beside")
    assert steps_with(beside.is_evaluation_due) == []
    assert not beside.is_evaluation_overdue(4)
    assert steps_with(beside.is_checkpoint_due) == list(range(2, 21, 2))
