"""A model, its largest forward pass and a memory setting -> the memory of one worker.

The estimate covers the PyTorch tensors that a worker holds at once: on a GPU what
``torch.cuda.max_memory_allocated`` counts, on a CPU the resident memory of the process beyond that
of the libraries. ``tests/benchmarks/memory_estimate.py`` compares it with real training processes.
"""

from __future__ import annotations

from dataclasses import replace

from rm_ray.estimate.activations import FLOAT32, Arithmetic, ForwardPass, activations_of
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
        arithmetic_of(architecture, setting),
        layout=setting.layout,
        attention=setting.attention,
        liger=setting.liger,
    )
    terms = MemoryTerms(architecture=architecture, setting=setting, activations=activations)
    on_host = activations.on_host if setting.activation_offloading else 0
    moments = [
        moment.plus(moment.name, host=on_host if moment.activations else 0)
        for moment in moments_of(terms)
    ]
    return MemoryEstimate(moments=(_build(terms), *moments), on_gpu=setting.on_gpu)


def arithmetic_of(architecture: Architecture, setting: MemorySetting) -> Arithmetic:
    """Return the bytes per element in the layers.

    Frozen embeddings are in the dtype of products, and so is then the stream, even under autocast.
    """
    tuning, plain = architecture.tuning, setting.arithmetic
    if tuning is None or tuning.trains_embeddings:
        return plain
    norms_in_float32 = plain.stream != plain.product and not tuning.rank
    return replace(plain, stream=plain.product, norms_in_float32=norms_in_float32)


def _build(terms: MemoryTerms) -> Moment:
    """Return the build, before the engine places the weights.

    From files, a worker reads a piece of one tensor at a time, and rank 0 the embeddings whole, if
    it adds any: in float32. Random or merged weights rank 0 has all at once, and every worker those
    of adapters. Matrices are quantized one after another.
    """
    architecture, setting, tuning = terms.architecture, terms.setting, terms.architecture.tuning
    from_files = setting.from_files
    held = max(architecture.parameters) if from_files else architecture.num_parameters
    if from_files and tuning is not None and tuning.rank:
        held += architecture.num_trained - terms.embedding * tuning.trains_embeddings
    kept = terms.frozen if setting.is_quantized else 0
    return Moment(name="build", host=FLOAT32 * held + kept)
