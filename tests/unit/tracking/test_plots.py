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
