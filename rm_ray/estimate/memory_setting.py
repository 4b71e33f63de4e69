"""The settings that determine a worker's memory and traffic."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from rm_ray.config.sections.batch import Layout
from rm_ray.estimate.activations import FLOAT32, Arithmetic, Attention

Offload = Literal["none", "optimizer", "all"]
"""State kept in host memory instead of device memory."""


@dataclass(frozen=True, kw_only=True)
class MemorySetting:
    """Settings that determine a worker's memory, besides the model and the pairs."""

    dtype: Literal["float32", "bfloat16"]
    zero_stage: int
    offload: Offload = "none"
    checkpointing: bool = False

    activation_offloading: bool = False
    """Whether recomputation keeps the layers' inputs in host memory."""

    world_size: int = 1
    on_gpu: bool = False
    layout: Layout = "packed"
    attention: Attention = "grouped"
    liger: bool = False

    from_files: bool = True
    """Whether weights are read from files part by part, rather than drawn or merged with those of
    an adapter, all at once."""

    is_quantized: bool = False
    """Whether frozen matrices are held in 4 bits."""

    secondary_size: int = 0
    """Workers of one machine that share a second partition of the weights; 0 if there is none."""

    accumulates: bool = True
    """Whether a step has several micro-batches, so gradients accumulate."""

    @property
    def is_bf16(self) -> bool:
        """Whether products are computed in bfloat16."""
        return self.dtype == "bfloat16"

    @property
    def recomputation(self) -> str:
        """Whether activations are recomputed, as tables say it: 'no', 'yes', or 'host' if from
        inputs in host memory."""
        if self.activation_offloading:
            return "host"
        return "yes" if self.checkpointing else "no"

    @property
    def weight_size(self) -> int:
        """Bytes per element of the weights that ZeRO computes with and exchanges."""
        return 2 if self.is_bf16 else FLOAT32

    @property
    def arithmetic(self) -> Arithmetic:
        """Bytes per element in the layers: DeepSpeed casts the weights, else autocast does."""
        product = self.weight_size
        return Arithmetic(stream=product if self.zero_stage else FLOAT32, product=product)


def alternatives(setting: MemorySetting) -> list[MemorySetting]:
    """Return the setting at every stage, with and without recomputation and offload.

    Recomputation from inputs in host memory comes without other offload, unless it is set.

    Sorted by preference: more communication is better than recomputing activations (a third more
    time), which is better than slower host memory, first for the layers' inputs. A CPU has nowhere
    to offload to, and ZeRO-3 cannot shard weights of 4 bits.
    """
    stages: list[tuple[Offload, range]] = [
        ("none", range(4)),
        ("optimizer", range(1, 4)),
        ("all", range(3, 4)),
    ]
    return [
        replace(
            setting,
            zero_stage=stage,
            offload=offload,
            checkpointing=checkpointing,
            activation_offloading=on_host,
            secondary_size=setting.secondary_size if stage == 3 and offload != "all" else 0,
        )
        for offload, known in stages
        if setting.on_gpu or offload == setting.offload
        for checkpointing, on_host in ((False, False), (True, False), (True, True))
        if not on_host or (setting.on_gpu and (offload == "none" or setting.activation_offloading))
        for stage in known
        if stage < 3 or not setting.is_quantized
    ]
