"""Liger's kernels, interpreted on the CPU, against the plain ones; prints one result per case.

python liger_interpreted.py '[["llama", "packed", true], ...]'
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from triton_interpreter import launched, mend_interpreter  # before anything that imports Triton

mend_interpreter()

import torch  # noqa: E402
from families import build, lay_out, some_groups  # noqa: E402
from torch import Tensor  # noqa: E402
from varlen_operator import register_varlen_on_cpu  # noqa: E402

from rm_ray.model.liger import apply_liger  # noqa: E402

GROUPS = some_groups([2, 3], seed=1, longest=7)


def compute(case: list[Any], folder: Path, *, liger: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Return rewards and gradients; with Liger, use the attention kernel of GPUs."""
    family, layout, recomputing = case
    model = build(folder, family, layout, gradient_checkpointing=recomputing)
    if liger:
        assert apply_liger(model, "on", on_gpu=True)
    rewards = model(lay_out(GROUPS, layout, "varlen" if liger else "grouped"))
    rewards.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return rewards.detach(), gradients


def compare(plain: Any, fused: Any) -> dict[str, Any]:
    """Return the largest differences, for gradients relative to the largest of the parameter."""
    (rewards, gradients), (found, found_gradients) = plain, fused
    return {
        "parameters": sorted(gradients) == sorted(found_gradients) and len(gradients),
        "rewards": float((rewards - found).abs().max()),
        "gradients": max(
            float((found_gradients[name] - gradient).abs().max() / gradient.abs().max())
            for name, gradient in gradients.items()
        ),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    register_varlen_on_cpu()
    cases = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Liger patches transformers' modules for good, so the plain cases run first.
        plain = [compute(case, folder, liger=False) for case in cases]
        assert not launched
        for case, expected in zip(cases, plain, strict=True):
            launched.clear()
            result = compare(expected, compute(case, folder, liger=True))
            print(json.dumps(result | {"launched": dict(launched)}), flush=True)
