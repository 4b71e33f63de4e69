"""A worker's memory against the memory of GPUs and machines."""

from rm_ray.estimate.memory_setting import MemorySetting
from rm_ray.estimate.moments import MemoryEstimate, Moment
from rm_ray.preflight.checks.memory import check_gpu_memory, check_machine_memory, options_of
from rm_ray.preflight.machines import Machine


def estimate_of(size: int) -> MemoryEstimate:
    return MemoryEstimate(moments=(Moment(name="update", weights=size, host=size),), on_gpu=True)


def test_a_worker_must_fit_in_the_usable_memory_of_its_gpu():
    size = 80 * 10**9
    assert check_gpu_memory(estimate_of(68 * 10**9), size, advice="").outcome == "ok"
    too_large = check_gpu_memory(estimate_of(69 * 10**9), size, advice="less")
    assert (too_large.outcome, too_large.remedy) == ("failed", "less")
    assert check_gpu_memory(estimate_of(1), None, advice="").outcome == "warning"


def test_a_machine_must_fit_all_its_workers():
    machine = Machine(node_id="1", name="one", resources={"memory": 200e9, "CPU": 8, "GPU": 8})
    options = {"num_workers": 64, "places": [8]}
    assert machine.places(cpus=2, use_gpu=True) == 4
    assert check_machine_memory(estimate_of(25 * 10**9), [machine], **options).outcome == "ok"
    verdict = check_machine_memory(estimate_of(30 * 10**9), [machine], **options)
    assert verdict.outcome == "warning"
    assert "one has 200 GB for 8 workers of 30.0 GB each" in verdict.found


def test_only_machines_that_may_get_workers_must_fit_them():
    small = Machine(node_id="1", name="one", resources={"memory": 1e9})
    needed = estimate_of(20 * 10**9)
    assert check_machine_memory(needed, [small], num_workers=8, places=[0]).outcome == "ok"
    assert check_machine_memory(needed, [small], num_workers=8, places=[1]).outcome == "warning"


def test_a_setting_is_written_as_command_line_options():
    setting = MemorySetting(dtype="bfloat16", zero_stage=2, offload="optimizer", checkpointing=True)
    assert options_of(setting) == (
        "--cluster.zero_stage 2 --cluster.offload optimizer --model.gradient_checkpointing True "
        "--model.activation_offloading False"
    )
