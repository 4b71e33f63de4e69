"""A model, its largest forward pass and a memory setting -> the memory of one worker.

The estimate covers the PyTorch tensors that a worker holds at once: on a GPU what
``torch.cuda.max_memory_allocated`` counts, on a CPU the resident memory of the process beyond that
of the libraries. ``tests/benchmarks/memory_estimate.py`` compares it with real training processes.
"""

from __future__ import annotations

from rm_ray.estimate.activations import FLOAT32, ForwardPass, activations_of
from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.memory_setting import MemorySetting
from rm_ray.estimate.memory_terms import MemoryTerms
from rm_ray.estimate.moments import MemoryEstimate, Moment
from rm_ray.estimate.zero_memory import moments_of


def estimate(
    architecture: Architecture, forward_pass: ForwardPass, setting: MemorySetting
) -> MemoryEstimate:
    """Return the memory of a worker whose largest forward pass is ``forward_pass``."""
    activations = activations_of(
        architecture,
        forward_pass,
        setting.arithmetic,
        layout=setting.layout,
        attention=setting.attention,
        liger=setting.liger,
    )
    terms = MemoryTerms(architecture=architecture, setting=setting, activations=activations)
    return MemoryEstimate(
        moments=(_build(architecture, setting), *moments_of(terms)), on_gpu=setting.on_gpu
    )


def _build(architecture: Architecture, setting: MemorySetting) -> Moment:
    """Return the build: every worker builds the full model on the CPU before it is sharded."""
    reads_half = setting.is_bf16 and setting.zero_stage > 0 and setting.from_files
    size = 2 if reads_half else FLOAT32
    return Moment(name="build", host=size * architecture.num_parameters)
