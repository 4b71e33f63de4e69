"""What autograd keeps of a forward pass for the backward pass, in bytes: pure arithmetic.

The formulas follow the modelling code of transformers and ``rm_ray.model.attention``, tensor by
tensor; ``tests/unit/preflight/test_activations.py`` compares them with what autograd saves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rm_ray.batches.packing import GroupedQueries, pack_pairs
from rm_ray.config.train_config import Layout
from rm_ray.data.cache.pair_tokens import PairLengths, PairTokens
from rm_ray.estimate.architecture import Architecture

Attention = Literal["grouped", "repeated", "varlen", "sdpa", "eager", "flash_attention_2"]
"""The kernels of packed pairs, and transformers' three for padded ones. 'repeated' is 'grouped'
on a GPU where heads share keys, which are repeated for each of them."""

FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the layers of a kind of decoder are made."""

    norm: Literal["rms", "float_rms", "post_rms", "layer"] = "rms"
    """RMS norms before attention and feed-forward, with their product in the layer's own type or
    in float32 (Gemma); RMS norms after them (OLMo 2 and 3); or LayerNorms before (GPT-NeoX)."""

    is_gated: bool = True
    """Whether the feed-forward multiplies a gate and a branch, or has one branch alone."""

    head_norm: Literal["none", "heads", "whole"] = "none"
    """Norms of queries and keys: none, of each head, or of all heads together."""

    is_fused: bool = False
    """Whether queries, keys and values come out of one product, and so stay together."""


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(head_norm="heads"),
    "gemma": Family(norm="float_rms"),
    "olmo2": Family(norm="post_rms", head_norm="whole"),
    "olmo3": Family(norm="post_rms", head_norm="whole"),
    "gpt_neox": Family(norm="layer", is_gated=False, is_fused=True),
}
"""The families whose memory is known: those that can be packed."""

WITH_LIGER = FAMILIES.keys() - {"gpt_neox"}
"""Those of them that Liger has kernels for."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Bytes of the numbers that layers compute with."""

    stream: int
    """Of a number that passes from layer to layer."""

    product: int
    """Of a number that goes into or comes out of a matrix product."""

    @property
    def casts(self) -> bool:
        """Whether autocast makes a copy for every product, as it does without ZeRO in bfloat16."""
        return self.stream != self.product


@dataclass(frozen=True, kw_only=True)
class ForwardPass:
    """What one forward pass on one worker computes.

    Attention counts the queries and keys that it is called with: a prefix is the key of two
    branches, and groups of branches are padded to their largest.
    """

    positions: int
    """Tokens in the row, or in the rows of a padded batch, padding included."""

    queries: int
    keys: int

    masked: int
    """Query-key products for which a mask is kept, one for all heads."""

    products: int
    """All query-key products of a head."""

    @classmethod
    def of(cls, lengths: PairLengths, *, layout: Layout, attention: Attention) -> ForwardPass:
        """Return what pairs of these lengths make together."""
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
    """Bytes that one forward pass leaves behind, and what its backward pass adds for a while."""

    layer: int
    """Of one whole layer."""

    last_layer: int
    """Of the last layer, which may compute only where a reward is read."""

    between: int
    """Of what passes from one layer to the next."""

    angles: int
    """Of the rotary embedding, which all layers share."""

    last_norm: int
    """Of the norm after the last layer; a trimmed one leaves next to nothing."""

    working: int
    """Most that the backward pass of a layer holds beside what was saved: gradients of both
    branches of the feed-forward (that of their product takes the place of the product), and of
    what passes between layers."""

    num_layers: int

    is_trimmed: bool

    def held(self, *, checkpointing: bool) -> int:
        """Return what is saved when the forward pass ends.

        Checkpointing keeps the input of each layer alone (arXiv:1604.06174, p. 4). A trimmed last
        layer is not checkpointed: its forward is ours.
        """
        around = self.angles + self.last_norm
        if not checkpointing:
            return (self.num_layers - 1) * self.layer + self.last_layer + around
        if self.is_trimmed:
            return (self.num_layers - 1) * self.between + self.last_layer + around
        return self.num_layers * self.between + around

    def peak(self, *, checkpointing: bool) -> int:
        """Return the most that is held: as the backward pass begins, or in its first whole layer.

        By then a trimmed last layer, or the last norm, is freed. With checkpointing that layer is
        saved again first.
        """
        held = self.held(checkpointing=checkpointing)
        freed = self.last_layer if self.is_trimmed else self.last_norm
        recomputed = self.layer if checkpointing else 0
        return max(held, held - freed + recomputed + self.working)


