"""GPUs as nvidia-smi lists them, and why a worker has none."""

import pytest

from rm_ray.cluster.gpus import Gpu, explain_no_cuda, find_cuda, parse_gpu

H100 = Gpu(name="NVIDIA H100", memory=80 * 10**9, driver="570.86.15", capability=9.0)


@pytest.mark.parametrize(
    ("cuda", "gpus", "error", "told"),
    [
        (None, (H100,), "", "PyTorch is built without CUDA; install the PyTorch from"),
        ("13.0", (), "nvidia-smi is missing", "nvidia-smi is missing; fix that machine's driver"),
        ("13.0", (), "", "nvidia-smi lists none; fix that machine's driver"),
        ("13.0", (H100,), "", "its driver is 570.86.15, and PyTorch's CUDA 13.0 needs 580.65 or"),
        ("12.8", (H100,), "", "CUDA 12.8 does not start with driver 570.86.15, which is new"),
    ],
)
def test_a_worker_without_a_gpu_is_explained_with_a_remedy(cuda, gpus, error, told):
    said = explain_no_cuda("node-1", cuda, gpus, error)
    assert said.startswith(f"a worker on node-1 needs a GPU, but {told}")


def test_a_line_of_nvidia_smi_is_parsed():
    line = "NVIDIA H100 80GB HBM3, 81559, 570.86.15, 9.0"
    gpu = Gpu(
        name="NVIDIA H100 80GB HBM3", memory=81559 * 2**20, driver="570.86.15", capability=9.0
    )
    assert parse_gpu(line) == gpu
    assert parse_gpu("NVIDIA GB10, [N/A], 580.95.05, 12.1").memory is None


def test_the_cuda_version_is_found_without_importing_torch():
    import torch

    assert find_cuda() == torch.version.cuda
