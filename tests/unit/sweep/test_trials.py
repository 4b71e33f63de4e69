from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_sweep import make_config, make_sweep

from rm_ray.config.sweep import Dimension, SweepConfig
from rm_ray.errors import InputError
from rm_ray.sweep.trials import draw_settings, make_trials

RATE, BATCH = "optimizer.learning_rate", "batch.global_batch_size"


def test_every_seed_gets_every_setting_and_the_first_seed_comes_first(tmp_path: Path):
    trials = make_trials(make_config(tmp_path), make_sweep(), "sweep.yaml")
    assert [(t.name, t.seed, t.config.optimizer.learning_rate) for t in trials] == [
        ("lr-000-seed5", 5, 1e-3),
        ("lr-001-seed5", 5, 1e-4),
        ("lr-000-seed6", 6, 1e-3),
        ("lr-001-seed6", 6, 1e-4),
    ]


def test_a_trial_is_the_recipe_with_other_values_in_the_sweep_s_folder(tmp_path: Path):
    config = make_config(
        tmp_path, hub={"repo_id": "me/rewards"}, mlflow={"registered_model": "rewards"}
    )
    trial = make_trials(config, make_sweep(), "sweep.yaml")[3]
    run = replace(config.run, name="lr-001-seed6", storage_path=f"{tmp_path}/lr", seed=6)
    assert trial.config == replace(
        config,
        run=run,
        optimizer=replace(config.optimizer, learning_rate=1e-4),
        hub=replace(config.hub, repo_id=None),
        mlflow=replace(config.mlflow, registered_model=None),
    )


def test_grids_are_combined_and_each_combination_gets_its_own_draws():
    sweep = SweepConfig(
        settings={
            BATCH: Dimension(grid=(8, 16)),
            RATE: Dimension(loguniform=(1e-6, 1e-3)),
            "batch.layout": Dimension(grid=("packed", "padded")),
        },
        samples=3,
    )
    drawn = draw_settings(sweep, seed=1)
    combinations = [(each[BATCH], each["batch.layout"]) for each in drawn]
    expected = [pair for pair in product((8, 16), ("packed", "padded")) for _ in range(3)]
    assert combinations == expected
    assert len({each[RATE] for each in drawn}) == 12
    assert list(drawn[0]) == [BATCH, RATE, "batch.layout"]
    assert draw_settings(sweep, seed=1) == drawn
    assert draw_settings(sweep, seed=2) != drawn


@given(
    low=st.floats(1e-9, 1e3), factor=st.floats(1.001, 1e6), seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["uniform", "loguniform"]),
)  # fmt: skip
def test_draws_stay_in_their_range(low: float, factor: float, seed: int, kind: str):
    bounds = (low, low * factor)
    sweep = SweepConfig(settings={RATE: Dimension(**{kind: bounds})}, samples=5)
    for drawn in draw_settings(sweep, seed):
        assert bounds[0] <= drawn[RATE] <= bounds[1]


def test_a_setting_of_whole_numbers_draws_whole_numbers():
    sweep = SweepConfig(settings={BATCH: Dimension(uniform=(2, 6))}, samples=40)
    assert {each[BATCH] for each in draw_settings(sweep, 0)} == {2, 3, 4, 5, 6}


@pytest.mark.parametrize(
    ("settings", "more", "tried"),
    [
        ({BATCH: {"choice": [8, 16]}}, {"samples": 20}, [16, 8]),
        ({RATE: {"grid": [1.0e-4, "1e-4", "0.0001", 1e-5]}}, {}, [1e-4, 1e-5]),
        ({"optimizer.epochs": {"grid": [1, 1.0, 2]}}, {}, [1, 2]),
        ({"data.train": {"grid": ["builtin:train", ["builtin:train"]]}}, {}, [["builtin:train"]]),
    ],
)
def test_values_that_a_configuration_reads_alike_are_tried_once(
    tmp_path: Path, settings: dict, more: dict, tried: list
):
    sweep = make_sweep(settings=settings, seeds=1, **more)
    trials = make_trials(make_config(tmp_path), sweep, "sweep.yaml")
    found = [value for trial in trials for value in trial.settings.values()]
    assert sorted(found) == sorted(tried)
    assert [type(value) for value in found] == [type(tried[0])] * len(tried)


def test_a_value_of_the_recipe_that_the_sweep_replaces_is_named(tmp_path: Path, caplog):
    caplog.set_level("INFO", "rm_ray")
    config = make_config(tmp_path, optimizer={"learning_rate": 7e-3})
    make_trials(config, make_sweep(), "sweep.yaml")
    said = f"{RATE} is 0.007 in the recipe; the sweep's values replace it"
    assert caplog.messages == [said]


@pytest.mark.parametrize(
    ("seeds", "shown"), [([-1], r"\[-1\]"), (2, r"\[4294967295, 4294967296\]")]
)
def test_a_seed_out_of_range_is_one_of_the_sweep_s(tmp_path: Path, seeds: object, shown: str):
    run = {"name": "lr", "storage_path": str(tmp_path), "seed": 2**32 - 1}
    message = f"^sweep.yaml: seeds must be from 0 to 4294967295, got {shown}"
    with pytest.raises(InputError, match=message):
        make_trials(make_config(tmp_path, run=run), make_sweep(seeds=seeds), "sweep.yaml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({RATE: {"grid": [1e-3, -1.0]}}, r"with optimizer.learning_rate=-1.0: .*learning_rate"),
        ({RATE: {"grid": ["fast"]}}, "with optimizer.learning_rate=fast: optimizer.learning_rate"),
        ({BATCH: {"uniform": [0, 8]}}, "with batch.global_batch_size=0: batch.global_batch_size"),
        ({RATE: {"uniform": [-1.0, 1.0]}}, "with optimizer.learning_rate=-1.0"),
    ],
)
def test_a_wrong_value_and_a_wrong_end_of_a_range_are_refused(
    tmp_path: Path, settings: dict, message: str
):
    with pytest.raises(InputError, match=f"^sweep.yaml, {message}"):
        make_trials(make_config(tmp_path), make_sweep(settings=settings), "sweep.yaml")


def test_a_metric_that_no_trial_measures_is_refused(tmp_path: Path):
    cases = [
        (make_config(tmp_path), {"metric": "eval/rm/los"}, "metric must be one of eval/rm/accur"),
        (
            make_config(tmp_path, data={"train": ["a.jsonl"]}),
            {},
            "metric must be none or a train/rm/ metric, because",
        ),
        (make_config(tmp_path, evaluation={"at_end": False}), {}, "evaluation.at_end is off"),
        (
            make_config(tmp_path, evaluation={}),
            {"asha": {"grace_steps": 7}},
            "evaluation.every_steps is 0; set it to 7",
        ),
    ]
    for config, given_sweep, message in cases:
        with pytest.raises(InputError, match=f"^sweep.yaml: .*{message}"):
            make_trials(config, make_sweep(**given_sweep), "sweep.yaml")
