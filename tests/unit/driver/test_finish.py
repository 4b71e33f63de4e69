import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow_runs import PATIENCE_S, begin, make_records, make_target
from resolved_runs import builtin_run

from rm_ray.driver.attempt_handle import AttemptHandle
from rm_ray.driver.finish import finish
from rm_ray.driver.fit import TrainingOutcome
from rm_ray.errors import LostError, MlflowAwayError, TrainingError
from rm_ray.evaluation.reward_statistics import STATISTICS
from rm_ray.runs.attempts import Attempt
from rm_ray.runs.history import History, Record
from rm_ray.runs.layout import HISTORY, PLOTS, RESULT, RUN
from rm_ray.runs.row_losses import RowLosses
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
    sender.close = lambda patience_s=0.0: MetricSender.close(sender, 0)  # type: ignore[method-assign]
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
    assert RowLosses.read(folder) is None


def test_kept_losses_are_written_with_the_places_of_their_rows(tmp_path: Path):
    resolved = builtin_run(tmp_path)
    losses = np.arange(48, dtype=np.float32).reshape(2, 24)
    outcome = outcome_of(3) | {"pair_losses": losses}

    result = finish(resolved, trained(outcome), AttemptHandle(number=1, startup=Startup(began=1.0)))

    assert "pair_losses" not in result
    kept = RowLosses.read(resolved.run_folder)
    assert kept is not None and kept.origins == ("builtin",)
    assert kept.row.tolist() == list(range(24)) and set(kept.fragment) == {0}
    assert kept.floor.tolist() == [0.0] * 24
    np.testing.assert_array_equal(kept.losses, losses, strict=True)


def not_finite(resolved: Any, *, earlier: list[Attempt]) -> None:
    outcome = {"not_finite": {"step": 4, "groups": [0, 1]}}
    finish(resolved, trained(outcome), AttemptHandle(number=2, earlier=earlier))


def test_a_non_finite_loss_ends_training_and_names_the_pairs(tmp_path: Path):
    with pytest.raises(TrainingError, match=r"of step 5 is not a finite number; pairs at fault: "):
        not_finite(builtin_run(tmp_path), earlier=[])


def test_a_non_finite_loss_fails_the_run_in_mlflow_and_leaves_no_result(tmp_path: Path):
    target, resolved = make_target(tmp_path), builtin_run(tmp_path)
    resolved.run_folder.write_json(RUN, {"key": "k"})
    sender = MetricSender(lambda: begin(target))
    sender.send(*make_records(1, 1))
    assert sender.close(PATIENCE_S) == 0  # finish() itself waits only half a minute
    outcome = TrainingOutcome(outcome={"not_finite": {"step": 1, "groups": [0]}}, sender=sender)
    with pytest.raises(TrainingError):
        finish(resolved, outcome, AttemptHandle(number=1))
    assert sender.mlflow_run is not None
    run = sender.mlflow_run.client.get_run(resolved.run_folder.read_json(RUN)["mlflow_run_id"])
    assert (run.info.status, run.data.metrics["train/rm/loss"]) == ("FAILED", 1.0)
    assert not resolved.run_folder.exists(RESULT)


def test_a_step_is_skipped_as_often_as_the_settings_allow(tmp_path: Path):
    resolved = builtin_run(tmp_path, optimizer={"max_skipped_steps": 1})

    with pytest.raises(LostError) as caught:
        not_finite(resolved, earlier=[])
    assert caught.value.skips == 4

    skipping = Attempt(number=1, began=0, updated=1, ending="lost", skips=2)
    with pytest.raises(TrainingError):
        not_finite(resolved, earlier=[skipping])


def test_groups_at_fault_are_not_called_pairs(tmp_path: Path):
    resolved = builtin_run(tmp_path)
    groups = replace(resolved, train=replace(resolved.train, num_comparisons=30))
    with pytest.raises(TrainingError, match=r"is not a finite number; groups at fault: "):
        not_finite(groups, earlier=[])


def test_the_export_gets_the_statistics_of_the_last_evaluation(tmp_path: Path):
    resolved = builtin_run(tmp_path)
    folder, attempt_handle = resolved.run_folder, AttemptHandle(number=1, earlier=[])
    finish(resolved, trained(outcome_of(3)), attempt_handle)
    assert not folder.exists(f"export/{STATISTICS}")  # it was not evaluated
    rewards = {"mean": 0.5, "std": 2.0, "num_responses": 82}
    folder.write_json("evaluations/step-00000003.json", {"step": 3, "rewards": rewards})
    finish(resolved, trained(outcome_of(3)), attempt_handle)
    assert folder.read_json(f"export/{STATISTICS}") == rewards
