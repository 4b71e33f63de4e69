from pathlib import Path
from typing import Any

import pytest

from rm_ray.config.sweep import (
    AshaConfig,
    Dimension,
    SweepConfig,
    parse_sweep,
    read_sweep,
    takes_whole_numbers,
)
from rm_ray.errors import InputError

RATES = {"optimizer.learning_rate": {"grid": [1e-6, 3e-6]}}


def refusal_of(given: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        parse_sweep(given, "sweep.yaml")
    return str(caught.value)


def test_a_file_gives_dimensions_seeds_and_early_stopping(tmp_path: Path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "settings:\n"
        "  optimizer.learning_rate: {loguniform: [1.0e-6, 1.0e-4]}\n"
        "  batch.global_batch_size: {grid: [32, 64]}\n"
        "seeds: [3, 5]\nsamples: 4\nmetric: eval/rm/accuracy\nmax_parallel: 2\n"
        "asha: {grace_steps: 10, reduction_factor: 4}\n"
    )
    assert read_sweep(path) == SweepConfig(
        settings={
            "optimizer.learning_rate": Dimension(loguniform=(1e-6, 1e-4)),
            "batch.global_batch_size": Dimension(grid=(32, 64)),
        },
        seeds=(3, 5),
        samples=4,
        metric="eval/rm/accuracy",
        max_parallel=2,
        asha=AshaConfig(grace_steps=10, reduction_factor=4),
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "settings must have at least one setting"),
        ({"settings": {}}, "settings must have at least one setting"),
        ({"settings": RATES, "sedes": 3}, "unknown field 'sedes'; did you mean 'seeds'?"),
        (
            {"settings": {"optimizer.learnin_rate": {"grid": [1]}}},
            "unknown setting 'optimizer.learnin_rate'; did you mean 'optimizer.learning_rate'?",
        ),
        ({"settings": {"run.seed": {"grid": [1]}}}, "list the seeds under 'seeds'"),
        ({"settings": {"hub.repo_id": {"grid": ["a/b"]}}}, "it is not about training"),
        ({"settings": {"optimizer.learning_rate": [1e-6]}}, "must contain fields, got [1e-06]"),
        (
            {"settings": {"optimizer.learning_rate": {"gird": [1e-6]}}},
            "unknown field 'settings.optimizer.learning_rate.gird'; did you mean",
        ),
        (
            {"settings": {"optimizer.learning_rate": {"grid": [1], "choice": [2]}}},
            "must be given by exactly one of grid, choice, uniform and loguniform",
        ),
        (
            {"settings": {"batch.layout": {"grid": []}}},
            "settings.batch.layout: grid must be a list",
        ),
        (
            {"settings": {"optimizer.learning_rate": {"uniform": [2, 1]}}},
            "uniform must be two finite numbers, the lower one first, got [2.0, 1.0]",
        ),
        (
            {"settings": {"optimizer.learning_rate": {"loguniform": [0, 1]}}},
            "loguniform must be above 0",
        ),
        (
            {"settings": {"optimizer.epochs": {"uniform": [1.2, 1.4]}}},
            "settings.optimizer.epochs.uniform must be whole numbers, because the setting takes no",
        ),
        (
            {"settings": {"objective.label_smoothing": {"grid": [0.0, 0.2]}}},
            "metric must be no loss where 'objective.label_smoothing' is swept",
        ),
        (
            {"settings": {"objective.loss": {"grid": ["regression"]}}, "metric": "eval/chat/loss"},
            "such as eval/rm/accuracy, got 'eval/chat/loss'",
        ),
        ({"settings": RATES, "seeds": 0}, "seeds must be a number of at least 1"),
        ({"settings": RATES, "seeds": [1, 1]}, "seeds must be a list without repetitions"),
        ({"settings": RATES, "seeds": True}, "seeds must not be true or false"),
        ({"settings": RATES, "samples": 2}, "samples must be 1 where no setting is drawn"),
        ({"settings": RATES, "metric": "train/rm/loss"}, "metric must be one of the held-out"),
        ({"settings": RATES, "max_parallel": 0}, "max_parallel must be at least 1, got 0"),
        ({"settings": RATES, "asha": {"grace_steps": 0}}, "asha.grace_steps must be at least 1"),
        ({"settings": RATES, "asha": {"grace": 5}}, "unknown field 'asha.grace'; did you mean"),
        ({"settings": RATES, "asha": {}}, "asha.grace_steps: Field required"),
        (
            {"settings": RATES, "asha": {"grace_steps": 5, "reduction_factor": 1}},
            "asha.reduction_factor must be at least 2",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_file(given: dict[str, Any], message: str):
    refusal = refusal_of(given)
    assert refusal.startswith("sweep.yaml: ")
    assert message in refusal


def test_a_date_is_no_value_of_a_setting(tmp_path: Path):
    path = tmp_path / "sweep.yaml"
    path.write_text("settings:\n  data.template_date: {grid: [2026-11-28]}\n")
    with pytest.raises(InputError, match="a list of numbers, texts and lists of them"):
        read_sweep(path)


def test_a_missing_file_is_named_with_its_option(tmp_path: Path):
    with pytest.raises(InputError, match=f"--sweep {tmp_path}/none.yaml: no such file"):
        read_sweep(tmp_path / "none.yaml")
    (tmp_path / "other.yaml").touch()
    with pytest.raises(InputError, match=f"Files in its folder: {tmp_path}/other.yaml"):
        read_sweep(tmp_path / "none.yaml")


def test_losses_are_compared_where_the_objective_stays_and_with_centering():
    for name in ("optimizer.learning_rate", "objective.centering"):
        assert parse_sweep({"settings": {name: {"grid": [0.01, 0.1]}}}, "sweep.yaml").settings
    margins = {"settings": {"objective.margin": {"grid": ["add", "ignore"]}}}
    assert parse_sweep(margins | {"metric": "eval/rm/accuracy"}, "sweep.yaml").settings


def test_seeds_are_counted_from_the_recipe_s():
    assert SweepConfig(settings={}, seeds=3).list_seeds(7) == (7, 8, 9)
    assert SweepConfig(settings={}, seeds=(4, 2)).list_seeds(7) == (4, 2)


def test_how_many_trials_run_at_once_is_no_part_of_what_they_are():
    first, second = (SweepConfig(settings={}, max_parallel=n) for n in (1, 2))
    assert first.to_json() == second.to_json()


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("batch.global_batch_size", True),
        ("data.max_prompt_length", True),
        ("checkpoint.every_steps", True),
        ("optimizer.learning_rate", False),
        ("objective.noise", False),
        ("batch.layout", False),
    ],
)
def test_settings_that_take_whole_numbers_are_known(name: str, whole: bool):
    assert takes_whole_numbers(name) == whole
