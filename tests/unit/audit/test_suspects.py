import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.audit.suspects import (
    CHANCE,
    JointLosses,
    find_most_suspect,
    join_losses,
    late_losses,
    mean_losses,
    suspicion,
)
from rm_ray.data.sources.synthetic import generate_pairs
from rm_ray.runs.row_losses import RowLosses

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "benchmarks")]

import mislabelled  # noqa: E402


def losses_of(
    rows: list[tuple[str, int]], losses: list[list[float]], floor: list[float] | None = None
) -> RowLosses:
    origins = tuple(dict.fromkeys(origin for origin, _ in rows))
    return RowLosses(
        origins=origins,
        fragment=np.array([origins.index(origin) for origin, _ in rows], dtype=np.int32),
        row=np.array([row for _, row in rows], dtype=np.int64),
        floor=np.zeros(len(rows)) if floor is None else np.array(floor),
        losses=np.array(losses, dtype=np.float32),
    )


def places(joint: JointLosses) -> list[tuple[str, int]]:
    return [(joint.origins[i], int(row)) for i, row in zip(joint.fragment, joint.row, strict=True)]


def test_a_later_epoch_weighs_more_and_one_without_the_row_does_not_count():
    nan = math.nan
    rows = [("a", i) for i in range(4)]
    epochs = [[1.0, nan, nan, 0.75], [3.0, 2.0, nan, 0.25]]
    found = mean_losses(losses_of(rows, epochs, floor=[0, 0, 0, 0.25]))
    np.testing.assert_allclose(found, [7 / 3, 2.0, nan, 1.25 / 3 - 0.25], rtol=1e-12)


def test_models_are_joined_by_origin_and_row_in_whatever_order_they_know_them():
    one = losses_of([("a", 5), ("a", 1), ("b", 1), ("b", 2)], [[0.5, 0.1, 1.1, 1.2]])
    other = losses_of([("c", 1), ("b", 1), ("a", 5), ("a", 1)], [[9.0, 2.1, 1.5, math.nan]])
    joint = join_losses([one, other])
    assert places(joint) == [("a", 5), ("b", 1)]
    np.testing.assert_allclose(joint.losses, [[0.5, 1.1], [1.5, 2.1]], rtol=1e-6)


def test_a_row_that_is_there_twice_counts_once():
    joint = join_losses([losses_of([("a", 5), ("a", 5), ("a", 4)], [[0.5, 0.5, 1.0]])])
    assert places(joint) == [("a", 4), ("a", 5)]
    assert joint.losses.tolist() == [[1.0, 0.5]]


@given(st.data())
def test_each_model_s_losses_stay_with_their_rows(data: st.DataObject):
    rows = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), min_size=1, unique=True)
    models = data.draw(st.lists(rows, min_size=1, max_size=3))
    losses = [[float(10 * ord(origin) + row + m) for origin, row in known]
              for m, known in enumerate(models)]  # fmt: skip
    pairs = zip(models, losses, strict=True)
    joint = join_losses([losses_of(known, [values]) for known, values in pairs])
    assert set(places(joint)) == set.intersection(*map(set, models))
    for m, values in enumerate(joint.losses):
        expected = [10 * ord(origin) + row + m for origin, row in places(joint)]
        assert values.tolist() == expected


def joint_of(losses: list[list[float]], late: list[list[float]] | None = None) -> JointLosses:
    count = len(losses[0])
    return JointLosses(
        origins=("a.jsonl",),
        fragment=np.zeros(count, dtype=np.int64),
        row=np.arange(count),
        losses=np.array(losses),
        late=np.array(losses if late is None else late),
    )


def test_the_most_suspect_share_comes_with_the_worst_first():
    found = find_most_suspect(joint_of([[0.1, 3.0, 0.2, 1.0]]), 0.5)
    assert found.num_examined == 4
    found = [*found.findings]
    assert [(one.source, one.row, one.score) for one in found] == [
        ("a.jsonl", 1, 3.0), ("a.jsonl", 3, 1.0),
    ]  # fmt: skip
    assert {one.kind for one in found} == {"mislabelled"}
    assert found[0].detail == "mean loss 3.00, highest in later epochs 3.00 (chance: 0.69)"


@pytest.mark.parametrize(
    ("share", "count", "most"), [(0.07, 100, 7), (0.29, 100, 29), (0.15, 6, 0), (0.15, 7, 1)]
)
def test_no_more_than_the_share_is_suspect(share: float, count: int, most: int):
    found = find_most_suspect(joint_of([[3.0] * count]), share)
    assert len([*found.findings]) == most


