"""The whole loop on plain ranks: one in this process, and two connected by gloo."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gloo_ranks import spawn
from plain_training import (
    NUM_PAIRS,
    NUM_STEPS,
    PlainRank,
    StopsAt,
    exported_weights,
    reset_accelerator,
    small_config,
    stop_on_one_rank_and_resume,
    unmeasured,
)
from safetensors.torch import load_file
from tables import ready_step

from rm_ray.config.sections.checkpoint import CheckpointConfig
from rm_ray.config.sections.evaluation import EvaluationConfig
from rm_ray.config.sections.objective import ObjectiveConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.config.train_config import ResolvedConfig
from rm_ray.model.build import build_reward_model
from rm_ray.objectives.build import build_objective
from rm_ray.runs.checkpoint_names import list_checkpoints
from rm_ray.train.engine import Engine
from rm_ray.train.optimizer import learning_rate_schedule
from rm_ray.train.step import train_step


@dataclass
class Finished:
    """An uninterrupted run."""

    rank: PlainRank
    result: dict[str, Any]


@pytest.fixture(scope="module")
def quiet(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("quiet")
    rank = PlainRank.make(folder, small_config(folder))
    return Finished(rank, rank.train())


@pytest.fixture(scope="module")
def keeping(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The same run, with the loss of each pair kept."""
    folder = tmp_path_factory.mktemp("keeping")
    rank = PlainRank.make(folder, keeping_config(folder))
    return Finished(rank, rank.train())


def keeping_config(folder: Path) -> ResolvedConfig:
    config = small_config(folder)
    return replace(config, run=replace(config.run, keep_pair_losses=True))


def attempt(folder: Path, number: int, stops: StopsAt | None = None, **job: Any) -> PlainRank:
    """Prepare an attempt at the run in a folder; it may stop early."""
    rank = PlainRank.make(folder, small_config(folder), attempt=number, **job)
    return stops.apply(rank) if stops else rank


def assert_same_outcome(rank: PlainRank, quiet: Finished) -> None:
    expected = exported_weights(quiet.rank)
    assert all(torch.equal(one, expected[name]) for name, one in exported_weights(rank).items())
    assert unmeasured(rank.channel.records) == unmeasured(quiet.rank.channel.records)


def test_steps_evaluations_and_checkpoints_come_as_scheduled(quiet: Finished):
    records = [(record.kind, record.step) for record in quiet.rank.channel.records]
    assert records == [
        ("train", 1), ("train", 2), ("eval", 2), ("train", 3), ("train", 4), ("eval", 4),
        ("train", 5), ("train", 6), ("eval", 6), ("train", 7), ("train", 8), ("eval", 8),
    ]  # fmt: skip
    saved = [metrics["step"] for _, metrics in quiet.rank.context.reported]
    assert saved == [2, 4, 6, 8]
    phases = [
        (phase, step)
        for i, (phase, step) in enumerate(quiet.rank.heartbeat.phases)
        if phase != "waiting" and quiet.rank.heartbeat.phases[i - 1] != (phase, step)
    ]
    assert phases[-3:] == [("saving", 8), ("training", 9), ("exporting", 8)]
    assert ("evaluating", 2) in phases and ("saving", 2) in phases


def test_only_the_steps_determine_the_weights(quiet: Finished):
    """Votes, evaluations, checkpoints and read-ahead do not change a bit."""
    job, stream = quiet.rank.job, quiet.rank.context.streams["train"]
    reset_accelerator()
    config = job.config
    model = build_reward_model(config.model, job.tokenizer, seed=config.run.seed)
    engine = Engine(model, config.optimizer, config.cluster, dtype=torch.float32, use_gpu=False)
    learning_rate = learning_rate_schedule(config.optimizer, NUM_STEPS)
    losses = []
    for step in range(NUM_STEPS):
        micro_batches = ready_step(stream.table, stream.plan, step, job.tokenizer)
        measured = train_step(
            engine,
            build_objective(config.objective),
            micro_batches,
            num_groups=job.steps.size(step),
            learning_rate=learning_rate(step),
        )
        losses.append(measured.groups.means("train/rm")["train/rm/loss"])
    expected = {name.removeprefix("classifier."): w for name, w in engine.weights().items()}
    weights = exported_weights(quiet.rank)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
    records = [one for one in quiet.rank.channel.records if one.kind == "train"]
    assert [record.metrics["train/rm/loss"] for record in records] == losses


