"""Training equals an independent loop in plain PyTorch, on any number of ranks and ZeRO stage."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_loop import Trained, check_against
from ranks import (
    FROZEN,
    Case,
    gather_head,
    interrupt_all,
    meet_infinite_losses,
    resume_fused,
    spawn,
    train_over_nodes,
    train_third,
    varlen_case,
)
from ranks import train_all as train_all_cases
from transformers import AutoModelForCausalLM, LlamaConfig

from rm_ray.config import ModelConfig

STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def reference(plain: Any) -> Trained:
    """Losses, norms and weights of the plain loop on the built-in model."""
    trained: Trained = plain(ModelConfig())
    return trained


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


@pytest.fixture(scope="module", params=[1, 2])
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, windowed: str
) -> Path:
    """What our engine leaves on 1 and on 2 ranks, at every ZeRO stage, in both dtypes."""
    folder = tmp_path_factory.mktemp(f"ranks-{request.param}")
    cases = [Case(stage) for stage in STAGES] + varlen_cases(windowed)[request.param]
    if request.param == 2:
        cases += [Case(stage, dtype="bfloat16") for stage in STAGES]
        cases += [Case(3, model=ModelConfig(gradient_checkpointing=True))]
        cases += [Case(2, offload="optimizer"), Case(3, offload="all")]
        cases += [Case(0, layout="padded"), Case(3, layout="padded")]
    spawn(train_all_cases, request.param, cases, folder)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_every_step_equals_the_plain_loop(trained: Path, stage: int, reference: Trained) -> None:
    check_against(reference, trained / f"{stage}-float32-none-packed.pt")


def test_the_attention_of_a_gpu_changes_nothing(trained: Path, windowed: str, plain: Any) -> None:
    """But for the operator itself; all stages and models are in ``test_varlen_training.py``."""
    of_ranks = int(trained.name.split("-")[1][0])
    for case in varlen_cases(windowed)[of_ranks]:
        check_against(plain(case.model, case.frozen), trained / f"{case.name}.pt")


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
        torch.testing.assert_close(losses[:10], expected[:10], rtol=0, atol=0.01)
        torch.testing.assert_close(losses, expected, rtol=0.1, atol=0)
        assert not torch.equal(losses, expected)


RESUMED = [
    *(Case(stage) for stage in STAGES),
    *(Case(stage, dtype="bfloat16") for stage in STAGES),
    Case(2, offload="optimizer"),
    Case(0, layout="padded"),
    Case(3, offload="all"),
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


def test_offloaded_state_of_fused_adamw_resumes_bit_for_bit(tmp_path: Path) -> None:
    cases = [Case(2, offload="optimizer"), Case(3, "bfloat16", offload="all")]
    spawn(resume_fused, 1, cases, tmp_path)
    for case in cases:
        (measured, weights), (again, resumed) = torch.load(tmp_path / f"fused-{case.name}.pt")
        assert measured == again, case
        assert all(torch.equal(weight, resumed[name]) for name, weight in weights.items()), case


def test_a_step_of_an_infinite_loss_leaves_weights_and_moments_at_every_stage(
    trained: Path, tmp_path: Path
) -> None:
    cases = [
        *(Case(stage) for stage in STAGES),
        *(Case(stage, dtype="bfloat16") for stage in (1, 2, 3)),
        Case(2, offload="optimizer"),
    ]
    there = [case for case in cases if (trained / f"{case.name}.pt").exists()]
    spawn(meet_infinite_losses, 2 if len(there) == len(cases) else 1, there, tmp_path)
    for case in there:
        measured, num_updates, named = torch.load(tmp_path / f"infinite-{case.name}.pt")
        expected, _ = torch.load(trained / f"{case.name}.pt")
        assert measured == expected[:4], case
        assert (num_updates, len(named)) == (4, 1), case


MOVED = [(0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3), (3, 0, 2)]
"""ZeRO stages of the first third of the steps, on 2 ranks, the second, on 1, the last, on 3."""


def test_another_number_of_ranks_or_stage_goes_on_with_the_same_losses(
    reference: Any, tmp_path: Path
) -> None:
    for third, world_size in enumerate((2, 1, 3)):
        spawn(train_third, world_size, third, MOVED, tmp_path)
    expected, expected_weights = reference
    for stages in MOVED:
        thirds = [torch.load(tmp_path / f"third-{third}-{stages}.pt") for third in range(3)]
        measured = torch.tensor([step for steps, _ in thirds for step in steps])
        torch.testing.assert_close(measured, torch.tensor(expected), rtol=1e-4, atol=1e-5)
        for name, weight in thirds[-1][1].items():
            torch.testing.assert_close(weight, expected_weights[name], rtol=0, atol=1e-5)


def test_the_head_is_drawn_as_stiennon_et_al_say_also_under_zero_3(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 32, "vocab_size": 1024,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 64,
    }  # fmt: skip
    path = tmp_path / "wide.json"
    path.write_text(json.dumps(config))
    spawn(gather_head, 2, ModelConfig(name_or_path=str(path)), tmp_path)
    head = torch.load(tmp_path / "head.pt")
    assert head.shape == (1, 4096)
    # The standard error of a mean of n draws is sigma / sqrt(n), of their sigma sigma / sqrt(2n).
    sigma = 1 / 4097**0.5
    assert abs(head.mean()) < 4 * sigma / 4096**0.5
    assert abs(head.std() / sigma - 1) < 4 / (2 * 4096) ** 0.5


@pytest.fixture(scope="module")
def over_nodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What 4 ranks leave, two of each machine."""
    folder = tmp_path_factory.mktemp("nodes")
    sizes = {
        "vocab_size": 1024, "hidden_size": 320, "intermediate_size": 320, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 160,
    }  # fmt: skip
    wide = folder / "wide.json"
    wide.write_text(json.dumps({"model_type": "llama", **sizes}))
    small = LlamaConfig(**sizes | {"hidden_size": 64, "head_dim": 32})
    AutoModelForCausalLM.from_config(small).save_pretrained(folder / "files")
    models = [ModelConfig(name_or_path=str(path)) for path in (wide, folder / "files")]
    spawn(train_over_nodes, 4, *models, folder)
    return folder


