"""Checks of the machines' reports."""

from dataclasses import replace

import pytest

from rm_ray.cluster.gpus import Gpu
from rm_ray.config.sections.model import ModelConfig
from rm_ray.preflight.checks.machines import (
    check_answers,
    check_cluster,
    check_compiler,
    check_gpus,
    check_machines,
    check_paths,
    check_software,
    list_paths,
)
from rm_ray.preflight.machines import Machine, MachineReport, find_software
from rm_ray.storage import Storage

H100 = Gpu(name="NVIDIA H100", memory=80 * 10**9, driver="570.86.15", capability=9.0)
NODE = MachineReport(name="one", staging="/tmp", staging_free=10**12, cuda="12.8", gpus=(H100,))


def test_different_software_is_named():
    here = find_software()
    assert here["torch"].startswith("2.")
    same = replace(NODE, software=here)
    assert check_software([same], here).outcome == "ok"
    old = replace(NODE, name="two", software=here | {"torch": "2.0"})
    verdict = check_software([same, old], here)
    assert verdict.outcome == "failed"
    assert f"two has torch 2.0 instead of {here['torch']}" in verdict.found


def test_a_machine_that_does_not_answer_fails():
    verdict = check_answers([NODE, MachineReport(name="two", error="no answer in 120 s")])
    assert verdict.outcome == "failed"
    assert "two: no answer" in verdict.found
    without_us = MachineReport(name="two", error="ModuleNotFoundError: No module named 'rm_ray'")
    assert "--working-dir" in check_answers([without_us]).remedy


@pytest.mark.parametrize(
    ("node", "outcome", "found"),
    [
        (NODE, "ok", "1 x NVIDIA H100, 80 GB; driver 570.86.15"),
        (replace(NODE, gpus=(), gpu_error="nvidia-smi fails"), "failed", "one: nvidia-smi fails"),
        (replace(NODE, cuda=None), "failed", "without CUDA on one"),
        (replace(NODE, cuda="13.0"), "failed", "driver 570.86.15, but PyTorch's CUDA 13.0 needs"),
        (replace(NODE, gpus=(replace(H100, driver="580.105.08"),), cuda="13.0"), "ok", "580.105"),
        (replace(NODE, gpus=(replace(H100, driver="525.147.05"),), cuda="12.8"), "ok", "525.147"),
        (replace(NODE, gpus=(replace(H100, memory=None),)), "ok", "memory unknown"),
        (replace(NODE, gpus=(replace(H100, capability=7.5),)), "warning", "without bfloat16"),
        (replace(NODE, gpus=(H100, replace(H100, name="A100"))), "warning", "2 x A100, 80 GB and"),
        (replace(NODE, gpus=()), "warning", "none in this cluster"),
    ],
)
def test_gpus_and_drivers_are_checked(node, outcome, found):
    verdict = check_gpus([node], use_gpu=True, dtype="bfloat16")
    assert verdict.outcome == outcome
    assert found in verdict.found
    assert check_gpus([node], use_gpu=False, dtype="bfloat16").outcome == "ok"


@pytest.mark.parametrize(("liger", "outcome"), [("auto", "warning"), ("on", "failed")])
def test_a_machine_that_cannot_compile_liger_is_named(liger, outcome):
    without = replace(NODE, missing_compiler="a C compiler (gcc)")
    verdict = check_compiler([NODE, without], use_gpu=True, liger=liger)
    assert verdict is not None
    assert verdict.outcome == outcome
    assert verdict.found == "one lacks a C compiler (gcc): Liger's kernels need it"
    assert "apt-get install gcc python3-dev" in verdict.remedy
    fine = check_compiler([NODE], use_gpu=True, liger=liger)
    assert fine is not None
    assert fine.outcome == "ok"


def test_no_compiler_is_needed_without_liger_or_gpus():
    without = replace(NODE, missing_compiler="a C compiler (gcc)")
    assert check_compiler([without], use_gpu=False, liger="on") is None
    assert check_compiler([without], use_gpu=True, liger="off") is None
    assert check_compiler([replace(NODE, gpus=())], use_gpu=True, liger="on") is None


def test_a_cluster_without_room_fails_unless_another_will_train():
    machine = Machine(node_id="1", name="one", resources={"CPU": 8})
    outcomes = [
        check_cluster([machine], "64 workers", refusal, is_elsewhere=elsewhere).outcome
        for refusal, elsewhere in (("", False), ("too few GPUs", False), ("too few GPUs", True))
    ]
    assert outcomes == ["ok", "failed", "warning"]


def test_a_missing_path_is_named():
    assert check_paths([NODE]) is None
    verdict = check_paths([replace(NODE, missing_paths=("/models/8b",))])
    assert verdict is not None
    assert "one has no /models/8b" in verdict.found


def test_workers_need_the_local_files_that_the_settings_name(tmp_path):
    (tmp_path / "model").mkdir()
    local = str(tmp_path / "model")
    assert list_paths(ModelConfig(name_or_path=local, tokenizer="some/tokenizer")) == (local,)
    assert list_paths(ModelConfig()) == ()


def test_machines_are_not_probed_if_the_storage_is_not_writable(tmp_path):
    (tmp_path / "file").write_text("no folder")
    storage = Storage.open(str(tmp_path / "file" / "runs"))
    found = check_machines([], storage, ModelConfig(), use_gpu=False)
    assert not found.is_storage_writable
    assert [(v.name, v.outcome) for v in found.verdicts] == [("storage", "failed")]
    assert found.reports == ()
