from typing import Any

import pytest
from given_settings import refusal_of_value

from rm_ray.config.sections.checkpoint import LIST_METRICS, METRICS, CheckpointConfig


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("every_steps", -1, "at least 0"),
        ("keep", 1, "at least 2"),
        ("keep_best_by", "accuracy", "one of eval/rm/accuracy"),
        ("storage_patience_s", -1.0, "at least 0"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_rule(field: str, value: Any, rule: str):
    assert refusal_of_value("checkpoint", field, value).startswith(rule)


@pytest.mark.parametrize("metric", METRICS)
def test_the_best_may_be_ranked_by_any_train_or_eval_metric(metric: str):
    for part in ("eval", "train"):
        name = f"{part}/rm/{metric}"
        assert CheckpointConfig(keep_best_by=name).keep_best_by == name


@pytest.mark.parametrize("metric", LIST_METRICS)
def test_the_best_may_be_ranked_by_the_lists_that_are_held_out(metric: str):
    assert CheckpointConfig(keep_best_by=f"eval/rm/{metric}").keep_best_by == f"eval/rm/{metric}"
    refusal = refusal_of_value("checkpoint", "keep_best_by", f"train/rm/{metric}")
    assert refusal.startswith("one of eval/rm/accuracy")


@pytest.mark.parametrize(
    "name", ["accuracy", "loss", "best_of_k", "score", "score_on/chat_hard", "accuracy_on/a.jsonl"]
)
def test_the_best_may_be_ranked_by_a_metric_of_a_named_set(name: str):
    config = CheckpointConfig(keep_best_by=f"eval/my-set/{name}")
    assert config.ranking_set == "my-set"
    assert CheckpointConfig(keep_best_by="train/rm/loss").ranking_set is None
    assert CheckpointConfig(keep_best_by="eval/rm/loss").ranking_set == "rm"
    assert CheckpointConfig().ranking_set is None


@pytest.mark.parametrize("metric", ["eval/rm/score", "eval/a/b/c/d", "eval/a/speed", "eval/A/loss"])
def test_another_metric_is_refused(metric: str):
    refusal = refusal_of_value("checkpoint", "keep_best_by", metric)
    assert refusal.endswith("or of eval/NAME/ with a set of evaluation.sets")
