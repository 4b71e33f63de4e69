import logging

import pytest
import torch

from rm_ray.errors import InputError
from rm_ray.runs.manifest import FoundCheckpoint, Manifest
from rm_ray.train.determinism import compute_deterministically, refusing_operations
from rm_ray.worker import state

FINE, WITHOUT = ("node-0", ""), ("node-1", "a C compiler (gcc)")


@pytest.mark.parametrize(
    ("choice", "on_gpu", "chosen"),
    [("auto", True, "off"), ("auto", False, "auto"), ("off", True, "off"), ("on", False, "on")],
)
def test_no_rank_takes_liger_where_one_cannot_compile_it(
    choice, on_gpu, chosen, monkeypatch, caplog
):
    monkeypatch.setattr(state, "gather_objects", lambda value: [FINE, WITHOUT, WITHOUT])
    with caplog.at_level(logging.WARNING):
        assert state.choose_liger(choice, on_gpu=on_gpu) == chosen
    lines = [record.getMessage() for record in caplog.records]
    expected = "liger: going on without, since Triton needs a C compiler (gcc) to compile"
    assert [line.startswith(expected) for line in lines] == [True] * (chosen != choice)


def test_liger_is_refused_where_it_is_asked_for_and_cannot_be_compiled(monkeypatch):
    monkeypatch.setattr(state, "gather_objects", lambda value: [FINE, WITHOUT])
    with pytest.raises(InputError, match="kernels on node-1; install gcc and Python's headers"):
        state.choose_liger("on", on_gpu=True)


@pytest.mark.parametrize("choice", ["auto", "on"])
def test_liger_is_taken_where_every_rank_can_compile_it(choice, monkeypatch):
    monkeypatch.setattr(state, "gather_objects", lambda value: [FINE, FINE])
    assert state.choose_liger(choice, on_gpu=True) == choice


@pytest.mark.parametrize("world_size", [2, 3])
def test_another_number_of_workers_is_said_to_change_bits(world_size, caplog):
    files = {f"{kind}-{rank:05d}.safetensors": {} for kind in ("slices", "rng") for rank in (0, 1)}
    manifest = Manifest(step=4, plan_fingerprint="", metrics={}, files=files)
    with caplog.at_level(logging.WARNING):
        state.warn_of_other_workers(FoundCheckpoint(name="step", manifest=manifest), world_size)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (world_size != 2)
    assert all("3 workers go on from a checkpoint of 2" in line for line in lines)


def test_an_operation_without_a_deterministic_kernel_is_refused_by_its_name():
    compute_deterministically()
    try:
        with (
            pytest.raises(InputError, match=r"run\.deterministic .*\(put_ does not have .*\); set"),
            refusing_operations(),
        ):
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
        with pytest.raises(RuntimeError, match="size") as other, refusing_operations():
            torch.ones(2) + torch.ones(3)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not isinstance(other.value, InputError)
