from pathlib import Path

import made_set
import pytest
from made_set import SUBSETS, make_set

from rm_ray.batches.plan import PlanSettings
from rm_ray.preflight.held_out.named_sets import NamedSet, held_out_set, label_named_sets


def label(folder: Path, **about: bool) -> tuple[NamedSet, ...]:
    return label_named_sets(*make_set(folder, **about))


def test_a_benchmark_s_rows_are_labelled_and_overlap_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level("INFO", logger="rm_ray"):
        (named,) = label(tmp_path / "a", subsets=True)
    assert named.dataset == "eval/bench"
    assert [one.subset for one in named.prompts] == list(SUBSETS)
    assert named.overlap == {str(tmp_path / "a" / "0.jsonl"): 1}
    assert "eval/bench has a benchmark's averages: score, score_on/chat, score_on/reasoning" in (
        caplog.messages
    )
    assert "1 of 2 held-out pairs of evaluation.sets bench have a prompt" in caplog.text
    (plain,) = label(tmp_path / "b", subsets=False)
    assert plain.prompts is None


def test_workers_get_one_pass_over_a_set_and_its_labels(tmp_path: Path):
    _, caches, _ = make_set(tmp_path / "a", subsets=True)
    cache = caches["bench"]
    settings = PlanSettings(global_batch_size=4, tokens_per_micro_batch=100, shuffle=False)
    found = held_out_set(cache, settings, name="bench")
    assert (found.name, found.steps.num_groups, found.steps.total) == ("bench", 2, 1)
    assert found.unit == cache.unit
    assert found.sources.codes.tolist() == [0, 1]


def test_subsets_of_no_benchmark_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(made_set, "SUBSETS", ("coding", "law"))
    with caplog.at_level("INFO", logger="rm_ray"):
        label(tmp_path / "a", subsets=True)
    said = "eval/bench has no benchmark's averages: 'coding' is of neither RewardBench nor"
    assert said in caplog.text
