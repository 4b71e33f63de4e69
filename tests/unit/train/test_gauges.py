import pytest

from rm_ray.train.gauges import gauge_name


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("train/rm/loss", "rm_train_loss"),
        ("eval/rm/reward_margin", "rm_eval_reward_margin"),
        ("perf/pairs_per_second", "rm_perf_pairs_per_second"),
        ("episode", "rm_episode"),
    ],
)
def test_gauges_have_the_names_of_metrics_that_prometheus_allows(metric: str, name: str):
    assert gauge_name(metric) == name
