"""Evaluation beside training on real Ray: late, after a kill, and equal to that by the workers."""

import json
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from runs import bench_rows

from rm_ray.config.recipe import parse_config
from rm_ray.driver.attempt_handle import AttemptHandle
from rm_ray.driver.drive import drive
from rm_ray.runs.attempts import Attempt
from rm_ray.storage import Storage
from rm_ray.tracking.target import MlflowTarget

pytestmark = pytest.mark.slow

STEPS = (4, 8, 12)


def settings_of(storage: Path, where: str) -> dict[str, Any]:
    """Twelve steps, evaluated on two sets and saved after every fourth."""
    bench = storage / "bench.jsonl"
    bench.write_text("".join(json.dumps(row) + "\n" for row in bench_rows()))
    return {
        "run": {"name": where, "storage_path": str(storage), "seed": 1},
        "data": {"train": ["builtin:train=96"], "eval": ["builtin:test=41"], "max_length": 256},
        "batch": {"global_batch_size": 8, "tokens_per_micro_batch": 700},
        "model": {"dtype": "bfloat16"},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
        "cluster": {"num_workers": 1, "zero_stage": 2},
        "evaluation": {
            "every_steps": 4,
            "sample_rows": 3,
            "where": where,
            "sets": {"bench": str(bench)},
        },
        "checkpoint": {"every_steps": 4, "keep": 2, "keep_best_by": "eval/rm/loss"},
        "mlflow": {"experiment": "beside"},
    }


class Killer(threading.Thread):
    """Kills the evaluator's process once, in the middle of its first evaluation."""

    def __init__(self, run_folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder, self.killed = run_folder / "late_evaluations", 0

    def run(self) -> None:
        """Wait for the first try, and kill."""
        while not [*self._folder.glob("step-*.json")]:
            time.sleep(0.05)
        for process in psutil.process_iter(["cmdline"]):
            if "ray::CheckpointEvaluator" in " ".join(process.info["cmdline"] or ()):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
                    self.killed = process.pid


@pytest.fixture(scope="module")
def both(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of a run evaluated by its worker, and of one by an evaluator that is killed."""
    storage = tmp_path_factory.mktemp("beside")
    killer = Killer(storage / "beside")
    killer.start()
    results = {
        where: drive(parse_config(settings_of(storage, where))) for where in ("within", "beside")
    }
    assert killer.killed
    return {"storage": storage, **results}


def test_the_metrics_are_those_of_an_evaluation_by_the_worker(both: dict[str, Any]):
    within, beside = (evaluations(both, where) for where in ("within", "beside"))
    assert [record["step"] for record in within] == [*STEPS]
    assert len(within[0]["metrics"]) > 12
    for one, other in zip(within, beside, strict=True):
        assert (other["step"], other["episode"]) == (one["step"], one["episode"])
        assert other["metrics"] == pytest.approx(one["metrics"], abs=1e-6)
    order = [(record["step"], record["kind"]) for record in history(both, "within")]
    assert [(record["step"], record["kind"]) for record in history(both, "beside")] == order
    assert both["beside"]["metrics"].keys() == both["within"]["metrics"].keys()


def test_samples_and_reports_are_the_same(both: dict[str, Any]):
    for folder in ("samples", "evaluations", "samples/bench", "evaluations/bench"):
        within, beside = (files_in(both["storage"] / w / folder) for w in ("within", "beside"))
        assert len(within) == len(STEPS)
        assert beside == within


def test_the_best_checkpoint_is_chosen_by_the_late_metrics(both: dict[str, Any]):
    losses = {one["step"]: one["metrics"]["eval/rm/loss"] for one in evaluations(both, "within")}
    best = min(losses, key=lambda step: losses[step])
    for where in ("within", "beside"):
        assert f"checkpoint_{best:08d}" in both[where]["best_checkpoint"]
        kept = {path.name[:19] for path in (both["storage"] / where).glob("checkpoint_[0-9]*")}
        assert len(kept) == 2 and f"checkpoint_{best:08d}" in kept
    assert both["beside"]["steps_not_evaluated"] == []


def test_a_killed_evaluator_tries_again(both: dict[str, Any]):
    folder = both["storage"] / "beside" / "late_evaluations"
    late = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    assert [one["step"] for one in late] == [*STEPS]
    assert late[0]["tries"] == 2
    assert all(one["record"]["metrics"] for one in late)


def test_mlflow_has_each_evaluation_under_its_own_step(both: dict[str, Any]):
    config = parse_config(settings_of(both["storage"], "beside"))
    target = MlflowTarget.of(config.mlflow, Storage.open(str(both["storage"])))
    client = mlflow.MlflowClient(target.tracking_uri)
    run_id = both["beside"]["mlflow_run_id"]
    points = client.get_metric_history(run_id, "eval/bench/accuracy")
    assert {point.step: point.value for point in points} == {
        one["step"]: one["metrics"]["eval/bench/accuracy"] for one in evaluations(both, "beside")
    }
    tables = {table.path for table in client.list_artifacts(run_id, "eval_samples")}
    assert tables >= {f"eval_samples/step-{step:06d}.json" for step in STEPS}


def test_a_run_killed_while_it_waits_evaluates_what_is_missing(both: dict[str, Any]):
    """As a kill in the wait leaves it: everything is trained, and one evaluation is missing."""
    folder = both["storage"] / "beside"
    before = history(both, "beside")
    (folder / "late_evaluations" / "step-00000012.json").unlink()
    (folder / "result.json").unlink()
    earlier = [Attempt(number=1, began=time.time() - 60, updated=time.time(), ending="stopped")]
    again = AttemptHandle(number=2, earlier=earlier)
    result = drive(parse_config(settings_of(both["storage"], "beside")), again)
    same = ("steps", "best_checkpoint", "steps_not_evaluated", "mlflow_run_id")
    assert {name: result[name] for name in same} == {name: both["beside"][name] for name in same}
    for one, other in zip(history(both, "beside"), before, strict=True):
        assert (one["step"], one["kind"]) == (other["step"], other["kind"])
        assert one["metrics"] == pytest.approx(other["metrics"], abs=1e-6)


def history(both: dict[str, Any], where: str) -> list[dict[str, Any]]:
    lines = (both["storage"] / where / "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def evaluations(both: dict[str, Any], where: str) -> list[dict[str, Any]]:
    return [record for record in history(both, where) if record["kind"] == "eval"]


def files_in(folder: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
