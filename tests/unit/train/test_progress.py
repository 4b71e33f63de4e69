import json
from dataclasses import asdict

import pytest

from rm_ray.data.cache.group_tokens import TokenCounts
from rm_ray.train.progress import Progress, progress_line

METRICS = {
    "train/rm/loss": 0.51239,
    "train/rm/accuracy": 0.75,
    "train/rm/reward_margin": -0.25,
    "perf/pairs_per_second": 8.04,
}


def timed() -> Progress:
    progress = Progress()
    progress.add_timed(8, TokenCounts(all=600, distinct=400, computed=440), 1e9, 2.0)
    progress.add_timed(4, TokenCounts(all=300, distinct=200, computed=220), 2e9, 1.0)
    return progress


def test_speed_is_over_all_timed_steps():
    progress = timed()
    assert progress.pairs_per_second == 4
    assert progress.tokens_per_second == 300
    assert progress.distinct_tokens_per_second == 200
    assert progress.flops_per_second == 1e9
    assert progress.computed_over_distinct_tokens == pytest.approx(1.1)


def test_before_the_first_timed_step_every_speed_is_zero():
    progress = Progress(step=1, episode=8)
    assert progress.pairs_per_second == progress.tokens_per_second == 0
    assert progress.distinct_tokens_per_second == progress.flops_per_second == 0
    assert progress.computed_over_distinct_tokens == 0


def test_progress_survives_a_round_trip_through_a_checkpoint():
    progress = timed()
    progress.step, progress.episode, progress.spent = 2, 12, {"steps": 2.5, "data wait": 0.5}
    assert Progress(**json.loads(json.dumps(asdict(progress)))) == progress


def test_the_live_line_shows_step_episode_metrics_speed_and_time_left():
    progress = timed()
    progress.step, progress.episode = 30, 1_200
    assert progress_line(progress, 90, METRICS) == (
        "step 30/90 · episode 1,200 · loss 0.5124 · accuracy 0.750 · margin -0.250 · "
        "8.0 pairs/s · 10:00 left"
    )


@pytest.mark.parametrize(
    ("num_steps", "left"), [(30, "0:00"), (31, "0:05"), (390, "30:00"), (3_030, "4:10:00")]
)
def test_the_time_left_is_estimated_from_the_speed_so_far(num_steps: int, left: str):
    progress = Progress(step=30, episode=240)  # without timed steps, the last step's speed counts
    line = progress_line(progress, num_steps, {**METRICS, "perf/pairs_per_second": 1.6})
    assert line.endswith(f"· {left} left")
