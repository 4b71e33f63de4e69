"""What a run leaves behind, and how two runs are compared."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file


def result(folder: Path) -> dict[str, Any]:
    """The run's ``result.json``."""
    return json.loads((folder / "result.json").read_text())


def history(folder: Path) -> list[dict[str, Any]]:
    """The run's metrics, a record for each step and evaluation."""
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


SAME_FILES = ("data/trained_pairs.npz", "data/pair_losses.npy", "probes.json")


def assert_same_outcome(folder: Path, expected: Path) -> None:
    """All that was trained, bit for bit, every metric of every step, each pair as often.

    That is the exported weights, and of the last checkpoint the weights, the optimizer's state, the
    state of each rank's random numbers, and how often each pair was trained on.
    """
    weights, expected_weights = (
        load_file(path / "export" / "model.safetensors") for path in (folder, expected)
    )
    assert weights.keys() == expected_weights.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, expected_weights[name]), name
    checksums, expected_checksums = state_checksums(folder), state_checksums(expected)
    different = sorted(checksums.items() ^ expected_checksums.items())
    assert not different, different
    ours, theirs = history(folder), history(expected)
    assert [(r["step"], r["kind"]) for r in ours] == [(r["step"], r["kind"]) for r in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for name in mine["metrics"]:
            if not name.startswith("perf/"):
                assert mine["metrics"][name] == other["metrics"][name], (mine["step"], name)
    epochs = result(folder)["steps"] // 10
    trained = result(folder)["times_each_pair_was_trained_on"]
    assert trained == {"least": epochs, "most": epochs}


def state_checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of the last checkpoint that holds no times and paths.

    The loss of each pair in each epoch is one of them, where it is kept.
    """
    last = max(folder.glob("checkpoint_[0-9]*"), key=lambda path: path.name)
    files = json.loads((last / "manifest.json").read_text())["files"]
    found = {
        name: hashlib.sha256((last / name).read_bytes()).hexdigest()
        for name in files
        if name.startswith(("slices-", "rng-")) or name in SAME_FILES
    }
    keeps = json.loads((folder / "run.json").read_text())["config"]["run"]["keep_pair_losses"]
    assert len(found) == 2 * result(folder)["workers"] + 2 + keeps, sorted(files)
    return found


def assert_same_losses(folder: Path, expected: Path) -> None:
    """The loss of every step and evaluation, as equal as other numbers of workers leave it."""
    ours, others = history(folder), history(expected)
    assert [(r["step"], r["kind"]) for r in ours] == [(r["step"], r["kind"]) for r in others]
    for mine, other in zip(ours, others, strict=True):
        name = f"{mine['kind']}/rm/loss"
        assert mine["metrics"][name] == pytest.approx(other["metrics"][name], rel=1e-3, abs=1e-4)