def test_an_attempt_that_stops_saves_and_the_next_one_resumes_bit_for_bit(
    quiet: Finished, tmp_path: Path
):
    first = attempt(tmp_path, 1, StopsAt("training", 5))
    assert first.train() == {"stopped": {"reason": "signal", "step": 5, "saved_step": 5}}
    second = attempt(tmp_path, 2)
    result = second.train()
    assert second.heartbeat.first_step == 5
    assert result["attempt"]["first_step"] == 5
    assert result["times_each_pair_was_trained_on"] == {"least": 2, "most": 2}
    assert_same_outcome(second, quiet)  # it also resends the first attempt's records
    assert second.channel.tables == quiet.rank.channel.tables


def test_keeping_losses_changes_nothing_else(quiet: Finished, keeping: Finished):
    assert_same_outcome(keeping.rank, quiet)
    assert "pair_losses" not in quiet.result
    losses = keeping.result["pair_losses"]
    assert losses.shape == (2, NUM_PAIRS) and losses.dtype == np.float32
    records = [one.metrics for one in keeping.rank.channel.records if one.kind == "train"]
    means = [
        sum(record["train/rm/loss"] for record in part) / 4 for part in (records[:4], records[4:])
    ]
    assert losses.mean(axis=1).tolist() == pytest.approx(means, rel=1e-6)


def test_kept_losses_resume_bit_for_bit(keeping: Finished, tmp_path: Path):
    first, second = (
        PlainRank.make(tmp_path, keeping_config(tmp_path), attempt=number) for number in (1, 2)
    )
    assert StopsAt("training", 5).apply(first).train()["stopped"]["saved_step"] == 5
    result = second.train()
    assert result["pair_losses"].tobytes() == keeping.result["pair_losses"].tobytes()


def test_a_run_over_lists_resumes_bit_for_bit_with_its_parameter_of_ties(
    quiet: Finished, tmp_path: Path
):
    def prepare(name: str, number: int) -> PlainRank:
        objective = ObjectiveConfig(ties="davidson", tie_parameter="learned")
        config = small_config(tmp_path / name, objective=objective)
        return PlainRank.make(tmp_path / name, config, attempt=number, lists=True)

    alone = prepare("alone", 1)
    expected = Finished(alone, alone.train())
    first = StopsAt("training", 5).apply(prepare("stopped", 1))
    assert first.train()["stopped"]["saved_step"] == 5
    second = prepare("stopped", 2)
    result = second.train()
    assert result["times_each_pair_was_trained_on"] == {"least": 2, "most": 2}
    assert result["episodes"] == NUM_STEPS * 6
    assert_same_outcome(second, expected)
    assert second.channel.tables == alone.channel.tables
    steps, evaluations = (
        [one.metrics for one in second.channel.records if one.kind == kind]
        for kind in ("train", "eval")
    )
    ties = [metrics["train/rm/tie_parameter"] for metrics in steps]
    assert ties[:2] == [1.0, 1.0]  # the first step's learning rate is 0
    assert len(set(ties[1:])) == NUM_STEPS - 1
    assert all(-1 <= metrics["eval/rm/kendall_tau"] <= 1 for metrics in evaluations)
    assert exported_weights(second).keys() == exported_weights(quiet.rank).keys()


def test_an_interrupted_evaluation_is_left_to_the_next_attempt(quiet: Finished, tmp_path: Path):
    first = attempt(tmp_path, 1, StopsAt("evaluating", 4))
    assert first.train() == {"stopped": {"reason": "signal", "step": 4, "saved_step": 4}}
    assert [one.step for one in first.channel.records if one.kind == "eval"] == [2]
    second = attempt(tmp_path, 2)
    second.train()
    assert_same_outcome(second, quiet)
    # The step is saved again, now with the metrics that rank it.
    assert [metrics["step"] for _, metrics in second.context.reported] == [4, 6, 8]
    assert "eval/rm/loss" in second.context.reported[0][1]


def test_a_set_that_a_resumed_run_adds_changes_no_bit_of_the_training(
    quiet: Finished, tmp_path: Path
):
    attempt(tmp_path, 1, StopsAt("training", 5)).train()
    second = attempt(tmp_path, 2)
    (default,) = second.job.held_out
    second.job = replace(second.job, held_out=(default, replace(default, name="again")))
    second.context.streams["eval/again"] = second.context.streams["eval"]
    second.train()
    expected = exported_weights(quiet.rank)
    assert all(torch.equal(one, expected[n]) for n, one in exported_weights(second).items())
    evaluations = [one for one in second.channel.records if one.kind == "eval"]
    before = [one for one in quiet.rank.channel.records if one.kind == "eval"]
    assert [one.step for one in evaluations] == [2, 4, 6, 8]
    for mine, quiet_one in zip(evaluations, before, strict=True):
        assert mine.metrics.items() >= quiet_one.metrics.items()
        added = {n: v for n, v in mine.metrics.items() if n.startswith("eval/again/")}
        assert bool(added) == (mine.step > 5)
        for name, value in quiet_one.metrics.items() if added else ():
            assert added[name.replace("/rm/", "/again/")] == value
    assert "eval/again/loss" in second.context.reported[-1][1]