@pytest.mark.slow
def test_a_resumed_run_under_ddp_sums_in_the_same_order_on_more_than_two_ranks(
    over_nodes: Path,
) -> None:
    measured, weights, again, resumed = torch.load(over_nodes / "settled.pt")
    assert measured[3:] == again
    assert all(torch.equal(weight, resumed[name]) for name, weight in weights.items())


@pytest.mark.slow
def test_a_second_partition_changes_nothing_but_who_weights_are_gathered_from(
    over_nodes: Path,
) -> None:
    once, twice = (
        torch.load(over_nodes / f"3-float32-none-packed{more}.pt") for more in ("", "-secondary")
    )
    for measured, again, weights, resumed, _ in (once, twice):
        assert measured[1:] == again
        assert all(torch.equal(weight, resumed[name]) for name, weight in weights.items())
    assert once[0] == twice[0]
    assert all(torch.equal(weight, twice[2][name]) for name, weight in once[2].items())
    # Matrices of up to 100,000 numbers are not sharded; the others are gathered once or more.
    sharded = sum(w.numel() for w in once[2].values() if w.numel() > 100_000)
    assert sharded > 0
    assert once[4].keys() == {4}
    assert twice[4] == {4: sharded, 2: once[4][4] - sharded}


@pytest.mark.slow
def test_master_weights_begin_alike_whether_files_are_read_in_bfloat16_or_cast(
    over_nodes: Path,
) -> None:
    for rank in range(4):
        of_stages = torch.load(over_nodes / f"masters-{rank}.pt")
        for cast, read in (of_stages[:2], of_stages[2:]):
            assert cast.keys() == read.keys()
            for name, weight in cast.items():
                assert weight.dtype == torch.float32
                assert torch.equal(weight, read[name]), name
