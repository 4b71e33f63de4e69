from pathlib import Path

from made_sweep import METRIC, leave, make_config, make_sweep, trials_in
from matplotlib.figure import Figure

from rm_ray.storage import Storage
from rm_ray.sweep.outcomes import read_outcomes
from rm_ray.sweep.plots import _draw_setting, plot_sweep
from rm_ray.sweep.ranking import rank
from rm_ray.sweep.trials import make_trials


def test_there_is_a_plot_of_the_settings_and_one_of_the_curves(tmp_path: Path):
    folder, trials = trials_in(tmp_path)
    for trial in trials[:3]:
        leave(folder, trial, 0.7, 0.6)
    paths = plot_sweep(rank(read_outcomes(folder, trials, METRIC), METRIC), METRIC, "lr", tmp_path)
    assert [path.name for path in paths] == ["settings.png", "learning_curves.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_texts_none_and_numbers_are_drawn_beside_one_another(tmp_path: Path):
    settings = {
        "batch.layout": {"grid": ["packed", "padded"]},
        "data.max_prompt_length": {"grid": [None, 100]},
        "optimizer.weight_decay": {"grid": [0.0, 0.1]},
    }
    trials = make_trials(make_config(tmp_path), make_sweep(settings=settings), "sweep.yaml")
    folder = Storage.open(str(tmp_path / "lr"))
    for trial in trials:
        leave(folder, trial, 0.5)
    assert (
        len(plot_sweep(rank(read_outcomes(folder, trials, METRIC), METRIC), METRIC, "x", tmp_path))
        == 2
    )


def test_dollar_signs_in_values_are_drawn_as_they_are(tmp_path: Path):
    values = [["/d/$A/x_$B^.jsonl"], ["builtin:train"]]
    sweep = make_sweep(settings={"data.train": {"grid": values}})
    trials = make_trials(make_config(tmp_path), sweep, "sweep.yaml")
    folder = Storage.open(str(tmp_path / "lr"))
    for trial in trials:
        leave(folder, trial, 0.5)
    ranked = rank(read_outcomes(folder, trials, METRIC), METRIC)
    assert len(plot_sweep(ranked, METRIC, "lr", tmp_path)) == 2


def test_numbers_that_were_given_as_texts_have_a_numeric_axis(tmp_path: Path):
    settings = {"optimizer.learning_rate": {"grid": ["1e-5", "3e-6", "1e-4"]}}
    trials = make_trials(make_config(tmp_path), make_sweep(settings=settings), "sweep.yaml")
    folder = Storage.open(str(tmp_path / "lr"))
    axes = Figure().subplots()
    ranked = rank(read_outcomes(folder, trials, METRIC), METRIC)
    _draw_setting(axes, ranked, "optimizer.learning_rate")
    assert axes.get_xscale() == "log"
