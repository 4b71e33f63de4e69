"""Checks that pass and fail for real, and verdicts on what machines say."""

from dataclasses import replace

import pytest

from rm_ray.cluster.gpus import Gpu, explain_no_cuda, find_cuda, parse_gpu
from rm_ray.config.train_config import CheckpointConfig, ModelConfig
from rm_ray.errors import InputError
from rm_ray.estimate.gpu_memory import usable
from rm_ray.estimate.memory import MemoryEstimate, Moment
from rm_ray.model.base_check import BaseModel
from rm_ray.preflight import checks
from rm_ray.preflight.machines import (
    Machine,
    MachineProbe,
    MachineReport,
    find_software,
    make_report,
)
from rm_ray.storage import Storage

H100 = Gpu(name="NVIDIA H100", memory=80 * 10**9, driver="570.86.15", capability=9.0)
NODE = MachineReport(name="one", staging="/tmp", staging_free=10**12, cuda="12.8", gpus=(H100,))


def estimate_of(size: int) -> MemoryEstimate:
    return MemoryEstimate(moments=(Moment(name="update", weights=size, host=size),), on_gpu=True)


def test_a_storage_that_all_reach_is_read_back(tmp_path):
    storage = Storage.open(str(tmp_path))
    with checks.left_by_driver(storage) as token:
        reports = [
            make_report(MachineProbe(storage=storage, token=token, node_id=node))
            for node in ("a", "b")
        ]
        written = {info.base_name for info in storage.list(token)} - {"driver"}
    assert written == {"a", "b"}
    assert checks.check_storage(reports, written, storage).outcome == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_is_another_folder_elsewhere_fails(tmp_path):
    here, there = (Storage.open(str(tmp_path / name)) for name in ("here", "there"))
    with checks.left_by_driver(here) as token:
        reports = [make_report(MachineProbe(storage=there, token=token, node_id="a"))]
    verdict = checks.check_storage(reports, [], here)
    assert verdict.outcome == "failed"
    assert "it is not the same folder" in verdict.found
    # What the machine wrote does not reach the driver.
    alone = [replace(reports[0], storage_error="")]
    assert "0 of 1 machines" in checks.check_storage(alone, [], here).found


def test_a_storage_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("no folder")
    storage = Storage.open(str(tmp_path / "file" / "runs"))
    with pytest.raises(InputError, match="cannot be written"), checks.left_by_driver(storage):
        pass


def test_a_disk_must_hold_the_checkpoints_that_are_kept_and_two_more(tmp_path):
    storage = Storage.open(str(tmp_path / "not" / "yet"))
    many = CheckpointConfig(every_steps=1, keep=3)
    verdict = checks.check_disk(storage, many, num_parameters=1_000_000, num_steps=100)
    assert verdict.outcome == "ok"
    assert "5 checkpoints and the model take up to 0.06 GB" in verdict.found
    there = checks.check_disk(
        storage, many, num_parameters=1_000_000, num_steps=100, num_there=many.keep
    )
    assert "of which 0.04 GB are there" in there.found
    once = checks.check_disk(storage, CheckpointConfig(), num_parameters=10**6, num_steps=100)
    assert "1 checkpoint and the model" in once.found
    assert checks.check_disk(storage, many, num_parameters=10**14, num_steps=9).outcome == "failed"


def test_a_machine_without_room_for_a_checkpoint_is_named():
    small = replace(NODE, name="two", staging_free=10**9)
    verdict = checks.check_staging([NODE, small], num_parameters=10**9)
    assert verdict.outcome == "warning"
    assert "two has 1.0 GB free in /tmp" in verdict.found
    assert "one" not in verdict.found
    assert checks.check_staging([NODE], num_parameters=10**9).outcome == "ok"
    assert checks.check_staging([replace(NODE, staging_error="x")], num_parameters=1).remedy


def test_a_base_model_is_told_by_what_its_files_hold():
    config = ModelConfig(name_or_path="someone/model")
    whole = checks.check_model(config, lambda: BaseModel(num_weights=291, has_head=True))
    assert whole.outcome == "ok"
    assert "291 weights, all that are needed, in whole files; its head is replaced" in whole.found
    some = BaseModel(num_weights=291, has_head=False, unused=("a", "b", "c", "d"))
    verdict = checks.check_model(config, lambda: some)
    assert verdict.outcome == "warning"
    assert "4 have no place in the model: a, b, c and 1 more" in verdict.found
    assert "seen when read" in checks.check_model(config, lambda: None).found
    assert checks.check_model(ModelConfig(), lambda: None).found == "the built-in one"


def test_software_that_differs_is_named():
    here = find_software()
    assert here["torch"].startswith("2.")
    same = replace(NODE, software=here)
    assert checks.check_software([same], here).outcome == "ok"
    old = replace(NODE, name="two", software=here | {"torch": "2.0"})
    verdict = checks.check_software([same, old], here)
    assert verdict.outcome == "failed"
    assert f"two has torch 2.0 instead of {here['torch']}" in verdict.found


def test_a_machine_that_does_not_answer_fails():
    verdict = checks.check_answers([NODE, MachineReport(name="two", error="no answer in 120 s")])
    assert verdict.outcome == "failed"
    assert "two: no answer" in verdict.found
    without_us = MachineReport(name="two", error="ModuleNotFoundError: No module named 'rm_ray'")
    assert "--working-dir" in checks.check_answers([without_us]).remedy


