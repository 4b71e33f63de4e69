import logging
from datetime import date, datetime
from pathlib import Path

import pytest
from transformers import AutoConfig

from rm_ray.config.recipe import parse_config
from rm_ray.config.sections.data import DataConfig
from rm_ray.config.sections.run import RunConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import InputError
from rm_ray.preflight.planning import (
    check_worker_requirements,
    choose_layout,
    find_template_date,
    plan_settings,
    read_tokenizer,
)
from rm_ray.runs.layout import RUN
from rm_ray.storage import Storage

LEAP_DAY = date(2024, 2, 29)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("rm_ray"), "propagate", True)
    caplog.set_level(logging.INFO, logger="rm_ray")
    return caplog


def test_an_unpackable_model_is_padded_with_one_log_line(said):
    assert choose_layout("packed", AutoConfig.for_model("gemma2")) == "padded"
    (line,) = said.messages
    assert line.startswith("batch.layout: padded instead of packed, since 'gemma2' is not one of")


def test_a_supported_layout_is_kept_silently(said):
    assert choose_layout("packed", AutoConfig.for_model("llama")) == "packed"
    assert choose_layout("padded", AutoConfig.for_model("llama")) == "padded"
    assert choose_layout("padded", AutoConfig.for_model("gemma2")) == "padded"
    assert said.messages == []


def test_a_run_keeps_its_template_date(tmp_path: Path):
    config = TrainConfig(run=RunConfig(storage_path=str(tmp_path)))
    run_folder = Storage.open(str(tmp_path)).folder(config.run.name)
    assert find_template_date(config, run_folder) == datetime.now().date()

    run_folder.write_json(RUN, {"template_date": "2024-02-29"})

    assert find_template_date(config, run_folder) == LEAP_DAY
    given = TrainConfig(run=config.run, data=DataConfig(template_date="2023-01-01"))
    assert find_template_date(given, run_folder) == date(2023, 1, 1)


def test_gpu_kernels_are_refused_for_workers_without_gpus(tmp_path: Path):
    config = parse_config({"model": {"liger": "on"}, "cluster": {"use_gpu": False}})

    with pytest.raises(InputError, match=r"model\.liger is 'on', but Liger's .* need a GPU"):
        check_worker_requirements(config, Storage.open(str(tmp_path)))


def test_activations_are_not_offloaded_from_cpus(tmp_path: Path):
    model = {"gradient_checkpointing": True, "activation_offloading": True}
    config = parse_config({"model": model, "cluster": {"use_gpu": False}})

    with pytest.raises(InputError, match=r"activation_offloading is true, .* have no GPU"):
        check_worker_requirements(config, Storage.open(str(tmp_path)))


def test_a_config_without_a_tokenizer_needs_model_tokenizer(tmp_path: Path):
    path = tmp_path / "model.json"
    path.write_text("{}")

    with pytest.raises(InputError, match=r"config without a tokenizer\. Set model\.tokenizer"):
        read_tokenizer(parse_config({"model": {"name_or_path": str(path)}}))


def test_the_plan_takes_batch_sizes_seed_and_epochs_from_the_config():
    config = parse_config(
        {
            "run": {"seed": 7},
            "batch": {"global_batch_size": 3, "tokens_per_micro_batch": 11},
            "optimizer": {"epochs": 2, "max_episodes": 5},
        }
    )
    settings = plan_settings(config, layout="padded", attention_weight=0.5)

    assert (settings.seed, settings.epochs, settings.max_episodes) == (7, 2, 5)
    assert (settings.global_batch_size, settings.tokens_per_micro_batch) == (3, 11)
    assert (settings.layout, settings.attention_weight) == ("padded", 0.5)
