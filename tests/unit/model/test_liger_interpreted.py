"""Liger's real kernels without a GPU: Triton's interpreter runs them on the CPU."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, describe

from rm_ray.model.attention import PACKABLE

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]

Case = tuple[str, str, bool]
"""Family, layout, and whether to recompute activations."""

KERNELS = {
    name: describe(name)["model_type"] for name in FAMILIES if not name.startswith("gpt_neox")
}
EVERY: list[Case] = list(product(KERNELS, ("packed", "padded"), (False, True)))
SOME: list[Case] = [("qwen3", "packed", True), ("gemma", "padded", False)]
"""A trimmed last layer with head norms, recomputed; and a tanh activation."""


def run(cases: list[Case]) -> list[dict[str, Any]]:
    """Compute cases in a separate process, which imports Triton afresh."""
    done = subprocess.run(
        [sys.executable, str(HERE / "liger_interpreted.py"), json.dumps(cases)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check(case: Case, result: dict[str, Any]) -> None:
    """Check that a case matches the plain kernels and did run Liger's."""
    assert result["rewards"] < 1e-5, case
    assert result["gradients"] < 1e-5, case
    assert result["parameters"] > 10, case
    launched = " ".join(result["launched"])
    for kernel in ("rms_norm_forward", "rms_norm_backward", "rope"):
        assert kernel in launched, (case, launched)


def test_liger_gives_the_rewards_and_gradients_of_the_plain_kernels_in_some_cases():
    for case, result in zip(SOME, run(SOME), strict=True):
        check(case, result)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_liger_gives_the_rewards_and_gradients_of_the_plain_kernels_in_every_case():
    for case, result in zip(EVERY, run(EVERY), strict=True):
        check(case, result)


def test_every_packable_family_with_liger_kernels_is_covered():
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    assert set(KERNELS.values()) == PACKABLE & set(MODEL_TYPE_TO_APPLY_LIGER_FN)
