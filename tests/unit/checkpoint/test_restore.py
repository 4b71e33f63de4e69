import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.checkpoint.content import write_content
from rm_ray.checkpoint.restore import overlaps, restore_checkpoint
from rm_ray.runs.layout import STATE
from rm_ray.runs.manifest import Checkpoint, Manifest

EXTENTS = st.tuples(st.integers(0, 20), st.integers(1, 20)).map(lambda e: (e[0], e[0] + e[1]))


@pytest.fixture
def saved(run_folder, make_engine, content):
    """A checkpoint in the run's folder, and the engine that wrote it."""
    engine, what = make_engine(seed=1), content(2)
    for part in engine.slices():
        part.tensors["exp_avg"].fill_(0.125)
    engine.resume(5)
    folder = Path(run_folder.join("checkpoint_00000002_0001"))
    entries = write_content(folder, engine, what, what.state.ledger)
    manifest = Manifest(step=2, plan_fingerprint="plan", metrics={}, files=entries)
    return engine, what, Checkpoint(name=folder.name, manifest=manifest)


def test_a_checkpoint_restores_the_saved_state(saved, run_folder, make_engine):
    engine, what, found = saved
    torch.manual_seed(0)
    other = make_engine(seed=2)
    state = restore_checkpoint(run_folder, found, other)
    assert state.progress == what.state.progress
    assert state.history == what.state.history
    assert state.skipped == what.state.skipped == {3, 8}
    assert state.ledger.counts.tolist() == what.state.ledger.counts.tolist()
    assert other.num_updates == 5
    weights = other.weights()
    assert all(torch.equal(weights[name], one) for name, one in engine.weights().items())
    assert all((part.tensors["exp_avg"] == 0.125).all() for part in other.slices())


def test_a_rank_s_generator_continues_from_its_saved_state(saved, run_folder, make_engine):
    _, _, found = saved
    other = make_engine(seed=2)
    restore_checkpoint(run_folder, found, other)
    drawn = torch.rand(3)
    torch.rand(7)
    restore_checkpoint(run_folder, found, other)
    assert torch.equal(torch.rand(3), drawn)


def test_a_rank_without_a_generator_in_the_checkpoint_keeps_its_own(saved, run_folder, make_engine):
    _, _, found = saved
    other = make_engine(seed=2)
    other.rank = 4  # a single rank wrote the checkpoint
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    restore_checkpoint(run_folder, found, other)
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_without_skipped_steps_has_none(saved, run_folder, make_engine):
    _, _, found = saved
    path = Path(run_folder.join(f"{found.name}/{STATE}"))
    record = json.loads(path.read_text())
    del record["skipped"]
    path.write_text(json.dumps(record))
    assert restore_checkpoint(run_folder, found, make_engine()).skipped == frozenset()


@given(EXTENTS, st.lists(EXTENTS, max_size=4))
def test_a_file_is_needed_if_it_holds_an_element_of_this_rank(mine, stored):
    elements = set(range(*mine))
    expected = any(elements & set(range(*extent)) for extent in stored)
    assert overlaps({"weight": mine}, {"weight": stored}) == expected
    assert not overlaps({"other": mine}, {"weight": stored})


def test_a_checkpoint_without_the_hash_of_its_base_is_reported(
    saved, run_folder, make_engine, caplog
):
    _, _, found = saved
    restore_checkpoint(run_folder, found, make_engine())
    assert "hash" not in caplog.text
    restore_checkpoint(run_folder, found, make_engine(), base_hash="1" * 64)
    assert f"{found.name} holds only what is trained, and no hash of its base model" in caplog.text
