"""Training equals an independent loop in plain PyTorch, on any number of ranks and ZeRO stage."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_ranks import spawn
from plain_loop import Trained, check_against
from ranks import (
    FROZEN,
    Case,
    interrupt_all,
    lora_case,
    meet_infinite_losses,
    varlen_case,
)
from ranks import train_all as train_all_cases

from rm_ray.config.sections.model import ModelConfig

STAGES = (0, 1, 2, 3)

LORA = {1: [lora_case(2)], 2: [lora_case(0), lora_case(3, recomputing=True)]}
"""By the number of ranks; all stages are in ``test_lora_training.py``."""


def varlen_cases(windowed: str) -> dict[int, list[Case]]:
    """Return, by the number of ranks, trainings whose attention goes the way of a GPU's."""
    return {
        1: [varlen_case(1, windowed, recomputing=True)],
        2: [
            varlen_case(0, windowed),
            varlen_case(2, windowed, recomputing=True, frozen=FROZEN),
            varlen_case(3, windowed, recomputing=True),
        ],
    }


def lists_cases(num_ranks: int) -> list[Case]:
    """Return trainings on lists; those that learn a parameter of ties do so at every stage."""
    if num_ranks == 1:
        return [Case(stage, lists="bradley_terry") for stage in (0, 3)]
    others = [Case(3, lists="bradley_terry"), Case(2, lists="plackett_luce")]
    return [Case(stage, lists="davidson") for stage in STAGES] + others


@pytest.fixture(scope="module", params=[1, 2])
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, windowed: str
) -> Path:
    """What our engine leaves on 1 and on 2 ranks, at every ZeRO stage, in both dtypes."""
    folder = tmp_path_factory.mktemp(f"ranks-{request.param}")
    cases = [Case(stage) for stage in STAGES] + varlen_cases(windowed)[request.param]
    cases += lists_cases(request.param)
    cases += LORA[request.param]
    if request.param == 2:
        cases += [Case(stage, dtype="bfloat16") for stage in STAGES]
        cases += [Case(3, model=ModelConfig(gradient_checkpointing=True))]
        cases += [Case(2, offload="optimizer"), Case(3, offload="all")]
        cases += [Case(0, layout="padded"), Case(3, layout="padded")]
        cases += [Case(stage, "bfloat16", lists="davidson") for stage in (0, 3)]
    spawn(train_all_cases, request.param, cases, folder)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_every_step_equals_the_plain_loop(trained: Path, stage: int, reference: Trained) -> None:
    check_against(reference, trained / f"{stage}-float32-none-packed.pt")


def test_every_step_on_lists_equals_the_plain_loop(trained: Path, plain: Any) -> None:
    """Of 1 to 5 responses, with margins, soft labels and ties, whose parameter may be learned."""
    of_ranks = int(trained.name.split("-")[1][0])
    for case in lists_cases(of_ranks):
        expected = plain(case.model, lists=case.lists)
        check_against(expected, trained / f"{case.name}.pt")
        assert ("tie.moved" in expected[1]) == (case.lists == "davidson")


def test_the_attention_of_a_gpu_changes_nothing(trained: Path, windowed: str, plain: Any) -> None:
    """But for the operator itself; all stages and models are in ``test_varlen_training.py``."""
    of_ranks = int(trained.name.split("-")[1][0])
    for case in varlen_cases(windowed)[of_ranks]:
        check_against(plain(case.model, case.frozen), trained / f"{case.name}.pt")


def test_adapters_are_trained_like_those_of_peft(trained: Path, peft_loop: Any) -> None:
    of_ranks = int(trained.name.split("-")[1][0])
    for case in LORA[of_ranks]:
        check_against(peft_loop(case.lora), trained / f"{case.name}.pt", num_steps=20)


@pytest.mark.parametrize("name", ["2-float32-optimizer-packed", "3-float32-all-packed"])
def test_offloading_changes_nothing(trained: Path, name: str, reference: Any) -> None:
    if not (trained / f"{name}.pt").exists():
        pytest.skip("offloading is tried on 2 ranks only")
    check_against(reference, trained / f"{name}.pt")


