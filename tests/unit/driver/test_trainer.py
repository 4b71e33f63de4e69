from pathlib import Path

import pytest
from resolved_runs import builtin_run

from rm_ray.config.sections.cluster import ResolvedCluster
from rm_ray.driver.attempt_handle import AttemptHandle
from rm_ray.driver.trainer import build_job, scaling_config, streams
from rm_ray.runs.attempts import Attempt
from rm_ray.runs.startup import Startup


def test_a_job_combines_the_resolved_run_and_the_attempt(tmp_path: Path):
    resolved = builtin_run(tmp_path)
    earlier = [Attempt(number=1, began=0, updated=60, ending="lost", skips=2)]
    attempt_handle = AttemptHandle(number=2, startup=Startup(began=100.0), earlier=earlier)

    job = build_job(resolved, attempt_handle, run_key="key", channel=None)

    assert job.config is resolved.config
    assert (job.attempt, job.run_began, job.skipped) == (2, 40.0, {2})
    assert job.steps == resolved.plan.steps
    assert job.plan_fingerprint == resolved.identity["plan"]
    (held_out,) = job.held_out
    assert (held_out.name, held_out.dataset, held_out.prefix) == ("rm", "eval", "eval/rm")
    assert held_out.steps == resolved.held_out_sets[0].steps
    assert held_out.sources is not None
    assert len(held_out.sources.codes) == 8


@pytest.mark.parametrize(
    ("use_gpu", "resources"), [(False, {"CPU": 3}), (True, {"CPU": 3, "GPU": 1})]
)
def test_each_worker_gets_its_own_cpus_and_gpu(use_gpu: bool, resources: dict[str, int]):
    cluster = ResolvedCluster(num_workers=4, use_gpu=use_gpu, cpus_per_worker=3)
    scaling = scaling_config(cluster)

    assert (scaling.num_workers, scaling.use_gpu) == (4, use_gpu)
    assert scaling.resources_per_worker == resources


def test_workers_read_the_training_pairs_as_planned_and_the_held_out_ones_once(tmp_path: Path):
    resolved = builtin_run(tmp_path, optimizer={"epochs": 3})
    found = streams(resolved)

    assert list(found) == ["train", "eval"]
    assert found["train"].settings == resolved.plan.settings
    assert found["eval"].settings.epochs == 1
    assert list(streams(builtin_run(tmp_path / "alone", num_held_out=0))) == ["train"]


def test_each_named_set_is_a_stream_and_comes_after_the_default_one(tmp_path: Path):
    resolved = builtin_run(tmp_path, named_sets={"more": 5, "fewer": 3}, optimizer={"epochs": 3})
    job = build_job(resolved, AttemptHandle(), run_key="key", channel=None)

    assert [one.name for one in job.held_out] == ["rm", "more", "fewer"]
    assert [one.steps.num_groups for one in job.held_out] == [8, 5, 3]
    found = streams(resolved)
    assert list(found) == ["train", *(one.dataset for one in job.held_out)]
    assert list(found)[2:] == ["eval/more", "eval/fewer"]
    assert all(found[one.dataset].settings == one.steps.settings for one in job.held_out)
