from pathlib import Path

import pytest
from made_set import make_set

from rm_ray.errors import InputError
from rm_ray.preflight.held_out.named_sets import label_named_sets
from rm_ray.preflight.held_out.ranking import refuse_missing_metric


def check(folder: Path, metric: str | None, **about: bool) -> None:
    config, caches, train = make_set(folder, metric, **about)
    refuse_missing_metric(config, label_named_sets(config, caches, train))


@pytest.mark.parametrize(
    "name", ["accuracy", "loss", "score", "score_on/chat", "accuracy_on/1.jsonl"]
)
def test_checkpoints_are_ranked_by_what_a_set_gives(tmp_path: Path, name: str):
    check(tmp_path / "a", f"eval/bench/{name}", subsets=True)


@pytest.mark.parametrize("metric", [None, "eval/rm/loss", "train/rm/loss"])
def test_metrics_of_other_sets_are_checked_elsewhere(tmp_path: Path, metric: str | None):
    check(tmp_path / "a", metric, subsets=False)


@pytest.mark.parametrize(
    ("name", "about"),
    [
        ("score", {"subsets": False}),
        ("score_on/safety", {"subsets": True}),
        ("best_of_k", {"subsets": True}),
        ("accuracy_on/other.jsonl", {"subsets": True}),
        ("accuracy_on/0.jsonl", {"subsets": True, "compared": False}),
    ],
)
def test_checkpoints_are_not_ranked_by_what_a_set_never_gives(
    tmp_path: Path, name: str, about: dict[str, bool]
):
    with pytest.raises(InputError) as caught:
        check(tmp_path / "a", f"eval/bench/{name}", **about)
    message = str(caught.value)
    assert f"keep_best_by is 'eval/bench/{name}', which the set 'bench' never gives" in message
    assert "that it gives (eval/bench/accuracy, eval/bench/loss," in message
