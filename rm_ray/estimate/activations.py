"""Activation memory: bytes that autograd saves in a forward pass for the backward pass.

The formulas follow the modelling code of transformers and ``rm_ray.model.attention``, tensor by
tensor; ``tests/unit/estimate/test_activations.py`` compares them with what autograd really saves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rm_ray.batches.attention_index import GroupedQueries
from rm_ray.batches.packing import pack_pairs
from rm_ray.config.sections.batch import Layout
from rm_ray.data.cache.pair_tokens import PairLengths, PairTokens
from rm_ray.estimate.architecture import Architecture

Attention = Literal["grouped", "repeated", "varlen", "sdpa", "eager", "flash_attention_2"]
"""Attention kernels: ours for packed pairs, and transformers' three for padded ones. 'repeated' is
'grouped' on a GPU for grouped-query models: keys are repeated for each query head."""

FLOAT32 = 4
"""Bytes per element of master weights, AdamW's moments and accumulated gradients."""


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
class Arithmetic:
    """Bytes per element in the layers' arithmetic."""

    stream: int
    """Bytes per element of the residual stream between layers."""

    product: int
    """Bytes per element of a matrix product's inputs and outputs."""

    @property
    def casts(self) -> bool:
        """Whether autocast copies the input of every product: bfloat16 without ZeRO."""
        return self.stream != self.product


