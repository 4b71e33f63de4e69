from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from rm_ray.train.slices import (
    Slice,
    buffer_slices,
    list_extents,
    read_slices,
    stream_weights,
    write_slices,
)

KINDS = ("weight", "exp_avg", "exp_avg_sq")

Cut = tuple[str, int, int]
"""A parameter, and the start and end of a part."""

State = dict[str, dict[str, Tensor]]
"""The full flat tensors, by parameter and kind."""

Layout = Callable[[State, int], list[list[Cut]]]
"""The parts that each rank holds."""


def state_of(lengths: Sequence[int]) -> State:
    """Make a state of distinct elements."""
    generator = torch.Generator().manual_seed(0)
    total = len(KINDS) * sum(lengths)
    values = iter(torch.randperm(total, generator=generator).float().split(1))
    return {
        f"layers.{i}.weight": {
            kind: torch.cat([next(values) for _ in range(length)]) for kind in KINDS
        }
        for i, length in enumerate(lengths)
    }


def zeros_like(state: State) -> State:
    return {
        name: {kind: torch.zeros_like(tensor) for kind, tensor in tensors.items()}
        for name, tensors in state.items()
    }


def part_of(state: State, cut: Cut, *, is_written: bool = True) -> Slice:
    """Return a view of a part, like an engine's view of its live state."""
    name, start, end = cut
    tensors = {kind: tensor[start:end] for kind, tensor in state[name].items()}
    return Slice(parameter=name, start=start, tensors=tensors, is_written=is_written)


def is_same(one: State, other: State) -> bool:
    return all(torch.equal(one[name][kind], other[name][kind]) for name in one for kind in KINDS)


def write_ranks(state: State, ranks: Sequence[Sequence[Cut]], folder: Path) -> list[Path]:
    paths = [folder / f"slices-{rank:05d}.safetensors" for rank in range(len(ranks))]
    for cuts, path in zip(ranks, paths, strict=True):
        write_slices([part_of(state, cut) for cut in cuts], path)
    return paths


def whole(state: State) -> list[Cut]:
    return [(name, 0, len(tensors["weight"])) for name, tensors in state.items()]


