from pathlib import Path

import pytest

from rm_ray.config.column_rules import NO_RULES
from rm_ray.config.scoring import Rows, ScoringModel, ScoringModels
from rm_ray.config.sections.data import DataConfig
from rm_ray.errors import InputError


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (lambda: Rows(data=("a.jsonl",), seed=-1), "seed"),
        (lambda: Rows(data=("https://ana:hunter2@example.com/a.jsonl",)), "data"),
        (lambda: Rows(data=("a.jsonl",), max_responses=1), "max_responses"),
        (lambda: Rows(data=("a.jsonl",), score_weights=("helpfulness",)), "score_weights"),
        (lambda: ScoringModel(model=""), "model"),
        (lambda: ScoringModel(model="m", max_length=0), "max_length"),
        (lambda: ScoringModel(model="m", tokens_per_forward=-1), "tokens_per_forward"),
        (lambda: ScoringModels(model=()), "model"),
        (lambda: ScoringModels(model=("m", "")), "model"),
        (lambda: ScoringModels(model=("m", "m")), "model"),
        (lambda: ScoringModels(model=("m", "n"), revision="main"), "revision"),
        (lambda: ScoringModels(model=("m",), max_length=0), "max_length"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_loaded(wrong, name):
    with pytest.raises(InputError, match=f"^{name} must ") as caught:
        wrong()
    assert "hunter2" not in str(caught.value)


def test_rows_are_read_by_the_same_rules_as_in_training():
    given = {
        "columns": ("prompt=question",),
        "ignore_columns": ("system",),
        "form": "documented",
        "max_responses": 5,
        "score_weights": ("helpfulness=0.5", "verbosity=-1"),
    }
    assert Rows(data=("a.jsonl",), **given).rules == DataConfig(**given).rules
    assert Rows(data=("a.jsonl",)).rules == DataConfig().rules == NO_RULES


def test_several_models_share_all_other_options():
    together = ScoringModels(model=("a", "b"), dtype="float32", max_length=9)
    assert together.each() == [
        ScoringModel(model=name, dtype="float32", max_length=9) for name in ("a", "b")
    ]
    alone = ScoringModels(model=("a",), revision="main").each()
    assert alone == [ScoringModel(model="a", revision="main")]


def test_a_folder_that_is_named_in_two_ways_is_a_repetition(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    for other in ("a/", "./a", str(tmp_path / "a"), "b"):
        with pytest.raises(InputError, match="model must be a list without repetitions"):
            ScoringModels(model=("a", other))
    assert ScoringModels(model=("a", "org/a")).model == ("a", "org/a")


def test_a_pass_has_as_many_tokens_as_the_device_is_fast_with_unless_they_are_set():
    assert ScoringModel(model="m").tokens_per_pass(use_gpu=True) == 16_384
    assert ScoringModel(model="m").tokens_per_pass(use_gpu=False) == 4_096
    assert ScoringModel(model="m", tokens_per_forward=7).tokens_per_pass(use_gpu=False) == 7
