import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plain_training import NUM_HELD_OUT, PlainRank

from rm_ray.evaluation.held_out_set import PromptLabel
from rm_ray.worker.loop import TrainingLoop


def test_an_evaluation_is_recorded_and_logged_once_per_step(
    loop: TrainingLoop, rank: PlainRank, caplog: pytest.LogCaptureFixture
):
    loop.state.progress.step = 4
    with caplog.at_level("INFO", logger="rm_ray"):
        loop.evaluation.run(4)
        loop.evaluation.run(4)
    (line,) = (text for text in caplog.messages if text.startswith("evaluation at step"))
    assert re.fullmatch(
        rf"evaluation at step 4: accuracy [\d.]+, loss [\d.]+, margin [+-][\d.]+ "
        rf"over {NUM_HELD_OUT} pairs",
        line,
    )
    (record,) = loop.state.history.records
    assert (record.kind, record.step) == ("eval", 4)
    assert set(record.metrics) == {
        f"eval/rm/{name}"
        for name in (
            "loss", "accuracy", "chosen_rewards", "rejected_rewards", "reward_margin", "ties",
        )
    }  # fmt: skip
    assert loop.schedule.evaluated_at == 4
    assert set(rank.heartbeat.spent) == {"evaluation"}
    folder = Path(rank.job.run_folder.path)
    report = json.loads((folder / "evaluations" / "step-00000004.json").read_text())
    assert (report["step"], report["metrics"]) == (4, record.metrics)
    samples = json.loads((folder / "samples" / "step-000004.json").read_text())
    assert samples == rank.channel.tables["eval_samples/step-000004.json"]
    assert [sample["pair"] for sample in samples] == [0, 1, 2]


def test_the_heartbeat_waits_while_an_evaluation_s_pipeline_starts(
    loop: TrainingLoop, rank: PlainRank
):
    stream, at_start = rank.context.streams["eval"], []

    class Slow:
        def steps(self, first_step: int, num_steps: int) -> Iterator[Any]:
            time.sleep(0.05)  # the pipeline starts
            at_start.append(rank.heartbeat.phases[-1])
            yield from stream.steps(first_step, num_steps)

    rank.context.streams["eval"] = Slow()  # type: ignore[assignment]
    loop.state.progress.step = 4
    loop.evaluation.run(4)
    assert at_start == [("waiting", 4)]
    assert rank.heartbeat.phases[-1] == ("evaluating", 4)  # ranks still sum their results
    assert rank.heartbeat.num_beats > 0


def test_an_interrupted_evaluation_records_nothing(loop: TrainingLoop, rank: PlainRank):
    rank.heartbeat.reason_to_stop = "signal"
    loop.evaluation.run(4)
    assert loop.stopping.is_stopping
    assert loop.state.history.records == []
    assert loop.schedule.evaluated_at == -1
    assert not rank.job.run_folder.exists("evaluations")
    assert rank.heartbeat.spent["evaluation"] > 0  # but its time counts


def test_the_steps_of_an_evaluation_hold_all_held_out_pairs(rank: PlainRank):
    assert [one.steps.num_groups for one in rank.job.held_out] == [NUM_HELD_OUT]


@pytest.fixture
def named(rank: PlainRank, loop: TrainingLoop) -> TrainingLoop:
    """The loop with a second set: the held-out pairs again, as a benchmark's."""
    (default,) = rank.job.held_out
    subsets = ("alpacaeval-easy", "hep-cpp", "donotanswer")
    prompts = tuple(
        PromptLabel(subset=subsets[i % 3], num_correct=1, places=(0, 1))
        for i in range(NUM_HELD_OUT)
    )
    bench = replace(default, name="bench", prompts=prompts)
    rank.context.streams["eval/bench"] = rank.context.streams["eval"]
    job = replace(rank.job, held_out=(default, bench))
    loop.evaluation = replace(loop.evaluation, job=job)
    return loop


def test_each_set_has_its_metrics_in_one_record_and_its_own_files(
    named: TrainingLoop, rank: PlainRank, caplog: pytest.LogCaptureFixture
):
    named.state.progress.step = 4
    with caplog.at_level("INFO", logger="rm_ray"):
        named.evaluation.run(4)
        named.evaluation.run(4)
    (record,) = named.state.history.records
    default = {name for name in record.metrics if name.startswith("eval/rm/")}
    for name in default:  # the same pairs by the same weights
        assert record.metrics[name.replace("/rm/", "/bench/")] == record.metrics[name]
    own = record.metrics.keys() - default - {n.replace("/rm/", "/bench/") for n in default}
    assert own == {
        f"eval/bench/{name}"
        for name in (
            "accuracy_on/first", "accuracy_on/others",
            "score", "score_on/chat", "score_on/safety", "score_on/reasoning",
        )
    }  # fmt: skip
    assert next(iter(record.metrics)).startswith("eval/rm/")
    parts = [
        record.metrics[f"eval/bench/score_on/{part}"] for part in ("chat", "safety", "reasoning")
    ]
    assert record.metrics["eval/bench/score"] == pytest.approx(sum(parts) / 3)
    lines = [text for text in caplog.messages if text.startswith("evaluation at step 4")]
    assert len(lines) == 2
    assert re.match(r"evaluation at step 4 on bench: accuracy [\d.]+, score [\d.]+, loss", lines[1])
    assert rank.channel.lines == [f"step 4/8 · evaluating on bench, {NUM_HELD_OUT} pairs"]
    folder = Path(rank.job.run_folder.path)
    report = json.loads((folder / "evaluations" / "bench" / "step-00000004.json").read_text())
    assert report["by_subset"].keys() == {"alpacaeval-easy", "hep-cpp", "donotanswer"}
    assert report["benchmark"]["Score"] == record.metrics["eval/bench/score"]
    plain = json.loads((folder / "evaluations" / "step-00000004.json").read_text())
    assert "benchmark" not in plain and plain["by_subset"] == {}
    assert plain["overall"] == report["overall"]
    assert rank.channel.tables.keys() == {
        "eval_samples/step-000004.json", "eval_samples/bench/step-000004.json",
    }  # fmt: skip


def test_a_stop_between_two_sets_records_neither(named: TrainingLoop, rank: PlainRank):
    scored, real = [], rank.context.dataset_shard

    def asked(name: str) -> Any:
        scored.append(name)
        if scored == ["eval", "eval/bench"]:  # the default set is scored
            rank.heartbeat.reason_to_stop = "signal"
        return real(name)

    rank.context.dataset_shard = asked  # type: ignore[method-assign]
    named.evaluation.run(4)
    assert scored == ["eval", "eval/bench"]
    assert named.stopping.is_stopping
    assert named.state.history.records == []
    assert named.schedule.evaluated_at == -1
    assert not rank.job.run_folder.exists("evaluations")

    named.stopping.is_stopping, rank.heartbeat.reason_to_stop = False, None
    named.evaluation.run(4)  # as the next attempt does
    assert scored == ["eval", "eval/bench"] * 2
    assert [record.step for record in named.state.history.records] == [0]