def in_stretches(state: State, world_size: int) -> list[list[Cut]]:
    """Give each rank a range of the concatenated parameters, as ZeRO 1 and 2 do."""
    total = sum(end for _, _, end in whole(state))
    length, ranks, offset = -(-total // world_size), [[] for _ in range(world_size)], 0
    for name, _, end in whole(state):
        for rank, cuts in enumerate(ranks):
            first, last = max(rank * length - offset, 0), min((rank + 1) * length - offset, end)
            if first < last:
                cuts.append((name, first, last))
        offset += end
    return ranks


def in_equal_parts(state: State, world_size: int) -> list[list[Cut]]:
    """Give each rank a part of every parameter, as ZeRO 3 does; the last parts may be short."""
    ranks: list[list[Cut]] = [[] for _ in range(world_size)]
    for name, _, end in whole(state):
        length = -(-end // world_size)
        for rank, cuts in enumerate(ranks):
            if rank * length < end:
                cuts.append((name, rank * length, min((rank + 1) * length, end)))
    return ranks


def by_turns(state: State, world_size: int) -> list[list[Cut]]:
    """Give every rank all parameters, of which it writes some, as without ZeRO."""
    return [whole(state)[rank::world_size] for rank in range(world_size)]


@st.composite
def partitions(draw: st.DrawFn, state: State) -> list[list[Cut]]:
    """Cut each parameter anywhere, and distribute the parts over any number of ranks."""
    ranks: list[list[Cut]] = [[] for _ in range(draw(st.integers(1, 5)))]
    for name, _, end in whole(state):
        bounds = sorted({0, end, *draw(st.lists(st.integers(0, end), max_size=4))})
        for first, last in pairwise(bounds):
            ranks[draw(st.integers(0, len(ranks) - 1))].append((name, first, last))
    return ranks


@st.composite
def partitioned_states(draw: st.DrawFn, count: int) -> tuple[State, list[list[list[Cut]]]]:
    """Draw a state and several partitions of it."""
    state = state_of(draw(st.lists(st.integers(1, 12), min_size=1, max_size=4)))
    return state, [draw(partitions(state)) for _ in range(count)]


@given(partitioned_states(2))
def test_any_partition_is_read_back_by_any_other(drawn: tuple[State, list[list[list[Cut]]]]):
    state, (writers, readers) = drawn
    copy = zeros_like(state)

    with TemporaryDirectory() as folder:
        paths = write_ranks(state, writers, Path(folder))
        for cuts in readers:
            read_slices([part_of(copy, cut) for cut in cuts], paths)

    assert is_same(copy, state)


@pytest.mark.parametrize("written", [in_stretches, in_equal_parts, by_turns])
@pytest.mark.parametrize("read", [in_stretches, in_equal_parts, by_turns])
@pytest.mark.parametrize(("writers", "readers"), [(1, 1), (1, 4), (3, 2), (4, 1), (2, 9)])
def test_every_zero_stage_reads_what_every_other_wrote(
    tmp_path: Path, written: Layout, read: Layout, writers: int, readers: int
):
    state = state_of([7, 1, 12, 3])
    copy = zeros_like(state)

    paths = write_ranks(state, written(state, writers), tmp_path)
    for cuts in read(copy, readers):
        read_slices([part_of(copy, cut) for cut in cuts], paths)

    assert is_same(copy, state)


def test_every_rank_can_read_everything_from_one_writer(tmp_path: Path):
    state = state_of([5, 8])
    paths = write_ranks(state, in_equal_parts(state, 3), tmp_path)

    for _ in range(2):
        copy = zeros_like(state)
        read_slices([part_of(copy, cut) for cut in whole(copy)], paths)
        assert is_same(copy, state)


def test_reading_changes_nothing_outside_the_slices(tmp_path: Path):
    state = state_of([10])
    paths = write_ranks(state, [whole(state)], tmp_path)
    copy = zeros_like(state)

    read_slices([part_of(copy, ("layers.0.weight", 3, 6))], paths)

    for kind in KINDS:
        read = state["layers.0.weight"][kind].clone()
        read[:3] = read[6:] = 0
        assert copy["layers.0.weight"][kind].tolist() == read.tolist()


def test_moments_move_with_their_weights(tmp_path: Path):
    state = state_of([9])
    weight, exp_avg, exp_avg_sq = (state["layers.0.weight"][kind] for kind in KINDS)
    exp_avg.copy_(weight * 10)
    exp_avg_sq.copy_(weight * 100)
    paths = write_ranks(state, in_equal_parts(state, 4), tmp_path)
    copy = zeros_like(state)

    for cuts in in_equal_parts(copy, 2):
        read_slices([part_of(copy, cut) for cut in cuts], paths)

    read = copy["layers.0.weight"]
    assert read["weight"].tolist() == weight.tolist()
    assert read["exp_avg"].tolist() == (weight * 10).tolist()
    assert read["exp_avg_sq"].tolist() == (weight * 100).tolist()


def test_a_rank_writes_only_its_own_share(tmp_path: Path):
    state = state_of([4, 6, 2])
    cuts = whole(state)
    path = tmp_path / "slices.safetensors"

    write_slices([part_of(state, cut, is_written=i == 1) for i, cut in enumerate(cuts)], path)

    assert list_extents(path) == {"layers.1.weight": [(0, 6)]}
    assert load_file(path).keys() == {f"{kind}/0/layers.1.weight" for kind in KINDS}


def test_a_rank_also_reads_slices_that_others_wrote(tmp_path: Path):
    state = state_of([4, 6])
    paths = write_ranks(state, by_turns(state, 2), tmp_path)
    copy = zeros_like(state)

    read_slices([part_of(copy, cut, is_written=False) for cut in whole(copy)], paths)

    assert is_same(copy, state)


def test_extents_are_listed_by_parameter(tmp_path: Path):
    state = state_of([8, 3])
    path = tmp_path / "slices.safetensors"
    cuts = [("layers.0.weight", 0, 2), ("layers.1.weight", 1, 3), ("layers.0.weight", 5, 8)]

    write_slices([part_of(state, cut) for cut in cuts], path)

    extents = {name: sorted(found) for name, found in list_extents(path).items()}
    assert extents == {"layers.0.weight": [(0, 2), (5, 8)], "layers.1.weight": [(1, 3)]}
    assert [part_of(state, cut).extent for cut in cuts] == [(0, 2), (1, 3), (5, 8)]


def test_a_name_may_contain_slashes_and_dots(tmp_path: Path):
    path = tmp_path / "slices.safetensors"
    part = Slice(parameter="a/b.c/0/d", start=3, tensors={"weight": torch.ones(2)}, is_written=True)

    write_slices([part], path)

    assert list_extents(path) == {"a/b.c/0/d": [(3, 5)]}


def test_a_rank_that_holds_nothing_writes_an_empty_file(tmp_path: Path):
    state = state_of([2, 2])
    paths = write_ranks(state, by_turns(state, 3), tmp_path)

    assert [list_extents(path) for path in paths] == [
        {"layers.0.weight": [(0, 2)]},
        {"layers.1.weight": [(0, 2)]},
        {},
    ]
    read_slices([], paths)


def test_writing_does_not_change_the_state(tmp_path: Path):
    state = state_of([5])
    before = {kind: tensor.clone() for kind, tensor in state["layers.0.weight"].items()}

    write_ranks(state, in_equal_parts(state, 2), tmp_path)

    for kind, tensor in before.items():
        assert torch.equal(state["layers.0.weight"][kind], tensor)


def test_a_parameter_that_requires_gradients_is_filled_in_place(tmp_path: Path):
    state = state_of([6])
    paths = write_ranks(state, [whole(state)], tmp_path)
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    tensors = {"weight": parameter.detach().view(-1)}

    read_slices(
        [Slice(parameter="layers.0.weight", start=0, tensors=tensors, is_written=True)], paths
    )

    assert parameter.flatten().tolist() == state["layers.0.weight"]["weight"].tolist()
    assert parameter.requires_grad


@given(partitioned_states(1), st.randoms(use_true_random=False))
def test_the_error_names_the_parameter_with_a_missing_part(
    drawn: tuple[State, list[list[list[Cut]]]], random: Random
):
    state, (ranks,) = drawn
    lost = random.choice([cut for cuts in ranks for cut in cuts])
    left = [[cut for cut in cuts if cut != lost] for cuts in ranks]
    copy = zeros_like(state)

    with TemporaryDirectory() as folder, pytest.raises(ValueError) as caught:
        paths = write_ranks(state, left, Path(folder))
        read_slices([part_of(copy, cut) for cut in whole(copy)], paths)

    assert str(caught.value) == f"the checkpoint does not hold all of {lost[0]}"


def test_the_error_names_all_parameters_with_a_missing_part(tmp_path: Path):
    state = state_of([4, 4, 4])
    written = [[("layers.2.weight", 0, 3), ("layers.1.weight", 0, 4)]]
    paths = write_ranks(state, written, tmp_path)
    slices = [part_of(zeros_like(state), cut) for cut in whole(state)]

    with pytest.raises(ValueError, match=r"hold all of layers\.0\.weight, layers\.2\.weight$"):
        read_slices(slices, paths)
    with pytest.raises(ValueError, match=r"layers\.0\.weight, layers\.1\.weight, layers\.2"):
        read_slices(slices, [])


@pytest.mark.parametrize(
    "held",
    [
        [(0, 10), (0, 10)],
        [(10, 20), (10, 20)],
        [(0, 15), (0, 5)],
        [(0, 8), (12, 20), (0, 4)],
        [(1, 11), (11, 20)],
    ],
)
def test_overlapping_parts_do_not_hide_a_gap(tmp_path: Path, held: list[tuple[int, int]]):
    state = state_of([20])
    paths = write_ranks(state, [[("layers.0.weight", *extent)] for extent in held], tmp_path)
    slices = [part_of(zeros_like(state), cut) for cut in whole(state)]

    with pytest.raises(ValueError, match=r"does not hold all of layers\.0\.weight$"):
        read_slices(slices, paths)


@pytest.mark.parametrize(
    "held",
    [[(0, 20), (0, 20)], [(8, 20), (0, 12)], [(0, 20), (5, 10)], [(5, 15), (0, 6), (14, 20)]],
)
def test_files_may_hold_overlapping_parts(tmp_path: Path, held: list[tuple[int, int]]):
    state = state_of([20])
    paths = write_ranks(state, [[("layers.0.weight", *extent)] for extent in held], tmp_path)
    copy = zeros_like(state)

    read_slices([part_of(copy, cut) for cut in whole(copy)], paths)

    assert is_same(copy, state)


def test_a_gap_outside_the_slices_does_not_matter(tmp_path: Path):
    state = state_of([10])
    paths = write_ranks(state, [[("layers.0.weight", 5, 10)]], tmp_path)
    copy = zeros_like(state)

    read_slices([part_of(copy, ("layers.0.weight", 6, 9))], paths)

    assert copy["layers.0.weight"]["weight"][6:9].tolist() == (
        state["layers.0.weight"]["weight"][6:9].tolist()
    )


def test_buffers_of_a_models_files_are_slices_and_others_are_not(tmp_path):
    model = torch.nn.Linear(2, 2)
    model.register_buffer("bias_of_router", torch.tensor([[1.5, 2.5]], dtype=torch.float64))
    model.register_buffer("angles", torch.ones(3), persistent=False)
    (part,) = buffer_slices(model, is_written=True)
    assert (part.parameter, part.extent) == ("bias_of_router", (0, 2))
    write_slices([part], tmp_path / "file")
    ((name, first, values),) = stream_weights(
        {"bias_of_router": part.tensors["weight"].shape}, [tmp_path / "file"]
    )
    assert (name, first) == ("bias_of_router", 0)
    assert torch.equal(values, torch.tensor([1.5, 2.5], dtype=torch.float64))