@pytest.mark.parametrize(
    ("node", "outcome", "told"),
    [
        (NODE, "ok", "1 x NVIDIA H100, 80 GB; driver 570.86.15"),
        (replace(NODE, gpus=(), gpu_error="nvidia-smi fails"), "failed", "one: nvidia-smi fails"),
        (replace(NODE, cuda=None), "failed", "without CUDA on one"),
        (replace(NODE, cuda="13.0"), "failed", "driver 570.86.15, and PyTorch's CUDA 13.0 needs"),
        (replace(NODE, gpus=(replace(H100, driver="580.105.08"),), cuda="13.0"), "ok", "580.105"),
        (replace(NODE, gpus=(replace(H100, driver="525.147.05"),), cuda="12.8"), "ok", "525.147"),
        (replace(NODE, gpus=(replace(H100, memory=None),)), "ok", "memory unknown"),
        (replace(NODE, gpus=(replace(H100, capability=7.5),)), "warning", "without bfloat16"),
        (replace(NODE, gpus=(H100, replace(H100, name="A100"))), "warning", "2 x A100, 80 GB and"),
        (replace(NODE, gpus=()), "warning", "none to look at"),
    ],
)
def test_gpus_and_their_driver(node, outcome, told):
    verdict = checks.check_gpus([node], use_gpu=True, dtype="bfloat16")
    assert verdict.outcome == outcome
    assert told in verdict.found
    assert checks.check_gpus([node], use_gpu=False, dtype="bfloat16").outcome == "ok"


@pytest.mark.parametrize(
    ("cuda", "gpus", "error", "told"),
    [
        (None, (H100,), "", "PyTorch is built without CUDA; install the PyTorch of"),
        ("13.0", (), "there is no nvidia-smi", "there is no nvidia-smi; mend the driver"),
        ("13.0", (), "", "nvidia-smi lists none; mend the driver"),
        ("13.0", (H100,), "", "its driver is 570.86.15, and PyTorch's CUDA 13.0 needs 580.65 or"),
        ("12.8", (H100,), "", "CUDA 12.8 does not start with driver 570.86.15, which is new"),
    ],
)
def test_why_a_worker_has_no_gpu_is_told_with_what_to_do(cuda, gpus, error, told):
    said = explain_no_cuda("node-1", cuda, gpus, error)
    assert said.startswith(f"a worker on node-1 is to train on a GPU, but {told}")


@pytest.mark.parametrize(("liger", "outcome"), [("auto", "warning"), ("on", "failed")])
def test_a_machine_on_which_liger_cannot_be_compiled_is_named(liger, outcome):
    without = replace(NODE, missing_compiler="a C compiler (gcc)")
    verdict = checks.check_compiler([NODE, without], use_gpu=True, liger=liger)
    assert verdict is not None
    assert verdict.outcome == outcome
    assert verdict.found == "one lacks a C compiler (gcc): Liger's kernels need it"
    assert "apt-get install gcc python3-dev" in verdict.remedy
    fine = checks.check_compiler([NODE], use_gpu=True, liger=liger)
    assert fine is not None
    assert fine.outcome == "ok"


def test_no_compiler_is_asked_for_where_no_kernel_is_compiled():
    without = replace(NODE, missing_compiler="a C compiler (gcc)")
    assert checks.check_compiler([without], use_gpu=False, liger="on") is None
    assert checks.check_compiler([without], use_gpu=True, liger="off") is None
    assert checks.check_compiler([replace(NODE, gpus=())], use_gpu=True, liger="on") is None


def test_the_driver_s_own_words_are_read():
    line = "NVIDIA H100 80GB HBM3, 81559, 570.86.15, 9.0"
    gpu = Gpu(
        name="NVIDIA H100 80GB HBM3", memory=81559 * 2**20, driver="570.86.15", capability=9.0
    )
    assert parse_gpu(line) == gpu
    assert parse_gpu("NVIDIA GB10, [N/A], 580.95.05, 12.1").memory is None


def test_the_cuda_of_pytorch_is_known_without_importing_it():
    import torch

    assert find_cuda() == torch.version.cuda


def test_a_gpu_must_have_room_beside_what_cuda_takes():
    size = 80 * 10**9
    assert usable(size) == pytest.approx(0.95 * 0.92 * 78e9)
    assert checks.check_gpu_memory(estimate_of(68 * 10**9), size, advice="").outcome == "ok"
    too_large = checks.check_gpu_memory(estimate_of(69 * 10**9), size, advice="less")
    assert (too_large.outcome, too_large.remedy) == ("failed", "less")
    assert checks.check_gpu_memory(estimate_of(1), None, advice="").outcome == "warning"


def test_a_machine_must_hold_the_models_of_all_its_workers():
    machine = Machine(node_id="1", name="one", resources={"memory": 200e9, "CPU": 8, "GPU": 8})
    options = {"num_workers": 64, "places": [8]}
    assert machine.places(cpus=2, use_gpu=True) == 4
    assert (
        checks.check_machine_memory(estimate_of(25 * 10**9), [machine], **options).outcome == "ok"
    )
    verdict = checks.check_machine_memory(estimate_of(30 * 10**9), [machine], **options)
    assert verdict.outcome == "warning"
    assert "one has 200 GB for 8 workers of 30.0 GB each" in verdict.found


def test_a_cluster_without_the_workers_fails_unless_it_is_not_the_one():
    machine = Machine(node_id="1", name="one", resources={"CPU": 8})
    preferences = [
        checks.check_cluster([machine], "64 workers", refusal, is_elsewhere=elsewhere).outcome
        for refusal, elsewhere in ((None, False), ("too few GPUs", False), ("too few GPUs", True))
    ]
    assert preferences == ["ok", "failed", "warning"]


def test_a_missing_path_is_named():
    assert checks.check_paths([NODE]) is None
    verdict = checks.check_paths([replace(NODE, missing_paths=("/models/8b",))])
    assert verdict is not None
    assert "one has no /models/8b" in verdict.found
