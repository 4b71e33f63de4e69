from pathlib import Path
from typing import Any

import pytest

from rm_ray.config.train_config import TrainConfig
from rm_ray.publish.card_metadata import card_metadata, figures_by_group

EVALUATION = {
    "overall": {"accuracy": 0.71239},
    "by_source": {"colours": {"accuracy": 0.75}, "numbers": {"accuracy": 0.5}},
}


def config(name_or_path: str = "builtin", train: tuple[str, ...] = ("builtin:train",)) -> Any:
    """Return a run's settings as stored in ``run.json``."""
    settings = TrainConfig().to_json()
    model = {**settings["model"], "name_or_path": name_or_path}
    return {**settings, "model": model, "data": {**settings["data"], "train": list(train)}}


def test_the_metadata_describe_the_model_and_its_accuracy():
    data = card_metadata(config(), EVALUATION)
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")
    assert "reward-model" in data.tags
    results = {result.dataset_name: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "all": 0.7124, "colours": 0.75, "numbers": 0.5,
    }  # fmt: skip
    assert {result.metric_type for result in results.values()} == {"accuracy"}


def test_lists_have_results_beside_the_accuracy():
    lists = {"best_of_k": 0.51239, "kendall_tau": 0.25}
    data = card_metadata(config(), {"overall": {"accuracy": 0.75, "lists": lists}, "by_source": {}})
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {"accuracy": 0.75, "best_of_k": 0.5124, "kendall_tau": 0.25}
    (index,) = data.to_dict()["model-index"]
    (result,) = index["results"]
    assert [metric["name"] for metric in result["metrics"]] == [
        "pairwise accuracy", "best of K", "Kendall's tau",
    ]  # fmt: skip


def test_without_figures_there_are_no_results():
    assert "eval_results" not in card_metadata(config(), None).to_dict()


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("builtin", None),
        ("/models/mine", None),
        ("model.json", None),
    ],
)
def test_only_a_base_model_on_the_hub_is_named(name: str, base: str | None):
    assert card_metadata(config(name), None).to_dict().get("base_model") == base


def test_only_hub_datasets_are_named_without_split_or_share():
    sources = ("more/pairs", "allenai/pairs:train=0.5", "/data/mine.jsonl", "mine/pairs.jsonl")
    assert card_metadata(config(train=sources), None).datasets == ["allenai/pairs", "more/pairs"]
    assert card_metadata(config(train=("a.jsonl",)), None).datasets is None


def test_a_folder_that_looks_like_a_repository_name_is_not_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert card_metadata(config("models/mine"), None).base_model is None


def test_a_single_source_is_not_a_separate_group():
    one = {**EVALUATION, "by_source": {"colours": {"accuracy": 0.75}}}
    assert figures_by_group(one) == [("all", {"accuracy": 0.71239})]
    assert figures_by_group(None) == []


def test_each_named_set_is_a_data_set_of_the_model_index():
    sets = {"bench": {**EVALUATION, "benchmark": {"Chat": 0.9, "Score": 0.61239}}}
    data = card_metadata(config(), EVALUATION, sets)
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in data.eval_results}
    assert found == {
        ("all", "accuracy"): 0.7124, ("colours", "accuracy"): 0.75, ("numbers", "accuracy"): 0.5,
        ("bench", "accuracy"): 0.7124, ("bench", "score"): 0.6124,
        ("bench: colours", "accuracy"): 0.75, ("bench: numbers", "accuracy"): 0.5,
    }  # fmt: skip
    (index,) = data.to_dict()["model-index"]
    assert [result["dataset"]["name"] for result in index["results"]][3:] == [
        "bench", "bench: colours", "bench: numbers",
    ]  # fmt: skip
