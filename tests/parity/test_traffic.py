"""What ranks exchange in a step is what the time model says, collective by collective."""

import json
from pathlib import Path

import pytest
from gloo_ranks import spawn
from traffic_ranks import TrafficCase, count_all

BEYOND = 8_192
"""Bytes a step that the model leaves out: norms, checks, and padding to equal shards."""

SEVERAL = 100
"""Tokens of a micro-batch with which a step has several."""

USUAL = [
    TrafficCase(0, tokens=SEVERAL),
    TrafficCase(1, "bfloat16", tokens=SEVERAL),
    TrafficCase(2, "bfloat16", tokens=SEVERAL),
    TrafficCase(3, "bfloat16", tokens=SEVERAL),
]
GRID = [
    TrafficCase(stage, dtype, tokens, checkpointing, live=live)
    for stage in range(4)
    for dtype in ("float32", "bfloat16")
    for tokens in (SEVERAL, 4_000)
    for checkpointing in (False, True)
    for live in ((1, 10**9) if stage == 3 and not checkpointing else (10**9,))
]


def check(folder: Path, world_size: int, cases: list[TrafficCase]) -> None:
    spawn(count_all, world_size, cases, folder)
    for case, (passes, counted, predicted) in zip(
        cases, json.loads((folder / "found.json").read_text()), strict=True
    ):
        assert (passes > 1) == (case.tokens <= SEVERAL)
        off = {kind: counted[kind] - n for kind, n in predicted.items()}
        assert all(abs(n) <= BEYOND * passes for n in off.values()), (case, counted, predicted)


def test_ranks_exchange_what_is_predicted(tmp_path: Path):
    check(tmp_path, 2, USUAL)


@pytest.mark.slow
def test_they_do_so_whatever_the_stage_precision_passes_and_recomputation(tmp_path: Path):
    check(tmp_path, 2, GRID)


@pytest.mark.slow
def test_four_ranks_do_so_too_and_gather_within_a_machine_after_the_first_pass(tmp_path: Path):
    secondary = [
        TrafficCase(3, "bfloat16", tokens, secondary=True, live=live)
        for tokens in (SEVERAL // 2, 4_000)
        for live in (1, 10**9)
    ]
    check(tmp_path, 4, [TrafficCase(stage, "bfloat16") for stage in range(4)])
    check(tmp_path, 4, secondary)
