"""The layer structure of decoder families, and which inputs a layer keeps for its backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rm_ray.estimate.architecture import Tuning


@dataclass(frozen=True, kw_only=True)
class Family:
    """Layer structure of a decoder family."""

    norm: Literal["rms", "float_rms", "post_rms", "layer"] = "rms"
    """RMS norms before attention and feed-forward, scaled in the layer's own dtype ('rms') or in
    float32 (Gemma); RMS norms after them (OLMo 2 and 3); or LayerNorms before (GPT-NeoX)."""

    is_gated: bool = True
    """Whether the feed-forward multiplies a gate with a second branch, or has a single branch."""

    head_norm: Literal["none", "heads", "all"] = "none"
    """Norms of queries and keys: none, per head, or over all heads together."""

    is_fused: bool = False
    """Whether one matrix product yields queries, keys and values, so all three stay in memory."""


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(head_norm="heads"),
    "gemma": Family(norm="float_rms"),
    "olmo2": Family(norm="post_rms", head_norm="all"),
    "olmo3": Family(norm="post_rms", head_norm="all"),
    "gpt_neox": Family(norm="layer", is_gated=False, is_fused=True),
}
"""Families with a memory model: exactly those that support packing."""

WITH_LIGER = FAMILIES.keys() - {"gpt_neox"}
"""Families that Liger has kernels for."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The inputs of a layer's matrices that the backward pass needs.

    A matrix keeps its input if it is trained or has an adapter, which reads the same input. A
    frozen one needs only itself for the gradient of its input.
    """

    attention: int
    """How many of queries, keys and values (or one product of all) keep their input."""
    keys_values: int
    """How many of keys and values."""
    output: bool
    """Whether the projection after attention does."""
    branches: int
    """How many branches of the feed-forward."""
    down: bool
    """Whether its last matrix does."""
    norms: bool = True
    """Whether norms are trained, so that they keep the normalised result."""
    rank: int = 0
    """Elements per position between the two matrices of an adapter."""
    adapters: int = 0
    """Adapters in a layer."""

    @classmethod
    def of(cls, family: Family, tuning: Tuning | None) -> Kept:
        """Return what a layer keeps that gradients pass through."""
        if tuning is None or not tuning.rank:
            return cls(
                attention=1 if family.is_fused else 3,
                keys_values=2,
                output=True,
                branches=2 if family.is_gated else 1,
                down=True,
            )
        names = set(tuning.adapted)
        return cls(
            attention=len(names & {"q_proj", "k_proj", "v_proj", "query_key_value"}),
            keys_values=len(names & {"k_proj", "v_proj"}),
            output=bool(names & {"o_proj", "dense"}),
            branches=len(names & {"gate_proj", "up_proj", "dense_h_to_4h"}),
            down=bool(names & {"down_proj", "dense_4h_to_h"}),
            norms=False,
            rank=tuning.rank,
            adapters=len(names),
        )
