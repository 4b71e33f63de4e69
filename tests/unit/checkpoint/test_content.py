import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rm_ray.checkpoint.content import count_writers, slices_file, write_content
from rm_ray.checkpoint.ledger import Ledger
from rm_ray.checkpoint.pair_losses import PairLosses
from rm_ray.runs.history import History
from rm_ray.runs.manifest import describe_file
from rm_ray.train.slices import list_extents

FILES = {
    "slices-00000.safetensors", "rng-00000.safetensors", "state.json", "history.jsonl",
    "probes.json", "data/trained_pairs.npz",
}  # fmt: skip


def test_rank_0_writes_its_part_and_the_record_of_the_run(tmp_path: Path, make_engine, content):
    engine, saved = make_engine(), content(2)
    folder = tmp_path / "checkpoint"
    entries = write_content(folder, engine, saved, saved.state.ledger)
    assert entries.keys() == FILES
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == FILES
    slices = slices_file(0)
    extents = list_extents(folder / slices)
    for name, entry in entries.items():
        described = describe_file(folder / name)
        assert entry == (described | {"extents": extents} if name == slices else described)
    assert json.loads((folder / "state.json").read_text()) == {
        "progress": {
            "step": 2, "episode": 8, "seconds": 0.0, "timed_groups": 0, "timed_tokens": 0,
            "timed_distinct_tokens": 0, "timed_computed_tokens": 0, "timed_flops": 0.0,
            "timed_seconds": 0.0, "spent": {"steps": 1.5},
        },
        "skipped": [3, 8],
        "world_size": 1,
        "zero_stage": 0,
        "optimizer_updates": 0,
        "config": {"run": {"name": "saved"}},
        "plan_fingerprint": "plan",
        "mlflow_run_id": "mlflow-id",
        "base_hash": "",
    }  # fmt: skip
    assert json.loads((folder / "probes.json").read_text()) == saved.reference_rewards
    lines = (folder / "history.jsonl").read_text().splitlines()
    assert History.from_json_lines(lines) == saved.state.history
    stored = Ledger.read(folder / "data" / "trained_pairs.npz")
    assert stored.counts.tolist() == [1] * 8 + [0] * 32


def test_losses_are_written_if_they_are_kept(tmp_path: Path, make_engine, content):
    saved, losses = content(2), PairLosses(values=np.array([[0.5, np.nan]], dtype=np.float32))
    folder = tmp_path / "checkpoint"
    entries = write_content(folder, make_engine(), saved, saved.state.ledger, losses)
    assert entries.keys() == FILES | {"data/pair_losses.npy"}
    stored = PairLosses.read(folder / "data" / "pair_losses.npy")
    np.testing.assert_array_equal(stored.values, losses.values, strict=True)


def test_other_ranks_write_only_their_part(tmp_path: Path, make_engine, content):
    engine, saved = make_engine(), content(2)
    engine.rank = 3
    entries = write_content(tmp_path / "checkpoint", engine, saved, saved.state.ledger)
    assert entries.keys() == {"slices-00003.safetensors", "rng-00003.safetensors"}


def test_a_ledger_that_does_not_fit_the_progress_is_not_saved(tmp_path: Path, make_engine, content):
    saved = content(2)
    with pytest.raises(AssertionError, match="the ledger counts 0 pairs at episode 8"):
        write_content(tmp_path / "checkpoint", make_engine(), saved, Ledger.empty(40))


def test_an_existing_folder_is_an_os_error(tmp_path: Path, make_engine, content):
    (tmp_path / "checkpoint").write_text("in the way")
    saved = content(2)
    with pytest.raises(OSError, match="checkpoint"):
        write_content(tmp_path / "checkpoint", make_engine(), saved, saved.state.ledger)


def test_a_checkpoint_s_writers_are_counted_by_their_slices():
    names = [f"{kind}-{rank:05d}.safetensors" for kind in ("slices", "rng") for rank in range(3)]
    assert count_writers({name: {} for name in [*names, "state.json"]}) == 3


def test_rank_0_writes_the_buffers_of_the_models_files(tmp_path: Path, make_engine, content):
    engine, saved = make_engine(), content(2)
    engine.module.classifier.register_buffer("of_a_router", torch.ones(3))
    for rank in (0, 1):
        engine.rank = rank
        write_content(tmp_path / f"{rank}", engine, saved, saved.state.ledger)
        extents = list_extents(tmp_path / f"{rank}" / slices_file(rank))
        assert ("classifier.of_a_router" in extents) == (rank == 0)
