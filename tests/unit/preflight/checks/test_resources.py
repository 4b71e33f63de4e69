"""Disks and memory against the needs of a run."""

from pathlib import Path

from planned_runs import resolve_run

from rm_ray.preflight.checks.resources import check_resources
from rm_ray.preflight.machines import Machine, MachineReport
from rm_ray.preflight.resolved_run import ResolvedRun
from rm_ray.preflight.run_estimate import estimate_run

LARGE = Machine(node_id="a", name="large", resources={"CPU": 64.0, "GPU": 8.0, "memory": 4e11})
WITHOUT_GPU = Machine(node_id="b", name="other", resources={"CPU": 64.0, "memory": 1e9})
REPORTS = [
    MachineReport(name="large", staging="/tmp", staging_free=10**12),
    MachineReport(name="other", staging="/tmp", staging_free=1),
]


def on_gpus(folder: Path, **cluster: object) -> ResolvedRun:
    settings = {"num_workers": 8, "use_gpu": True, "cpus_per_worker": 4, "zero_stage": 3}
    model = {"name_or_path": "some/model", "dtype": "bfloat16"}
    return resolve_run(folder, model=model, cluster=settings | cluster)


def outcomes(resolved: ResolvedRun, gpu_memory: int | None, **options: bool) -> dict[str, str]:
    estimate = estimate_run(resolved, least_workers=None, gpu_memory=gpu_memory, most_steps=1)
    verdicts = check_resources(resolved, estimate, [LARGE, WITHOUT_GPU], REPORTS, **options)
    return {verdict.name: verdict.outcome for verdict in verdicts}


def test_only_machines_that_may_get_workers_are_checked(tmp_path):
    found = outcomes(on_gpus(tmp_path), 80 * 10**9, is_elsewhere=False)
    assert [*found] == ["disk", "staging", "GPU memory", "machine memory"]
    # 'other' has almost no disk and memory, and no GPU.
    assert (found["staging"], found["GPU memory"], found["machine memory"]) == ("ok",) * 3


def test_another_cluster_s_machines_are_not_checked_and_its_disks_only_warn(tmp_path):
    found = outcomes(on_gpus(tmp_path), 80 * 10**9, is_elsewhere=True)
    assert found["disk"] in ("ok", "warning")
    assert (found["staging"], found["machine memory"]) == ("warning", "ok")


def test_a_gpu_that_is_too_small_fails_and_the_remedy_names_options_that_fit(tmp_path):
    resolved = on_gpus(tmp_path, zero_stage=0)
    estimate = estimate_run(resolved, least_workers=None, gpu_memory=80 * 10**9, most_steps=1)
    verdicts = check_resources(resolved, estimate, [LARGE], REPORTS[:1], is_elsewhere=False)
    (gpu,) = [verdict for verdict in verdicts if verdict.name == "GPU memory"]
    assert gpu.outcome == "failed"
    assert gpu.remedy.startswith("--cluster.zero_stage 2 --cluster.offload none")
    tiny = estimate_run(resolved, least_workers=None, gpu_memory=4 * 10**9, most_steps=1)
    verdicts = check_resources(resolved, tiny, [LARGE], REPORTS[:1], is_elsewhere=False)
    (gpu,) = [verdict for verdict in verdicts if verdict.name == "GPU memory"]
    assert gpu.remedy.startswith("use more workers, or lower")


def test_cpu_workers_have_no_gpu_check(tmp_path):
    found = outcomes(on_gpus(tmp_path, use_gpu=False, zero_stage=0), None, is_elsewhere=False)
    assert "GPU memory" not in found
    assert found["machine memory"] == "warning"
