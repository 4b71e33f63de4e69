from dataclasses import replace

from matplotlib.image import imread

from rm_ray.runs.history import Record
from rm_ray.tracking.plots import plot_run

NAMES = ("accuracy", "loss", "chosen_rewards", "rejected_rewards", "reward_margin", "lr")


def records(steps):
    for step in range(1, steps + 1):
        metrics = {f"train/rm/{name}": step * 0.1 for name in NAMES}
        yield Record(step=step, kind="train", episode=8 * step, hours=step / 60, metrics=metrics)
        if step % 4 == 0:
            metrics = {f"eval/rm/{name}": 0.5 for name in NAMES[:-1]}
            yield Record(step=step, kind="eval", episode=8 * step, hours=step / 60, metrics=metrics)


def test_a_run_is_drawn_over_episodes_and_over_hours(tmp_path):
    paths = plot_run(list(records(30)), "a run", tmp_path)
    assert [p.name for p in paths] == ["training_over_episodes.png", "training_over_hours.png"]
    for path in paths:
        pixels = imread(path)
        height, width = pixels.shape[:2]
        assert (height, width) == (770, 1430)
        for row in range(2):
            for column in range(3):
                panel = pixels[
                    row * height // 2 : (row + 1) * height // 2,
                    column * width // 3 : (column + 1) * width // 3,
                ]
                assert (panel[..., 2] > panel[..., 0] + 0.3).any(), "each panel has a blue line"


def test_a_run_of_one_step_can_be_drawn(tmp_path):
    assert all(path.exists() for path in plot_run(list(records(1)), "short", tmp_path))


def test_held_out_lists_are_drawn_beside_the_accuracy(tmp_path):
    plain = list(records(30))
    lists = {"eval/rm/best_of_k": 0.4, "eval/rm/kendall_tau": 0.2}
    with_lists = [
        replace(record, metrics={**record.metrics, **lists}) if record.kind == "eval" else record
        for record in plain
    ]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (before,) = plot_run(plain, "a run", tmp_path / "a", over=("episodes",))
    (after,) = plot_run(with_lists, "a run", tmp_path / "b", over=("episodes",))
    changed = (imread(before) != imread(after)).any(axis=-1)
    assert changed[:385, :477].any(), "the first panel, accuracy"
    assert not changed[385:].any() and not changed[:, 477:].any()


def test_named_sets_are_drawn_in_accuracy_and_loss(tmp_path):
    plain = list(records(30))
    own = {"eval/chat/accuracy": 0.8, "eval/chat/loss": 0.9, "eval/chat/score": 0.3}
    with_sets = [
        replace(record, metrics={**record.metrics, **own}) if record.kind == "eval" else record
        for record in plain
    ]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (before,) = plot_run(plain, "a run", tmp_path / "a", over=("episodes",))
    (after,) = plot_run(with_sets, "a run", tmp_path / "b", over=("episodes",))
    changed = (imread(before) != imread(after)).any(axis=-1)
    assert changed[:385, :477].any(), "the first panel, accuracy"
    assert changed[:385, 477:953].any(), "the second panel, loss"
    assert not changed[385:].any() and not changed[:, 953:].any()
