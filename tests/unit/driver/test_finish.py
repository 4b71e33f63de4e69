import json
from pathlib import Path
from typing import Any

import pytest
from resolved_runs import builtin_run

from rm_ray.driver.attempt_handle import AttemptHandle
from rm_ray.driver.finish import finish
from rm_ray.driver.fit import TrainingOutcome
from rm_ray.errors import LostError, MlflowAwayError, TrainingError
from rm_ray.runs.attempts import Attempt
from rm_ray.runs.history import History, Record
from rm_ray.runs.layout import HISTORY, PLOTS, RESULT
from rm_ray.runs.startup import Startup
from rm_ray.tracking.sender import MetricSender


def never() -> Any:
    raise MlflowAwayError("away")


def outcome_of(steps: int) -> dict[str, Any]:
    """Return rank 0's outcome, without the figures that are passed through."""
    history = History()
    for step in range(1, steps + 1):
        metrics = {"train/rm/loss": 1 / step, "train/rm/accuracy": 0.5}
        history.add(
            Record(step=step, kind="train", episode=8 * step, hours=step / 60, metrics=metrics)
        )
    return {
        "steps": steps,
        "spent": {"steps": 2.0},
        "attempt": {"first_step": 0, "startup": {}, "spent": {"steps": 2.0}},
        "history": history.to_json_lines(),
    }


def trained(outcome: dict[str, Any]) -> TrainingOutcome:
    """Return an outcome whose MLflow is unreachable, without any waiting."""
    sender = MetricSender(never)
    sender.close = lambda patience_s=0.0: sender.unsent  # type: ignore[method-assign]
    return TrainingOutcome(outcome=outcome, sender=sender)


def test_a_finished_run_leaves_history_plots_and_its_result(tmp_path: Path):
    resolved = builtin_run(tmp_path)
    earlier = [Attempt(number=1, began=0, updated=60, ending="lost", cause="rank 1 died")]
    attempt_handle = AttemptHandle(number=2, startup=Startup(began=100.0), earlier=earlier)

    result = finish(resolved, trained(outcome_of(3)), attempt_handle)

    folder = resolved.run_folder
    assert folder.read_json(RESULT) == json.loads(json.dumps(result))
    assert len((Path(folder.path) / HISTORY).read_text().splitlines()) == 3
    assert [entry.name for entry in folder.folder(PLOTS).list()] != []
    assert [attempt["ending"] for attempt in result["attempts"]] == ["lost", "finished"]
    assert (result["steps"], result["workers"], result["train_pairs"]) == (3, 2, 24)
    assert result["mlflow_run_id"] is None
    assert result["mlflow_unsent"] == 4  # three steps, and the table of refused rows
    assert "history" not in result


def not_finite(resolved: Any, *, earlier: list[Attempt]) -> None:
    outcome = {"not_finite": {"step": 4, "pairs": [0, 1]}}
    finish(resolved, trained(outcome), AttemptHandle(number=2, earlier=earlier))


def test_a_non_finite_loss_ends_training_and_names_the_pairs(tmp_path: Path):
    with pytest.raises(TrainingError, match=r"of step 5 is not a finite number; pairs at fault: "):
        not_finite(builtin_run(tmp_path), earlier=[])


def test_a_step_is_skipped_as_often_as_the_settings_allow(tmp_path: Path):
    resolved = builtin_run(tmp_path, optimizer={"max_skipped_steps": 1})

    with pytest.raises(LostError) as caught:
        not_finite(resolved, earlier=[])
    assert caught.value.skips == 4

    skipping = Attempt(number=1, began=0, updated=1, ending="lost", skips=2)
    with pytest.raises(TrainingError):
        not_finite(resolved, earlier=[skipping])
