"""What other numbers of ranks, stages and machines make of the same training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_ranks import spawn
from ranks import Case, gather_head, resume_fused, train_over_nodes, train_third
from reward_heads import head_weight, save
from transformers import AutoModelForCausalLM, LlamaConfig

from rm_ray.config.sections.model import ModelConfig


def test_offloaded_state_of_fused_adamw_resumes_bit_for_bit(tmp_path: Path) -> None:
    cases = [Case(2, offload="optimizer"), Case(3, "bfloat16", offload="all")]
    spawn(resume_fused, 1, cases, tmp_path)
    for case in cases:
        (measured, weights), (again, resumed) = torch.load(tmp_path / f"fused-{case.name}.pt")
        assert measured == again, case
        assert all(torch.equal(weight, resumed[name]) for name, weight in weights.items()), case


MOVED = [
    *(tuple(map(Case, stages)) for stages in ((0, 1, 2), (3, 3, 3), (2, 0, 3))),
    tuple(Case(stage, lists="davidson") for stage in (3, 0, 2)),
]
"""The first third of the steps, on 2 ranks, the second, on 1, the last, on 3."""


def test_another_number_of_ranks_or_stage_goes_on_with_the_same_losses(
    plain: Any, tmp_path: Path
) -> None:
    """So it has the same groups in the same steps."""
    for third, world_size in enumerate((2, 1, 3)):
        spawn(train_third, world_size, third, MOVED, tmp_path)
    for i, (case, *_) in enumerate(MOVED):
        expected, expected_weights = plain(case.model, lists=case.lists)
        thirds = [torch.load(tmp_path / f"third-{third}-{i}.pt") for third in range(3)]
        measured = torch.tensor([step for steps, _ in thirds for step in steps])
        torch.testing.assert_close(measured, torch.tensor(expected), rtol=1e-4, atol=1e-5)
        weights = thirds[-1][1]
        assert weights.keys() == expected_weights.keys()
        for name, weight in weights.items():
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


@pytest.mark.parametrize("name", ["score", "v_head.summary"])
def test_a_kept_head_is_kept_also_under_zero_3(tmp_path: Path, name: str) -> None:
    weight = head_weight()
    base = save(tmp_path / "base", {f"{name}.weight": weight}, "sharded")
    spawn(gather_head, 2, ModelConfig(name_or_path=str(base), tokenizer="builtin"), tmp_path)
    assert torch.equal(torch.load(tmp_path / "head.pt"), weight)


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
        torch.load(over_nodes / f"3-float32-none-packed{more}-wide.pt")
        for more in ("", "-secondary")
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
