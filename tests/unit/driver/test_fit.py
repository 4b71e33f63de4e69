from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions
import ray.train
from plain_training import PlainRank, small_config

from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.sections.evaluation import EvaluationConfig
from rm_ray.driver import fit
from rm_ray.driver.fit import add_late_evaluations, can_read, cores_of, run_workers
from rm_ray.driver.hang_detector import Hang
from rm_ray.errors import InputError, LostError
from rm_ray.runs.history import History, Record
from rm_ray.runs.late_evaluations import LateEvaluation
from rm_ray.runs.layout import RUN
from rm_ray.storage import Storage
from rm_ray.worker.beside.pending import late_evaluations


@pytest.fixture
def run_folder(tmp_path: Path) -> Storage:
    storage = Storage.open(str(tmp_path))
    storage.write_json(RUN, {})
    return storage


class Trainer:
    """A trainer that returns rank 0's value, or raises Ray Train's error."""

    def __init__(self, outcome: dict[str, Any] | Exception | None) -> None:
        self._outcome = outcome

    def fit(self) -> SimpleNamespace:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return SimpleNamespace(return_value=self._outcome)


def run(outcome: Any, run_folder: Storage, hang: Hang | None = None) -> dict[str, Any]:
    trainer: Any = Trainer(outcome)
    watch: Any = SimpleNamespace(hang=hang)
    return run_workers(trainer, watch, run_folder)


def test_the_return_value_of_rank_0_is_the_outcome(run_folder: Storage):
    assert run({"steps": 10}, run_folder) == {"steps": 10}
    assert run(None, run_folder) == {}


@pytest.mark.parametrize(
    ("cluster", "asked"),
    [
        (ClusterConfig(cpus_per_worker=3, num_workers=1, use_gpu=False), [3]),
        (ClusterConfig(cpus_per_worker=3, num_workers=2, use_gpu=False), []),
        (ClusterConfig(cpus_per_worker=3, num_workers=1, use_gpu=True), []),
    ],
)
def test_only_a_lone_worker_without_gpu_gets_cores_of_its_own(
    monkeypatch: pytest.MonkeyPatch, cluster: ClusterConfig, asked: list[int]
):
    found: list[int] = []
    own = nullcontext("cores")
    monkeypatch.setattr(fit, "own_cores", lambda count: found.append(count) or own)
    resolved: Any = SimpleNamespace(config=SimpleNamespace(cluster=cluster))
    with cores_of(resolved) as cores:
        assert cores == ("cores" if asked else None)
    assert found == asked


def test_a_run_that_goes_on_within_keeps_what_was_evaluated_beside(tmp_path: Path):
    config = small_config(tmp_path, evaluation=EvaluationConfig(where="within"))
    job = PlainRank.make(tmp_path, config).job
    own = Record(step=8, kind="eval", episode=48, hours=0.0, metrics={"eval/rm/loss": 0.2})
    outcome = {"history": History([own]).to_json_lines(), "metrics": own.metrics}
    assert add_late_evaluations(outcome, job, None, None) is outcome

    late = replace(own, step=4, metrics={"eval/rm/loss": 0.1})
    late_evaluations(job).write(LateEvaluation(step=4, attempt=1, tries=1, record=late))
    merged = add_late_evaluations(outcome, job, None, None)
    assert History.from_json_lines(merged["history"].splitlines()).records == [late, own]
    assert merged["metrics"] == own.metrics
    assert merged["steps_not_evaluated"] == []


def test_wrong_input_found_by_a_worker_is_an_input_error(run_folder: Storage):
    refused = ray.train.WorkerGroupError("failed", {0: InputError("model.liger is 'on', but ...")})

    with pytest.raises(InputError, match=r"model\.liger"):
        run(refused, run_folder)


def test_a_missing_file_is_an_outage_only_if_the_storage_is_unreadable(run_folder: Storage):
    failed = ray.train.WorkerGroupError("failed", {0: FileNotFoundError(2, "missing", "x.cu")})

    with pytest.raises(LostError) as caught:
        run(failed, run_folder)
    assert not caught.value.is_outage

    run_folder.delete_file(RUN)
    with pytest.raises(LostError) as caught:
        run(failed, run_folder)
    assert caught.value.is_outage


@pytest.mark.parametrize(
    "error",
    [ray.train.WorkerGroupError("failed", {}), ray.exceptions.RayActorError()],
    ids=["of the workers", "of Ray"],
)
def test_killing_hung_workers_loses_the_attempt_because_of_the_hang(
    error: Exception, run_folder: Storage
):
    hang = Hang(ranks=(), reason="no rank made progress for 180 s", signature="connecting")

    with pytest.raises(LostError) as caught:
        run(error, run_folder, hang)
    assert (caught.value.cause, caught.value.signature) == (hang.reason, "connecting")


def test_a_failed_ray_is_reported_with_its_error(run_folder: Storage):
    with pytest.raises(LostError, match=r"^Ray failed \(RayActorError"):
        run(ray.exceptions.RayActorError(), run_folder)


def test_a_storage_works_if_it_can_read_the_run_record(run_folder: Storage):
    assert can_read(run_folder)
    run_folder.write_text(RUN, "{")
    assert not can_read(run_folder)
    run_folder.delete_file(RUN)
    assert not can_read(run_folder)
