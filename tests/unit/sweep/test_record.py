from dataclasses import replace
from pathlib import Path

import pytest
from made_sweep import make_config, make_sweep, trials_in

from rm_ray.errors import InputError
from rm_ray.sweep.record import forget_failures, mark, open_sweep, read_mark
from rm_ray.sweep.trials import make_trials


def test_the_same_sweep_is_opened_again_with_its_key(tmp_path: Path):
    folder, trials = trials_in(tmp_path)
    config, sweep = make_config(tmp_path), make_sweep()
    record = open_sweep(folder, config, sweep, trials)
    assert not folder.exists("sweep.json"), "a sweep that is refused leaves its name free"
    folder.write_json("sweep.json", record)
    assert open_sweep(folder, config, make_sweep(max_parallel=3), trials) == record
    assert [trial["name"] for trial in record["trials"]] == [trial.name for trial in trials]
    assert folder.read_json("sweep.json") == record


def test_another_sweep_or_recipe_under_the_same_name_is_refused(tmp_path: Path):
    folder, trials = trials_in(tmp_path)
    config, sweep = make_config(tmp_path), make_sweep()
    folder.write_json("sweep.json", open_sweep(folder, config, sweep, trials))
    other = replace(config, optimizer=replace(config.optimizer, epochs=7))
    for given, message in (
        ((other, sweep), r"optimizer.epochs was \d and is 7"),
        ((config, make_sweep(seeds=3)), r"its trials \(2 differ, such as lr-000-seed7\)"),
        ((config, make_sweep(metric="eval/rm/accuracy")), "metric was 'eval/rm/loss' and is"),
        ((config, make_sweep(asha={"grace_steps": 5})), "asha was None and is"),
    ):
        with pytest.raises(InputError, match=message):
            open_sweep(folder, *given, make_trials(*given, "sweep.yaml"))


def test_a_name_that_a_run_has_is_refused(tmp_path: Path):
    folder, trials = trials_in(tmp_path)
    folder.write_json("run.json", {})
    with pytest.raises(InputError, match="holds a run of that name"):
        open_sweep(folder, make_config(tmp_path), make_sweep(), trials)


def test_trials_that_were_stopped_early_stay_so_and_others_are_tried_again(tmp_path: Path):
    folder, trials = trials_in(tmp_path)
    endings = ("stopped early", "failed", "interrupted")
    for trial, ending in zip(trials, endings, strict=False):
        mark(folder, trial.name, ending, "why")
    forget_failures(folder, trials)
    assert [read_mark(folder, trial.name) for trial in trials] == [
        {"ending": "stopped early", "cause": "why"}, None, None, None,
    ]  # fmt: skip
