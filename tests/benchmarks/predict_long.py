"""What a pair of long conversations takes on GPUs of 80 GB, predicted and not measured.

``rm_ray/estimate/long.md`` shows what it prints:

    python tests/benchmarks/predict_long.py
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from machine import ROOT

sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402
from predict import GPU_MEMORY, LLAMA_8B  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from rm_ray.data.cache.group_tokens import GroupLengths  # noqa: E402
from rm_ray.estimate.activations import Activations, ForwardPass, activations_of  # noqa: E402
from rm_ray.estimate.architecture import Architecture  # noqa: E402
from rm_ray.estimate.gpu_memory import GIGABYTE, usable_memory  # noqa: E402
from rm_ray.estimate.gpu_speed import COMPUTE_SHARE, GPU_PEAK  # noqa: E402
from rm_ray.estimate.memory import estimate  # noqa: E402
from rm_ray.estimate.memory_setting import MemorySetting  # noqa: E402
from rm_ray.estimate.moments import MemoryEstimate  # noqa: E402
from rm_ray.estimate.timing import HOST_BANDWIDTH  # noqa: E402
from rm_ray.model.flops import BACKWARD, ModelFlops  # noqa: E402

LLAMA_70B: dict[str, Any] = LLAMA_8B | {
    "hidden_size": 8_192, "intermediate_size": 28_672, "num_hidden_layers": 80,
    "num_attention_heads": 64,
}  # fmt: skip
"""The sizes of Llama 3 70B (arXiv:2407.21783, table 3)."""

ROOM = usable_memory(GPU_MEMORY)

WAYS = ((False, False), (True, False), (True, True))
"""Whether activations are recomputed, and whether from inputs in host memory."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, its GPUs, and the length of conversations."""

    name: str
    sizes: dict[str, Any]
    num_gpus: int
    length: int

    @cached_property
    def classifier(self) -> PreTrainedModel:
        """The model, without weights."""
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(
                AutoConfig.for_model(**self.sizes)
            )

    @cached_property
    def architecture(self) -> Architecture:
        """Its sizes."""
        return Architecture.of(self.classifier)

    def setting(self, *, recomputes: bool, offloads: bool) -> MemorySetting:
        """ZeRO 3 in bfloat16."""
        return MemorySetting(
            dtype="bfloat16",
            zero_stage=3,
            checkpointing=recomputes,
            activation_offloading=offloads,
            world_size=self.num_gpus,
            on_gpu=True,
            attention="varlen",
            liger=True,
        )

    def memory(self, lengths: GroupLengths, setting: MemorySetting) -> MemoryEstimate:
        """Memory of a worker whose largest forward pass is over these groups."""
        row = ForwardPass.of(lengths, layout="packed", attention="varlen")
        return estimate(self.architecture, row, setting)

    def activations(self, lengths: GroupLengths, setting: MemorySetting) -> Activations:
        """Activations of a forward pass over these groups."""
        return activations_of(
            self.architecture,
            ForwardPass.of(lengths, layout="packed", attention="varlen"),
            setting.arithmetic,
            layout="packed",
            attention="varlen",
            liger=True,
        )

    def longest(self, setting: MemorySetting) -> int:
        """The most tokens, in steps of 1,024, of conversations that share none and still fit."""
        fits, too_long = 0, 2**12
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            needed = self.memory(pair(1_024 * middle, shared=0), setting).device
            fits, too_long = (middle, too_long) if needed <= ROOM else (fits, middle)
        return 1_024 * fits


CASES = (
    Case(name="8B", sizes=LLAMA_8B, num_gpus=8, length=32_768),
    Case(name="70B", sizes=LLAMA_70B, num_gpus=64, length=16_384),
)


def pair(length: int, *, shared: int) -> GroupLengths:
    """Return a pair of two conversations of this length that share so many tokens."""
    both = np.array([length])
    return GroupLengths.of_pairs(chosen=both, rejected=both, prefix=np.array([shared]))


def describe_memory() -> list[str]:
    """Return the table of memory."""
    lines = [
        f"predicted, not measured: ZeRO 3 in bfloat16, GB per GPU; {ROOM / GIGABYTE:.1f} usable",
        f"  {'model':5} {'GPUs':>4} {'tokens':>7} {'shared':>6} {'row':>7} {'recompute':9} "
        f"{'inputs':>7} {'one layer':>9} {'at once':>8} {'host':>6}",
    ]
    for case in CASES:
        for shared in (0, case.length // 2):
            lengths = pair(case.length, shared=shared)
            for recomputes, offloads in WAYS:
                setting = case.setting(recomputes=recomputes, offloads=offloads)
                memory, kept = case.memory(lengths, setting), case.activations(lengths, setting)
                inputs = kept.num_checkpointed * kept.between if recomputes else 0
                layer = kept.layer + kept.working
                note = "fits" if memory.device <= ROOM else "too large"
                host = max(moment.host for moment in memory.moments[2:])
                lines.append(
                    f"  {case.name:5} {case.num_gpus:>4} {case.length:>7,} {shared:>6,} "
                    f"{int(lengths.distinct[0]):>7,} {setting.recomputation:9} "
                    f"{inputs / GIGABYTE:>7.1f} {layer / GIGABYTE:>9.1f} "
                    f"{memory.device / GIGABYTE:>8.1f} {host / GIGABYTE:>6.1f}  {note}"
                )
    return lines


def describe_time() -> list[str]:
    """Return the table of times and of the longest conversations."""
    lines = [
        f"predicted, not measured: {COMPUTE_SHARE:g} of {GPU_PEAK / 1e12:.0f} TFLOP/s, "
        f"{HOST_BANDWIDTH / 1e9:.0f} GB/s to the host; seconds for a pair that shares nothing",
        f"  {'model':5} {'tokens':>7} {'attention':>9} {'passes':>7} {'copies':>7} {'share':>6}   "
        "longest that fits: recomputed, from the host",
    ]
    for case in CASES:
        setting = case.setting(recomputes=True, offloads=True)
        lengths = pair(case.length, shared=0)
        flops = ModelFlops.of(case.classifier)
        forward = float(flops.forward(lengths)[0]) / (COMPUTE_SHARE * GPU_PEAK)
        attention = float(flops.attention(lengths)[0] / flops.forward(lengths)[0])
        passes = forward * (2 + BACKWARD)
        kept = case.activations(lengths, setting)
        copies = 2 * kept.num_checkpointed * kept.between / HOST_BANDWIDTH
        plain = case.longest(replace(setting, activation_offloading=False))
        lines.append(
            f"  {case.name:5} {case.length:>7,} {attention:>9.2f} {passes:>7.1f} {copies:>7.2f} "
            f"{copies / passes:>6.3f}   {plain:,}, {case.longest(setting):,}"
        )
    return lines


if __name__ == "__main__":
    print("\n".join([*describe_memory(), "", *describe_time()]))