def test_a_reason_to_stop_during_the_last_step_changes_nothing(quiet: Finished, tmp_path: Path):
    rank = attempt(tmp_path, 1, StopsAt("training", NUM_STEPS))
    assert rank.train()["steps"] == NUM_STEPS
    assert_same_outcome(rank, quiet)


def test_a_skipped_step_is_not_trained_on_and_the_next_attempt_knows(tmp_path: Path):
    first = attempt(tmp_path, 1, StopsAt("training", 6), skipped=frozenset({2}))
    assert first.train()["stopped"]["step"] == 6
    second = attempt(tmp_path, 2)  # only the checkpoint records the skipped step
    result = second.train()
    assert result["skipped_steps"] == [2]
    assert (result["steps"], result["episodes"]) == (NUM_STEPS, 42)
    assert result["times_each_pair_was_trained_on"] == {"least": 1, "most": 2}
    trained = [one.step for one in second.channel.records if one.kind == "train"]
    assert trained == [1, 2, 4, 5, 6, 7, 8]


def test_a_loss_that_is_not_finite_ends_the_attempt_with_its_pairs(tmp_path: Path):
    config = small_config(
        tmp_path,
        optimizer=OptimizerConfig(learning_rate=1e30, schedule="constant", max_grad_norm=0.0),
        checkpoint=CheckpointConfig(every_steps=1),
        evaluation=EvaluationConfig(at_end=False),
    )
    rank = PlainRank.make(tmp_path, config)
    result = rank.train()
    assert result["not_finite"]["step"] == 1
    assert len(result["not_finite"]["groups"]) == 6
    names = list_checkpoints(rank.job.run_folder)
    assert [name.split("_")[1] for name in names] == ["00000001"]  # it was copied


def test_without_held_out_pairs_nothing_is_evaluated(tmp_path: Path):
    rank = PlainRank.make(tmp_path, small_config(tmp_path), held_out=())
    result = rank.train()
    assert {record.kind for record in rank.channel.records} == {"train"}
    assert not any(name.startswith("eval/") for name in result["metrics"])
    assert rank.channel.tables == {}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The results of two ranks."""
    folder = tmp_path_factory.mktemp("together")
    spawn(stop_on_one_rank_and_resume, 2, 2, folder)
    paths = [folder / f"found-{rank}.pt" for rank in range(2)]
    return folder, [torch.load(path, weights_only=False) for path in paths]


def test_one_rank_s_reason_stops_all_ranks_at_the_same_step(together):
    _, found = together
    stopped = {"stopped": {"reason": "signal", "step": 5, "saved_step": 5}}
    assert [one["returned"][1] for one in found] == [stopped, stopped]


def test_ranks_report_and_check_equally_often(together):
    _, (first, second) = together
    assert first["reported"][0] and [len(one) for one in first["reported"]] == [4, 3, 2]
    assert [[name for name, _ in one] for one in first["reported"]] == [
        [name for name, _ in one] for one in second["reported"]
    ]
    assert first["checks"] == second["checks"] and min(first["checks"]) > 0


def test_two_ranks_resume_bit_for_bit(together):
    folder, (first, second) = together
    quiet, resumed = (
        load_file(folder / name / "run" / "export" / "model.safetensors")
        for name in ("quiet", "stopped")
    )
    assert all(torch.equal(weight, resumed[name]) for name, weight in quiet.items())
    assert first["records"][0] == first["records"][2]
    results = [first["returned"][i] for i in (0, 2)]
    for result in results:
        assert result["times_each_pair_was_trained_on"] == {"least": 2, "most": 2}
    assert second["returned"][2]["history"] == ""


def test_two_ranks_keep_the_losses_of_all_pairs_bit_for_bit_through_a_resume(
    together, keeping: Finished
):
    _, (first, second) = together
    losses = [first["returned"][i]["pair_losses"] for i in (0, 2)]
    assert not np.isnan(losses[0]).any()
    assert losses[0].tobytes() == losses[1].tobytes()
    assert second["returned"][2]["pair_losses"] is None
    np.testing.assert_allclose(losses[0], keeping.result["pair_losses"], rtol=1e-3, atol=1e-4)


def test_two_ranks_measure_the_same_as_one(together, quiet: Finished):
    _, (first, _) = together
    records = zip(first["records"][0], unmeasured(quiet.rank.channel.records), strict=True)
    for (*_, mine), (*_, alone) in records:
        assert mine == pytest.approx(alone, rel=1e-3, abs=1e-4)