def saved(
    architecture: Architecture,
    row: ForwardPass,
    arithmetic: Arithmetic,
    *,
    layout: Layout,
    attention: Attention,
    liger: bool = False,
) -> Activations:
    """Return the bytes that a forward pass over a row saves.

    With Liger's kernels, as its autograd functions save it, a norm keeps its input alone, and the
    feed-forward its two branches and their product (liger_kernel/ops, 0.8.5).
    """
    family = FAMILIES[architecture.family]
    size, hidden = arithmetic, architecture.hidden
    between = row.positions * hidden * size.stream
    layer = row.positions * _position(architecture, family, size, liger=liger)
    layer += _attention(architecture, row, size, attention=attention)
    head = architecture.query_width // architecture.num_heads
    angles = 2 * head * size.stream * (row.positions if layout == "packed" else 0)
    is_trimmed = architecture.trims(layout)
    last, last_norm = layer, 0
    if is_trimmed:
        # Of every position: its norm, which two products read, and its keys and values.
        last = row.positions * _norms(family, hidden, size, liger=liger, norms=1, readers=2)
        width = _key_width(architecture, attention)
        last += 2 * width * size.product * row.keys
        of_keys = _head_norm(family, size, liger=liger) * architecture.key_width
        last += row.positions * of_keys
    else:
        last_norm = row.positions * hidden * _normed(family, size, liger=liger)
    return Activations(
        layer=layer,
        last_layer=last,
        between=between,
        angles=angles,
        last_norm=last_norm,
        working=row.positions * (2 * architecture.intermediate + hidden) * size.product,
        num_layers=architecture.num_layers,
        is_trimmed=is_trimmed,
    )


def _position(architecture: Architecture, family: Family, size: Arithmetic, *, liger: bool) -> int:
    """Return what one position of a layer saves outside of attention proper."""
    hidden, projected = architecture.hidden, architecture.query_width + architecture.key_width
    # Queries, keys and values read the first norm, gate and branch the second.
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
    """Return what norms save, and their results, which products read.

    Under autocast each reader has a copy of its own; otherwise they share the one.
    """
    results = readers if size.casts else norms
    return hidden * (norms * _normed(family, size, liger=liger) + results * size.product)


def _normed(family: Family, size: Arithmetic, *, liger: bool) -> int:
    """Return the bytes that a norm saves of each number: its input in float32, and its quotient.

    LayerNorm and Liger's kernels save the input as it is. RMS norms divide in float32 and keep the
    quotient in the input's type (Llama) or in float32 (Gemma, OLMo).
    """
    if family.norm == "layer":
        return size.stream
    if liger:
        return size.product if family.norm == "post_rms" else size.stream
    return FLOAT32 + (size.stream if family.norm == "rms" else FLOAT32)


def _head_norm(family: Family, size: Arithmetic, *, liger: bool) -> int:
    """Return the bytes that a norm of queries or keys saves of each number."""
    if family.head_norm == "none":
        return 0
    if liger:
        return size.product
    return FLOAT32 + (size.product if family.head_norm == "heads" else FLOAT32)


def _attention(
    architecture: Architecture, row: ForwardPass, size: Arithmetic, *, attention: Attention
) -> int:
    """Return what attention saves: queries, keys, values, its result and the sums of exponentials.

    Groups of packed branches save the result once more, in the order of the row, and a mask in the
    type of the queries. Under a mask transformers repeats shared keys for every query head. The
    plain arithmetic, 'eager', saves the probabilities and repeated keys.
    """
    queries, keys = architecture.query_width, _key_width(architecture, attention)
    sums = FLOAT32 * architecture.num_heads * row.queries
    if attention == "eager":
        probabilities = row.products * architecture.num_heads
        copies = FLOAT32 + (size.product if size.product < FLOAT32 else 0)
        return size.product * 4 * queries * row.positions + probabilities * copies
    if attention in ("varlen", "flash_attention_2"):
        return size.product * 2 * (queries * row.queries + keys * row.keys) + sums
    if attention == "sdpa":
        width = queries if row.masked else keys
        saved = 2 * (queries * row.queries + width * row.keys) + row.masked
        if FAMILIES[architecture.family].is_fused:  # values keep all three, the result is copied
            saved += (3 * queries) * row.positions
        return size.product * saved + sums
    saved = 2 * (queries * row.queries + keys * row.keys) + queries * row.positions + row.masked
    return size.product * saved + sums


def _key_width(architecture: Architecture, attention: Attention) -> int:
    """Return the numbers of a position's keys that attention is called with."""
    return architecture.query_width if attention == "repeated" else architecture.key_width
