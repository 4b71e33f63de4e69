"""GPU memory by name, and the driver check before training."""

import pytest
from ray.util.accelerators import accelerators

from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.preflight import summary
from rm_ray.preflight.machines import Machine, MachineReport, report_gpus
from rm_ray.preflight.summary import GPU_MEMORY_GB, smallest_gpu


def machine(kind: str | None, *, num_gpus: int = 8) -> Machine:
    resources = {"CPU": 64.0, "GPU": float(num_gpus)}
    if kind is not None:
        resources[f"accelerator_type:{kind}"] = 1.0
    return Machine(node_id="node", name="one", resources=resources)


def test_every_gpu_name_is_known_to_ray():
    names = {value for value in vars(accelerators).values() if isinstance(value, str)}
    assert GPU_MEMORY_GB.keys() <= names


@pytest.mark.parametrize(
    ("kinds", "gigabytes"),
    [(["H100"], 80), (["H200", "H100"], 80), (["L4", "H100"], 24), (["B200"], 180)],
)
def test_the_smallest_gpu_counts(kinds, gigabytes):
    assert smallest_gpu([machine(kind) for kind in kinds]) == gigabytes * 10**9


def test_a_machine_without_gpus_does_not_count():
    assert smallest_gpu([machine(None, num_gpus=0), machine("H100")]) == 80 * 10**9


@pytest.mark.parametrize("kind", ["A100", "V100", None])
def test_memory_is_unknown_for_gpus_that_come_in_several_sizes(kind):
    assert smallest_gpu([machine("H100"), machine(kind)]) is None


def test_only_machines_with_gpus_are_asked_for_their_drivers(monkeypatch):
    asked = []

    def ask(machines):
        asked.extend(machines)
        return [
            MachineReport(
                name="one", gpu_error="nvidia-smi fails", missing_compiler="a C compiler (gcc)"
            )
        ]

    machines = [
        Machine(node_id=str(gpus), name="m", resources={"GPU": gpus, "CPU": 8}) for gpus in (0, 8)
    ]
    monkeypatch.setattr(summary, "list_machines", lambda: machines)
    monkeypatch.setattr(summary, "ask_gpus", ask)
    on_gpus = ClusterConfig(use_gpu=True)

    found = [(one.name, one.outcome) for one in summary.check_drivers(on_gpus, ModelConfig())]

    assert found == [("GPUs", "failed"), ("compiler", "warning")]
    assert asked == machines[1:]
    assert summary.check_drivers(ClusterConfig(), ModelConfig()) == []


def test_a_report_has_either_gpus_or_an_error():
    found = report_gpus()

    assert bool(found.gpus) != bool(found.gpu_error)