def test_a_label_that_models_agree_with_is_not_suspect_whatever_the_share():
    found = find_most_suspect(joint_of([[0.1, 0.6, CHANCE, 0.7]]), 1.0)
    assert [one.row for one in found.findings] == [3]


def test_a_label_that_a_model_learnt_by_heart_is_suspect_by_the_epochs_before():
    found = find_most_suspect(joint_of([[0.1, 0.5, 0.6]], late=[[0.3, 0.9, 0.6]]), 1.0)
    assert [one.row for one in found.findings] == [1]


def test_rows_that_are_not_suspect_leave_their_places_to_others():
    late = [[0.1, 0.1, 1.0, 1.0]]
    found = find_most_suspect(joint_of([[4.0, 3.0, 2.0, 1.0]], late=late), 0.5)
    assert [one.row for one in found.findings] == [2, 3]


def test_one_of_two_models_is_not_enough_unless_it_is_sure():
    late = [[0.1, 1.0, 3.0], [0.1, 0.1, 0.1]]
    found = find_most_suspect(joint_of([[0.1, 0.2, 0.3]] * 2, late=late), 1.0)
    assert [one.row for one in found.findings] == [2]


@pytest.mark.parametrize(
    ("losses", "floor", "late"),
    [
        ([2.0], 0.5, 1.5),
        ([9.0, 2.0], 0.0, 2.0),
        ([9.0, 2.0, 1.0], 0.0, 2.0),
        ([9.0, 8.0, 2.0, 1.0], 0.0, 2.0),
        ([9.0, 3.0, math.nan, 1.0], 0.0, 3.0),  # three epochs, of which two are the later ones
        ([9.0, 3.0, math.nan, math.nan], 0.0, 3.0),
        ([math.nan, 9.0], 1.0, 8.0),
        ([math.inf, math.inf], 0.0, math.inf),
        ([math.nan, math.nan], 0.0, math.nan),
    ],
)
def test_the_late_loss_is_the_highest_of_the_later_half_of_the_epochs_a_row_was_in(
    losses: list[float], floor: float, late: float
):
    rows = losses_of([("a", 0), ("a", 1)], [[loss, 0.25] for loss in losses], floor=[floor, 0])
    np.testing.assert_allclose(late_losses(rows), [late, 0.25])
    joint = join_losses([rows])
    only = joint.only(joint.row == 1)
    assert (only.row.tolist(), only.late.tolist()) == ([1], [[0.25]])


def test_several_models_say_how_many_disagree():
    (found,) = find_most_suspect(joint_of([[0.1, 2.0], [0.1, 1.0], [0.2, 0.6]]), 0.5).findings
    assert found.row == 1
    assert found.detail.endswith("2 of 3 models disagree with the label")


@given(st.lists(st.lists(st.floats(0, 50), min_size=4, max_size=4), min_size=1, max_size=4))
def test_the_order_of_the_models_does_not_matter(losses: list[list[float]]):
    together = suspicion(np.array(losses))
    np.testing.assert_allclose(suspicion(np.array(losses[::-1])), together, rtol=1e-12)


@pytest.fixture(scope="module")
def seeds() -> list[mislabelled.Seen]:
    """Two trainings of 200 pairs of one task, 20 of which have the wrong label."""
    rows = [row for row in generate_pairs("train", 1_000) if row["source"].endswith("manners")]
    return [mislabelled.train_on_noise(rows, 2, seed) for seed in range(2)]


def test_most_flipped_labels_are_among_the_most_suspect_by_one_run_s_losses(seeds):
    for seen in seeds:
        assert mislabelled.found([seen.kept], seen.is_flipped) >= mislabelled.FOUND
        assert mislabelled.recall([seen.kept], seen.is_flipped) >= mislabelled.FOUND


def test_two_seeds_together_find_no_fewer(seeds):
    joint = join_losses([seen.kept for seen in seeds])
    assert places(joint) == [("rows", row) for row in range(200)]
    alone = [mislabelled.found([seen.kept], seeds[0].is_flipped) for seen in seeds]
    together = mislabelled.found([seen.kept for seen in seeds], seeds[0].is_flipped)
    assert together >= min(alone)
    flagged = find_most_suspect(joint, mislabelled.SHARE)
    right = [bool(seeds[0].is_flipped[one.row]) for one in flagged.findings]
    assert sum(right) / 20 >= mislabelled.FOUND
