"""Training through the indices and code of a GPU's attention equals a loop in plain PyTorch.

All but flash attention itself is what a GPU runs: ``varlen_operator`` stands in for it. The most
telling cases are among those of ``test_training.py``; here are all.
"""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_ranks import spawn
from plain_loop import check_against
from ranks import FROZEN, train_all, varlen_case


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_stage_does_with_any_model_recomputing_and_frozen_parameters(
    windowed: str, plain: Any, tmp_path: Path, world_size: int
) -> None:
    cases = [
        varlen_case(stage, name, recomputing=recomputing, frozen=frozen)
        for stage, name, recomputing, frozen in product(
            (0, 1, 2, 3), ("builtin", windowed), (False, True), ((), FROZEN)
        )
    ]
    spawn(train_all, world_size, cases, tmp_path)
    for case in cases:
        check_against(plain(case.model, case.frozen), tmp_path / f"{case.name}.pt")


@pytest.mark.slow
def test_bfloat16_follows_at_every_stage(plain: Any, tmp_path: Path) -> None:
    cases = [varlen_case(stage, "builtin", dtype="bfloat16") for stage in (0, 1, 2, 3)]
    spawn(train_all, 2, cases, tmp_path)
    for case in cases:
        measured, _ = torch.load(tmp_path / f"{case.name}.pt")
        losses = torch.tensor(measured)[:, 0]
        expected = torch.tensor(plain(case.model)[0])[:, 0]
        torch.testing.assert_close(losses[:5], expected[:5], rtol=0, atol=0.01)
        torch.testing.assert_close(losses, expected, rtol=0.1, atol=0)
        assert not torch.equal(losses, expected)
