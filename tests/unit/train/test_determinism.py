import os

import pytest
import torch

from rm_ray.errors import InputError
from rm_ray.train.determinism import (
    KERNELS,
    ask_for_determinism,
    compute_deterministically,
    refusing_operations,
)


@pytest.fixture
def deterministic():
    compute_deterministically()
    yield
    torch.use_deterministic_algorithms(False)


def add_at_equal_places() -> None:
    """Run an operation without a deterministic kernel."""
    torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))


def test_the_variables_that_libraries_read_on_first_use_are_set(monkeypatch):
    for name in KERNELS:
        monkeypatch.setenv(name, "before")
    ask_for_determinism()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert os.environ["FLASH_ATTENTION_DETERMINISTIC"] == "1"


def test_uninitialized_memory_is_not_filled(deterministic):
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory


def test_the_error_names_the_operation_without_a_deterministic_kernel(deterministic):
    with (
        pytest.raises(InputError, match=r"run\.deterministic .*\(put_ does not have .*\)\. Set"),
        refusing_operations(),
    ):
        add_at_equal_places()


def test_other_errors_pass_unchanged(deterministic):
    with pytest.raises(RuntimeError, match="size") as other, refusing_operations():
        torch.ones(2) + torch.ones(3)
    assert not isinstance(other.value, InputError)


def test_the_same_operation_passes_without_determinism():
    with refusing_operations():
        add_at_equal_places()
