"""Planned and resolved runs before any worker starts."""

from pathlib import Path

from resolved_runs import builtin_run
from tables import chosen_ids

from rm_ray.data.cache.token_table import open_table
from rm_ray.preflight.resolved_run import ResolvedRun, describe_data, describe_run


def test_settling_a_planned_run_changes_only_its_settings(tmp_path: Path):
    planned = builtin_run(tmp_path)
    settled = planned.settle(planned.config.settle())

    assert type(settled) is ResolvedRun
    assert settled.train is planned.train
    assert settled.config == planned.config
    assert settled.run_folder.path == str(tmp_path / "storage" / "small")


def test_an_evaluation_is_one_pass_over_the_held_out_pairs_in_order(tmp_path: Path):
    resolved = builtin_run(tmp_path, optimizer={"epochs": 3, "max_episodes": 40})

    assert resolved.plan.steps.num_episodes == 40
    (held_out,) = resolved.held_out_sets
    assert (held_out.steps.total, held_out.steps.num_episodes) == (1, 8)
    assert not resolved.eval_settings.shuffle


def test_a_run_without_held_out_pairs_has_no_evaluation(tmp_path: Path):
    resolved = builtin_run(tmp_path, num_held_out=0)

    assert resolved.held_out_sets == ()
    assert list(resolved.caches) == ["train"]
    assert resolved.identity["eval"] == ""


def test_reference_groups_are_held_out_if_any_are(tmp_path: Path):
    for resolved in (builtin_run(tmp_path / "a"), builtin_run(tmp_path / "b", num_held_out=0)):
        table = open_table((resolved.held_out or resolved.train).parts)
        known = {tuple(chosen_ids(table, pair)) for pair in range(len(table))}
        reference = resolved.reference_groups.groups

        assert {tuple(reference.conversation(i, 0)) for i in range(len(reference))} <= known


def test_rows_are_counted_by_set_and_reason(tmp_path: Path):
    resolved = builtin_run(tmp_path)

    assert resolved.row_counts == [
        {"set": "train", "reason": "(kept)", "rows": 24},
        {"set": "eval", "reason": "(kept)", "rows": 8},
        {"set": "train", "reason": "empty", "rows": 1},
        {"set": "eval", "reason": "empty", "rows": 1},
        {"set": "eval", "reason": "(kept) prompt is trained on too", "rows": 1},
    ]


def test_named_sets_are_identified_counted_and_described_as_sets_of_their_own(tmp_path: Path):
    plain = builtin_run(tmp_path / "plain")
    resolved = builtin_run(tmp_path, named_sets={"more": 5})

    assert list(resolved.caches) == ["train", "eval", "eval/more"]
    assert resolved.identity == {**plain.identity, "eval/more": "identity of test"}
    assert {"set": "eval/more", "reason": "(kept)", "rows": 5} in resolved.row_counts
    assert {"set": "eval/more", "reason": "empty", "rows": 1} in resolved.refused
    assert describe_run(resolved)["eval_pairs_by_set"] == {"more": 5}
    assert "eval_pairs_by_set" not in describe_run(plain)
    described = describe_data(resolved)
    assert described["eval/more"]["trained_on_by_source"] == {}
    assert described["eval/more"]["pairs"] == 5
    assert describe_data(plain).keys() == {"train", "eval"}


def test_a_run_may_have_named_sets_alone(tmp_path: Path):
    resolved = builtin_run(tmp_path, num_held_out=0, named_sets={"more": 5})

    assert [one.name for one in resolved.held_out_sets] == ["more"]
    assert not resolved.held_out_sets[0].is_default
    assert resolved.identity["eval"] == ""


def test_a_description_states_what_a_run_would_do(tmp_path: Path):
    resolved = builtin_run(
        tmp_path, optimizer={"learning_rate": 1e-3, "warmup_steps": 1, "epochs": 2}
    )
    described = describe_run(resolved)

    assert described["config"] == resolved.config.to_json()
    assert (described["steps"], described["steps_per_epoch"], described["episodes"]) == (6, 3, 48)
    assert described["head"] == "new"
    assert described["learning_rate"]["first_step"] == 0.0
    assert described["learning_rate"]["after_warmup"] == 1e-3
    assert 0 < described["learning_rate"]["last_step"] < 1e-3


def test_data_is_described_by_set_and_overlap_with_the_held_out_pairs(tmp_path: Path):
    described = describe_data(builtin_run(tmp_path))

    assert described["train"]["data_hash"] == "hash of train"
    assert described["train"]["unit"] == "pairs"
    assert "trained_on_by_source" not in described["train"]
    assert described["eval"]["trained_on_by_source"] == {"builtin": 1}
