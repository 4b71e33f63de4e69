from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.batches.plan import epoch_order
from rm_ray.checkpoint.ledger import Ledger


@st.composite
def ledgers(draw: st.DrawFn) -> Ledger:
    """Full passes over the pairs and a partial one, in any order."""
    extra = draw(st.lists(st.booleans(), min_size=1, max_size=70))
    return Ledger(counts=np.array(extra, dtype=np.int32) + draw(st.integers(0, 1_000)))


@st.composite
def uneven_ledgers(draw: st.DrawFn) -> Ledger:
    """A ledger after skipped steps: some pairs are passes behind the others."""
    behind = draw(st.lists(st.integers(0, 4), min_size=1, max_size=70))
    return Ledger(counts=np.array(behind, dtype=np.int32) + draw(st.integers(0, 1_000)))


def episodes(ledger: Ledger) -> int:
    return int(ledger.counts.sum())


def stored(ledger: Ledger) -> Ledger:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trained_pairs.npz"
        ledger.write(path)
        return Ledger.read(path)


@given(ledgers() | uneven_ledgers())
def test_a_ledger_survives_a_round_trip(ledger: Ledger):
    again = stored(ledger)

    assert again.counts.tolist() == ledger.counts.tolist()
    assert again.counts.dtype == ledger.counts.dtype
    assert again.bounds == ledger.bounds


@given(ledgers(), st.data())
def test_a_ledger_continues_counting_after_a_round_trip(ledger: Ledger, data: st.DataObject):
    pairs = np.array(
        data.draw(st.lists(st.integers(0, len(ledger.counts) - 1), max_size=9)), dtype=np.int64
    )
    again = stored(ledger)

    ledger.add(pairs)
    again.add(pairs)

    assert again.counts.tolist() == ledger.counts.tolist()


@pytest.mark.parametrize("num_groups", [1, 7, 8, 9, 1_001])
def test_untrained_pairs_stay_at_zero_through_a_round_trip(num_groups: int):
    ledger = stored(Ledger.empty(num_groups))

    assert ledger.counts.tolist() == [0] * num_groups
    assert ledger.bounds == {"least": 0, "most": 0}


def test_a_pair_that_comes_twice_in_one_call_counts_twice():
    ledger = Ledger.empty(4)

    ledger.add(np.array([1, 3, 1]))
    ledger.add(np.array([], dtype=np.int64))

    assert ledger.counts.tolist() == [0, 2, 0, 1]
    assert ledger.bounds == {"least": 0, "most": 2}


def test_an_unknown_pair_is_an_error():
    with pytest.raises(IndexError):
        Ledger.empty(4).add(np.array([4]))


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 3), st.randoms())
def test_the_sum_over_ranks_is_what_one_rank_would_have_counted(
    num_groups: int, world_size: int, num_epochs: int, random: Random
):
    alone = Ledger.empty(num_groups)
    ranks = [Ledger.empty(num_groups) for _ in range(world_size)]

    for epoch in range(num_epochs):
        order = epoch_order(num_groups, seed=1, epoch=epoch)
        alone.add(order)
        for pair in order:
            random.choice(ranks).add(np.array([pair]))
    together = Ledger(counts=np.sum([rank.counts for rank in ranks], axis=0, dtype=np.int32))

    assert together.counts.tolist() == alone.counts.tolist() == [num_epochs] * num_groups
    together.check(num_groups * num_epochs)


def test_counts_continue_with_another_number_of_ranks():
    """Rank 0 continues from the checkpoint's sum, and every other rank from zero."""
    order, num_groups = epoch_order(12, seed=0, epoch=0), 12
    kept = Ledger.empty(num_groups)
    for world_size, steps in ((3, order[:5]), (1, order[5:6]), (4, order[6:])):
        ranks = [stored(kept)] + [Ledger.empty(num_groups) for _ in range(world_size - 1)]
        for i, pair in enumerate(steps):
            ranks[i % world_size].add(np.array([pair]))
        kept = Ledger(counts=np.sum([rank.counts for rank in ranks], axis=0, dtype=np.int32))
        kept.check(int(kept.counts.sum()))

    assert kept.counts.tolist() == [1] * num_groups


