import numpy as np
import pytest
from plain_training import BATCH, NUM_PAIRS, NUM_STEPS, PlainRank

from rm_ray.checkpoint.pair_losses import PairLosses
from rm_ray.train.step import NonFiniteLossError
from rm_ray.worker.loop import TrainingLoop


def stream(loop: TrainingLoop, rank: PlainRank):
    return loop.trainer.stream(rank.context.dataset_shard("train").steps(0, 8))


def test_a_step_is_counted_recorded_and_shown(loop: TrainingLoop, rank: PlainRank):
    micro_batches = next(stream(loop, rank))
    loop.trainer.take_or_skip(micro_batches)
    assert (loop.state.progress.step, loop.state.progress.episode) == (1, BATCH)
    trained = {int(p) for one in micro_batches for p in one.loaded.plan.groups}
    assert set(loop.state.ledger.counts.nonzero()[0]) == trained and len(trained) == BATCH
    (record,) = loop.state.history.records
    assert record.metrics["epoch"] == BATCH / NUM_PAIRS
    assert record.metrics["train/rm/lr"] == 0.0
    assert record.metrics["perf/steps_since_checkpoint"] == 1
    assert {name.partition("/")[0] for name in record.metrics} == {
        "episode", "epoch", "train", "perf",
    }  # fmt: skip
    assert rank.channel.lines[0].startswith("step 1/8 · episode 6 · loss ")
    assert rank.heartbeat.num_beats == len(micro_batches)
    assert set(rank.heartbeat.spent) == {"data wait", "steps"}


def test_a_step_decides_whether_to_stop(loop: TrainingLoop, rank: PlainRank):
    steps = stream(loop, rank)
    loop.trainer.take_or_skip(next(steps))
    assert not loop.stopping.is_stopping
    assert rank.context.num_checks == 1  # at the first step, then once per interval
    rank.heartbeat.reason_to_stop = "signal"
    loop.trainer.take_or_skip(next(steps))
    assert loop.stopping.is_stopping


def test_a_skipped_step_only_advances_the_step_count(loop: TrainingLoop, rank: PlainRank, caplog):
    loop.state.skipped = frozenset({0})
    before = {name: one.clone() for name, one in loop.compute.engine.weights().items()}
    loop.trainer.take_or_skip(next(stream(loop, rank)))
    assert (loop.state.progress.step, loop.state.progress.episode) == (1, 0)
    assert loop.state.ledger.counts.sum() == 0
    assert loop.state.history.records == [] and rank.channel.lines == []
    assert "step 1 is left out: its loss is not finite" in caplog.text
    weights = loop.compute.engine.weights()
    assert all((weights[name] == one).all() for name, one in before.items())


def test_a_loss_that_is_not_finite_counts_nothing(loop: TrainingLoop, rank: PlainRank):
    micro_batches = next(stream(loop, rank))
    micro_batches[0].groups.labels.margin.fill_(float("nan"))
    rank.heartbeat.reason_to_stop = "signal"
    with pytest.raises(NonFiniteLossError) as error:
        loop.trainer.take_or_skip(micro_batches)
    assert (error.value.step, error.value.groups) == (
        0, tuple(sorted(micro_batches[0].loaded.plan.groups.tolist())),
    )  # fmt: skip
    assert loop.state.progress.step == 0
    assert loop.state.ledger.counts.sum() == 0
    assert not loop.stopping.is_stopping
    assert rank.context.num_checks == 0  # no rank reaches the check


def test_losses_are_kept_by_epoch_of_the_pairs_that_count(loop: TrainingLoop, rank: PlainRank):
    loop.state.losses = PairLosses.empty(2, NUM_PAIRS)
    for step, micro_batches in zip(range(NUM_STEPS), stream(loop, rank), strict=True):
        if step == 1:
            micro_batches[0].loaded.plan.weights[0] = 0  # a filler for the losses alone
            filler = int(micro_batches[0].loaded.plan.groups[0])
        if step == 3:
            loop.state.skipped = frozenset({3})
            skipped = {int(p) for one in micro_batches for p in one.loaded.plan.groups}
        loop.trainer.take_or_skip(micro_batches)
    first, second = np.isnan(loop.state.losses.values)
    assert set(np.flatnonzero(first)) == {filler, *skipped}
    assert not second.any()
    last = loop.state.history.records[-1].metrics["train/rm/loss"]
    trained = [int(p) for one in micro_batches for p in one.loaded.plan.groups]
    assert loop.state.losses.values[1, trained].mean() == pytest.approx(last, rel=1e-6)


def test_losses_of_a_step_that_is_not_finite_are_not_kept(loop: TrainingLoop, rank: PlainRank):
    loop.state.losses = PairLosses.empty(2, NUM_PAIRS)
    micro_batches = next(stream(loop, rank))
    micro_batches[0].groups.labels.margin.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError):
        loop.trainer.take_or_skip(micro_batches)
    assert np.isnan(loop.state.losses.values).all()