@dataclass(frozen=True, kw_only=True)
class ForwardPass:
    """Sizes of one forward pass on one worker.

    Queries and keys count what attention is called with: a shared prefix provides keys to both
    branches, and branches in a group are padded to the largest.
    """

    positions: int
    """Tokens in the packed row, or in all rows of a padded batch, padding included."""

    queries: int
    keys: int

    masked: int
    """Query-key pairs covered by a stored mask, which all heads share."""

    products: int
    """Query-key products per head."""

    @classmethod
    def of(cls, lengths: PairLengths, *, layout: Layout, attention: Attention) -> ForwardPass:
        """Return the forward pass over pairs of these lengths."""
        if layout == "padded":
            size, longest = 2 * len(lengths), int(lengths.longest.max())
            is_even = (lengths.chosen == longest).all() and (lengths.rejected == longest).all()
            positions, products = size * longest, size * longest**2
            return cls(
                positions=positions,
                queries=positions,
                keys=positions,
                masked=0 if is_even else products,
                products=products,
            )
        positions = int(lengths.distinct.sum())
        if attention == "varlen":
            keys = int((lengths.chosen + lengths.rejected).sum())
            return cls(positions=positions, queries=positions, keys=keys, masked=0, products=0)
        nothing = np.zeros(len(lengths), dtype=np.float32)
        tokens = PairTokens(tokens=np.zeros(positions, dtype=np.int32), lengths=lengths)
        packed = pack_pairs(tokens, margins=nothing, weights=nothing, kernel="grouped")
        assert isinstance(packed.everywhere, GroupedQueries)
        groups = packed.everywhere.groups
        return cls(
            positions=positions,
            queries=len(packed.everywhere.query_order),
            keys=len(packed.everywhere.key_positions),
            masked=sum(group.mask.numel() for group in groups if group.mask is not None),
            products=sum(group.query_ranks.numel() * group.num_keys for group in groups),
        )


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes that one forward pass saves, and what its backward pass adds temporarily."""

    layer: int
    """One full layer."""

    last_layer: int
    """The last layer; a trimmed one computes only the positions that rewards are read from."""

    between: int
    """The hidden states passed from one layer to the next."""

    angles: int
    """The rotary embedding, which all layers share."""

    last_norm: int
    """The norm after the last layer; 0 if the last layer is trimmed."""

    working: int
    """Peak that a layer's backward pass adds to the saved tensors: gradients of both feed-forward
    branches (the gradient of their product replaces the product) and of the hidden states."""

    num_layers: int

    is_trimmed: bool

    def held(self, *, checkpointing: bool) -> int:
        """Return the bytes saved when the forward pass ends.

        Checkpointing keeps only the input of each layer (arXiv:1604.06174, p. 4). A trimmed last
        layer is never checkpointed, because its forward is our own.
        """
        around = self.angles + self.last_norm
        if not checkpointing:
            return (self.num_layers - 1) * self.layer + self.last_layer + around
        if self.is_trimmed:
            return (self.num_layers - 1) * self.between + self.last_layer + around
        return self.num_layers * self.between + around

    def peak(self, *, checkpointing: bool) -> int:
        """Return the peak: at the start of the backward pass, or in its first full layer.

        By then the trimmed last layer, or the last norm, is freed. With checkpointing, the full
        layer's activations are recomputed first.
        """
        held = self.held(checkpointing=checkpointing)
        freed = self.last_layer if self.is_trimmed else self.last_norm
        recomputed = self.layer if checkpointing else 0
        return max(held, held - freed + recomputed + self.working)


def activations_of(
    architecture: Architecture,
    forward_pass: ForwardPass,
    arithmetic: Arithmetic,
    *,
    layout: Layout,
    attention: Attention,
    liger: bool = False,
) -> Activations:
    """Return the bytes that a forward pass saves.

    With Liger's kernels, a norm saves only its input, and the feed-forward saves its two branches
    and their product (autograd functions in liger_kernel/ops, 0.8.5).
    """
    family = FAMILIES[architecture.family]
    size, hidden = arithmetic, architecture.hidden
    between = forward_pass.positions * hidden * size.stream
    layer = forward_pass.positions * _position(architecture, family, size, liger=liger)
    layer += _attention(architecture, forward_pass, size, attention=attention)
    head = architecture.query_width // architecture.num_heads
    angles = 2 * head * size.stream * (forward_pass.positions if layout == "packed" else 0)
    is_trimmed = architecture.trims(layout)
    last, last_norm = layer, 0
    if is_trimmed:
        # Every position still needs its norm, which two products read, and its keys and values.
        last = forward_pass.positions * _norms(
            family, hidden, size, liger=liger, norms=1, readers=2
        )
        width = _key_width(architecture, attention)
        last += 2 * width * size.product * forward_pass.keys
        of_keys = _head_norm(family, size, liger=liger) * architecture.key_width
        last += forward_pass.positions * of_keys
    else:
        last_norm = forward_pass.positions * hidden * _normed(family, size, liger=liger)
    return Activations(
        layer=layer,
        last_layer=last,
        between=between,
        angles=angles,
        last_norm=last_norm,
        working=forward_pass.positions * (2 * architecture.intermediate + hidden) * size.product,
        num_layers=architecture.num_layers,
        is_trimmed=is_trimmed,
    )


def _position(architecture: Architecture, family: Family, size: Arithmetic, *, liger: bool) -> int:
    """Return the bytes that a layer saves per position, attention itself excluded."""
    hidden, projected = architecture.hidden, architecture.query_width + architecture.key_width
    # Queries, keys and values read the first norm; the feed-forward reads the second.
    readers = (1 if family.is_fused else 3) + (2 if family.is_gated else 1)
    saved = _norms(family, hidden, size, liger=liger, norms=2, readers=readers)
    if architecture.parallel_residual and family.norm == "layer":
        saved -= hidden * size.stream  # both norms have the same input
    saved += _head_norm(family, size, liger=liger) * projected
    branches = (3 if liger else 4) if family.is_gated else 2
    return saved + branches * architecture.intermediate * size.product


def _norms(
    family: Family, hidden: int, size: Arithmetic, *, liger: bool, norms: int, readers: int
) -> int:
    """Return the bytes saved per position by norms, including the outputs that products read.

    Under autocast each reader has its own copy; otherwise all share one.
    """
    results = readers if size.casts else norms
    return hidden * (norms * _normed(family, size, liger=liger) + results * size.product)


def _normed(family: Family, size: Arithmetic, *, liger: bool) -> int:
    """Return the bytes that a norm saves per element: its float32 input and the normalised result.

    LayerNorm and Liger's kernels save the input as-is. RMS norms normalise in float32 and keep the
    result in the input's dtype (Llama) or in float32 (Gemma, OLMo).
    """
    if family.norm == "layer":
        return size.stream
    if liger:
        return size.product if family.norm == "post_rms" else size.stream
    return FLOAT32 + (size.stream if family.norm == "rms" else FLOAT32)


def _head_norm(family: Family, size: Arithmetic, *, liger: bool) -> int:
    """Return the bytes that a norm of queries or keys saves per element."""
    if family.head_norm == "none":
        return 0
    if liger:
        return size.product
    return FLOAT32 + (size.product if family.head_norm == "heads" else FLOAT32)


def _attention(
    architecture: Architecture, forward_pass: ForwardPass, size: Arithmetic, *, attention: Attention
) -> int:
    """Return the bytes that attention saves: queries, keys, values, output and log-sum-exps.

    Groups of packed branches save the output a second time, in row order, and a mask in the
    queries' dtype. With a mask, transformers repeats shared keys for every query head. 'eager'
    attention saves the probabilities and the repeated keys.
    """
    queries, keys = architecture.query_width, _key_width(architecture, attention)
    sums = FLOAT32 * architecture.num_heads * forward_pass.queries
    if attention == "eager":
        probabilities = forward_pass.products * architecture.num_heads
        copies = FLOAT32 + (size.product if size.product < FLOAT32 else 0)
        return size.product * 4 * queries * forward_pass.positions + probabilities * copies
    if attention in ("varlen", "flash_attention_2"):
        return size.product * 2 * (queries * forward_pass.queries + keys * forward_pass.keys) + sums
    if attention == "sdpa":
        width = queries if forward_pass.masked else keys
        saved = (
            2 * (queries * forward_pass.queries + width * forward_pass.keys) + forward_pass.masked
        )
        if FAMILIES[architecture.family].is_fused:  # values keep all three; the output is copied
            saved += (3 * queries) * forward_pass.positions
        return size.product * saved + sums
    saved = (
        2 * (queries * forward_pass.queries + keys * forward_pass.keys)
        + queries * forward_pass.positions
        + forward_pass.masked
    )
    return size.product * saved + sums


def _key_width(architecture: Architecture, attention: Attention) -> int:
    """Return the elements per position of the keys that attention is called with."""
    return architecture.query_width if attention == "repeated" else architecture.key_width