@given(st.integers(1, 30), st.integers(1, 7), st.integers(1, 3))
def test_every_step_of_a_run_passes_the_check(num_groups: int, batch: int, num_epochs: int):
    ledger, episode = Ledger.empty(num_groups), 0
    ledger.check(0)
    for epoch in range(num_epochs):
        order = epoch_order(num_groups, seed=0, epoch=epoch)
        for first, end in pairwise([*range(0, num_groups, batch), num_groups]):
            ledger.add(order[first:end])
            episode += end - first
            ledger.check(episode)


@given(ledgers().filter(lambda ledger: ledger.counts.min() < ledger.counts.max()), st.data())
def test_a_pair_trained_on_twice_instead_of_another_is_found(ledger: Ledger, data: st.DataObject):
    least, most = ledger.counts.min(), ledger.counts.max()
    already = np.flatnonzero(ledger.counts == most).tolist()
    ledger.check(episodes(ledger))

    ledger.add(np.array([data.draw(st.sampled_from(already))]))

    message = f"a pair was trained on {most + 1} times, another {least}"
    with pytest.raises(AssertionError, match=message):
        ledger.check(episodes(ledger))


def test_a_pair_missed_in_a_pass_is_found():
    ledger = Ledger.empty(5)
    ledger.add(np.array([0, 1, 2, 3]))
    ledger.check(4)  # the fifth pair may still follow
    ledger.add(np.array([0]))

    with pytest.raises(AssertionError, match="a pair was trained on 2 times, another 0"):
        ledger.check(5)


def test_a_skipped_step_may_leave_its_pairs_a_pass_behind():
    """The second step of the first pass is skipped; the second pass is complete."""
    ledger, episode = Ledger.empty(6), 0
    for epoch in range(2):
        for step in range(3):
            if (epoch, step) != (0, 1):
                pairs = np.arange(2 * step, 2 * step + 2)
                ledger.add(pairs)
                episode += len(pairs)
            ledger.check(episode, num_skipped=1)

    assert ledger.counts.tolist() == [2, 2, 1, 1, 2, 2]
    ledger.add(np.array([0]))
    ledger.check(11, num_skipped=1)
    with pytest.raises(AssertionError, match="a pair was trained on 3 times, another 1"):
        ledger.check(11)
    ledger.add(np.array([0]))
    with pytest.raises(AssertionError, match="a pair was trained on 4 times, another 1"):
        ledger.check(12, num_skipped=1)


@given(ledgers(), st.integers(-3, 3).filter(bool))
def test_a_ledger_that_does_not_match_the_episode_is_found(ledger: Ledger, off: int):
    with pytest.raises(AssertionError, match=f"the ledger counts {episodes(ledger)} pairs at"):
        ledger.check(episodes(ledger) + off)


def test_a_million_pairs_take_a_bit_each(tmp_path: Path):
    path = tmp_path / "trained_pairs.npz"
    num_groups = 1_000_000
    ledger = Ledger(counts=np.full(num_groups, 3, dtype=np.int32))
    ledger.add(epoch_order(num_groups, seed=0, epoch=3)[: num_groups // 2])

    ledger.write(path)

    assert path.stat().st_size < 200_000
    assert np.array_equal(Ledger.read(path).counts, ledger.counts)


def test_a_ledger_between_two_passes_is_tiny(tmp_path: Path):
    path = tmp_path / "trained_pairs.npz"

    Ledger(counts=np.full(1_000_000, 7, dtype=np.int32)).write(path)

    assert path.stat().st_size < 2_000


def test_no_entry_of_the_file_is_pickled(tmp_path: Path):
    path = tmp_path / "trained_pairs.npz"
    Ledger(counts=np.array([1, 2, 1], dtype=np.int32)).write(path)

    with np.load(path, allow_pickle=False) as entries:
        kinds = {name: entries[name].dtype.kind for name in entries}

    assert kinds.keys() == {"passes", "num_groups", "bits"}
    assert set(kinds.values()) <= {"i", "u"}


def test_a_pickled_entry_is_not_loaded(tmp_path: Path):
    path = tmp_path / "trained_pairs.npz"
    np.savez(path, passes=0, num_groups=1, bits=np.array([{"an": "object"}], dtype=object))

    with pytest.raises(ValueError, match="allow_pickle"):
        Ledger.read(path)
