import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from base_models import make
from plain_training import NUM_STEPS, PlainRank, reset_accelerator, small_config

from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ResolvedModel
from rm_ray.errors import InputError
from rm_ray.train import placement, throughput
from rm_ray.worker import build
from rm_ray.worker.build import build_compute, build_model, choose_liger

FINE, WITHOUT = ("node-0", ""), ("node-1", "a C compiler (gcc)")


@pytest.mark.parametrize(
    ("choice", "on_gpu", "chosen"),
    [("auto", True, "off"), ("auto", False, "auto"), ("off", True, "off"), ("on", False, "on")],
)
def test_no_rank_uses_liger_if_one_cannot_compile_it(choice, on_gpu, chosen, monkeypatch, caplog):
    monkeypatch.setattr(build, "gather_objects", lambda value: [FINE, WITHOUT, WITHOUT])
    with caplog.at_level(logging.WARNING):
        assert choose_liger(choice, on_gpu=on_gpu) == chosen
    lines = [record.getMessage() for record in caplog.records]
    expected = "liger: continuing without, since Triton needs a C compiler (gcc) to compile"
    assert [line.startswith(expected) for line in lines] == [True] * (chosen != choice)


def test_liger_on_is_refused_if_it_cannot_be_compiled(monkeypatch):
    monkeypatch.setattr(build, "gather_objects", lambda value: [FINE, WITHOUT])
    with pytest.raises(InputError, match="kernels on node-1; install gcc and Python's headers"):
        choose_liger("on", on_gpu=True)


@pytest.mark.parametrize("choice", ["auto", "on"])
def test_liger_is_used_if_every_rank_can_compile_it(choice, monkeypatch):
    monkeypatch.setattr(build, "gather_objects", lambda value: [FINE, FINE])
    assert choose_liger(choice, on_gpu=True) == choice


@pytest.fixture
def quick_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "SIZES", {"cpu": (128,)})


def test_a_model_is_built_with_its_job_s_settings(tmp_path: Path, quick_peak):
    config = small_config(tmp_path)
    job = PlainRank.make(
        tmp_path, replace(config, cluster=replace(config.cluster, cpus_per_worker=2))
    ).job
    reset_accelerator()
    compute = build_compute(job)
    assert torch.get_num_threads() == 2
    assert compute.engine.zero_stage == 0
    assert (compute.collator.layout, compute.collator.kernel) == ("packed", "shared")
    assert compute.throughput.layout == "packed" and compute.throughput.matrix_peak > 0
    rates = [compute.learning_rate(step) for step in range(NUM_STEPS)]
    assert rates[:3] == [0.0, 5e-4, 1e-3]
    assert rates[-1] == pytest.approx(1e-3 / 6)


def test_weights_depend_on_the_seed_and_settling_does_not_change_them(tmp_path: Path, quick_peak):
    seen = []
    for seed in (3, 3, 4):
        config = small_config(tmp_path)
        config = replace(config, run=replace(config.run, seed=seed))
        reset_accelerator()
        seen.append(build_compute(PlainRank.make(tmp_path, config).job).engine.weights())
    same, other = (
        all(torch.equal(weight, seen[0][name]) for name, weight in weights.items())
        for weights in seen[1:]
    )
    assert same and not other


def test_a_deterministic_run_uses_only_deterministic_kernels(tmp_path: Path, quick_peak):
    config = small_config(tmp_path)
    config = replace(config, run=replace(config.run, deterministic=True))
    reset_accelerator()
    try:
        build_compute(PlainRank.make(tmp_path, config).job)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_weights_in_4_bits_are_not_made_from_different_files(tmp_path: Path, monkeypatch):
    """Each rank makes them from its own files, and nothing is sent that would make them one."""
    make(tmp_path / "base", "llama")
    model = ResolvedModel(
        name_or_path=str(tmp_path / "base"), tokenizer="builtin", quantization="nf4"
    )
    config = small_config(tmp_path, model=model, lora=LoraConfig(rank=2))
    job = PlainRank.make(tmp_path, config).job
    assert not build_model(job, torch.float32).sources
    hosts = [("node-0", "one"), ("node-1", "another")]
    monkeypatch.setattr(placement, "gather_objects", lambda value: hosts)
    with pytest.raises(InputError, match="weight files on node-0 differ from those on node-1"):
        build_model(job, torch.float32)
