"""Training adapters equals an independent loop with peft's own model; so does a part of a model.

All stages; ``test_training.py`` trains some of them along with everything else.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gloo_ranks import spawn
from plain_loop import check_against
from ranks import Case, interrupt_all, lora_case, train_all

from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig

pytestmark = pytest.mark.slow

SOME = LoraConfig(
    rank=3, alpha=6.0, targets=("q_proj", "v_proj"), rslora=True, train_embeddings=True
)
CASES = {
    1: [lora_case(0), lora_case(2)],
    2: [
        *(lora_case(stage) for stage in (0, 1, 2, 3)),
        lora_case(0, recomputing=True),
        lora_case(3, recomputing=True),
        lora_case(0, lora=SOME),
        lora_case(2, lora=SOME),
        lora_case(3, layout="padded"),
        *(lora_case(stage, quantization="nf4") for stage in (0, 1, 2)),
        lora_case(2, quantization="nf4", recomputing=True, layout="padded"),
        lora_case(0, quantization="nf4", lora=SOME),
    ],
}
"""By the number of ranks."""

LAST = [
    Case(stage, model=ModelConfig(trainable=trainable))
    for stage in (0, 1, 2, 3)
    for trainable in ("last:1", "head")
]


@pytest.mark.parametrize("num_ranks", CASES)
def test_every_step_and_the_merged_weights_equal_those_of_peft(num_ranks, peft_loop, tmp_path):
    spawn(train_all, num_ranks, CASES[num_ranks], tmp_path)
    for case in CASES[num_ranks]:
        expected = peft_loop(case.lora, case.model.quantization)
        check_against(expected, tmp_path / f"{case.name}.pt", num_steps=20)


def test_training_the_last_layers_or_the_head_equals_the_plain_loop(plain, tmp_path):
    spawn(train_all, 2, LAST, tmp_path)
    frozen = {"last:1": ("embed_tokens", "layers.0."), "head": ("model.",)}
    for case in LAST:
        reference = plain(ModelConfig(), frozen[case.model.trainable])
        check_against(reference, tmp_path / f"{case.name}.pt")


RESUMED = [
    lora_case(0),
    lora_case(0, dtype="bfloat16"),
    lora_case(1, dtype="bfloat16"),
    lora_case(2),
    lora_case(3, dtype="bfloat16"),
    lora_case(3, lora=SOME),
    lora_case(0, quantization="nf4", dtype="bfloat16"),
    lora_case(2, quantization="nf4", dtype="bfloat16"),
    replace(LAST[0], dtype="bfloat16"),
    LAST[-1],
]


def test_a_resumed_training_of_adapters_goes_on_bit_for_bit(tmp_path: Path):
    spawn(train_all, 2, RESUMED, tmp_path)
    spawn(interrupt_all, 2, RESUMED, tmp_path)
    for case in RESUMED:
        measured, weights = torch.load(tmp_path / f"resumed-{case.name}.pt")
        expected, expected_weights = torch.load(tmp_path / f"{case.name}.pt")
        assert measured == expected, case
        assert weights.keys() == expected_weights.keys()
        for name, weight in weights.items():
            assert torch.equal(weight, expected_weights[name]), (case, name)


def test_bfloat16_follows_float32(tmp_path: Path):
    cases = [
        replace(case, dtype=dtype)
        for case in (lora_case(0), lora_case(2), lora_case(0, quantization="nf4"), LAST[0])
        for dtype in ("float32", "bfloat16")
    ]
    spawn(train_all, 2, cases, tmp_path)
    for exact, rounded in zip(cases[::2], cases[1::2], strict=True):
        expected, losses = (
            torch.tensor(torch.load(tmp_path / f"{case.name}.pt")[0])[:, 0]
            for case in (exact, rounded)
        )
        torch.testing.assert_close(losses[:5], expected[:5], rtol=0, atol=0.01)
        torch.testing.assert_close(losses, expected, rtol=0.1, atol=0)
        assert not torch.equal(losses, expected)
