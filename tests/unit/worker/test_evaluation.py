import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plain_training import NUM_HELD_OUT, PlainRank

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
    assert report["step"] == 4
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
    assert rank.job.eval_steps is not None
    assert rank.job.eval_steps.num_pairs == NUM_HELD_OUT