def test_recomputing_activations_changes_nothing(trained: Path, reference: Any) -> None:
    path = trained / "3-float32-none-packed-recomputing.pt"
    if not path.exists():
        pytest.skip("recomputing is tried on 2 ranks only")
    check_against(reference, path)


@pytest.mark.parametrize("stage", [0, 3])
def test_padding_instead_of_packing_changes_nothing(
    trained: Path, stage: int, reference: Any
) -> None:
    path = trained / f"{stage}-float32-none-padded.pt"
    if not path.exists():
        pytest.skip("padding is tried on 2 ranks only")
    check_against(reference, path)


def test_bfloat16_follows_float32(trained: Path, reference: Any) -> None:
    found = sorted(trained.glob("*-bfloat16-none-packed.pt"))
    if not found:
        pytest.skip("bfloat16 is tried on 2 ranks only")
    for path in found:
        measured, _ = torch.load(path)
        losses = torch.tensor(measured)[:, 0]
        expected = torch.tensor(reference[0])[:, 0]
        # Steps feed their rounding to the next: close at first, and never far.
        torch.testing.assert_close(losses[:5], expected[:5], rtol=0, atol=0.01)
        torch.testing.assert_close(losses, expected, rtol=0.1, atol=0)
        assert not torch.equal(losses, expected)


def test_a_parameter_of_ties_follows_in_bfloat16(trained: Path, plain: Any) -> None:
    if not (trained / "0-bfloat16-none-packed-davidson.pt").exists():
        pytest.skip("bfloat16 is tried on 2 ranks only")
    steps, expected = plain(ModelConfig(), lists="davidson")
    assert abs(expected["tie.moved"]) > 2e-3
    for stage in (0, 3):
        measured, weights = torch.load(trained / f"{stage}-bfloat16-none-packed-davidson.pt")
        losses, plain_losses = (torch.tensor(each)[:, 0] for each in (measured, steps))
        torch.testing.assert_close(losses, plain_losses, rtol=0, atol=0.02)
        moved = weights["tie.moved"].float()
        torch.testing.assert_close(moved, expected["tie.moved"], rtol=0.05, atol=0)


RESUMED = [
    Case(1, dtype="bfloat16"),
    Case(2, offload="optimizer"),
    Case(3, offload="all"),
    *(Case(stage, lists="davidson") for stage in (0, 1, 2)),
    Case(3, "bfloat16", lists="davidson"),
    LORA[2][1],
]
"""All of them are trained without interruption above, on 2 ranks."""


def test_a_resumed_engine_goes_on_bit_for_bit_also_by_deterministic_kernels(
    trained: Path, tmp_path: Path
) -> None:
    if not (trained / f"{RESUMED[-1].name}.pt").exists():
        pytest.skip("resuming is tried on 2 ranks only")
    spawn(interrupt_all, 2, RESUMED, tmp_path)
    for case in RESUMED:
        measured, weights = torch.load(tmp_path / f"resumed-{case.name}.pt")
        expected, expected_weights = torch.load(trained / f"{case.name}.pt")
        assert measured == expected, case
        for name, weight in weights.items():
            assert torch.equal(weight, expected_weights[name]), (case, name)


def test_a_step_of_an_infinite_loss_leaves_weights_and_moments_at_every_stage(
    trained: Path, tmp_path: Path
) -> None:
    cases = [
        Case(0),
        Case(1, dtype="bfloat16"),
        Case(2),
        Case(2, offload="optimizer"),
        Case(3, dtype="bfloat16"),
    ]
    there = [case for case in cases if (trained / f"{case.name}.pt").exists()]
    spawn(meet_infinite_losses, 2 if len(there) == len(cases) else 1, there, tmp_path)
    for case in there:
        measured, num_updates, named = torch.load(tmp_path / f"infinite-{case.name}.pt")
        expected, _ = torch.load(trained / f"{case.name}.pt")
        assert measured == expected[:4], case
        assert (num_updates, len(named)) == (4, 1), case
