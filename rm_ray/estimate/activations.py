"""Activation memory: bytes that autograd saves in a forward pass for the backward pass.

The formulas follow the modelling code of transformers and ``rm_ray.model.attention``, tensor by
tensor; ``tests/unit/estimate/test_activations.py`` compares them with what autograd really saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rm_ray.batches.attention_index import Kernel
from rm_ray.batches.collate import unlabelled
from rm_ray.batches.packing import pack_groups
from rm_ray.batches.shared_prefix_index import split_shared
from rm_ray.config.sections.batch import Layout
from rm_ray.data.cache.group_tokens import GroupLengths, GroupTokens
from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.families import FAMILIES, Family, Kept

Attention = Literal["grouped", "repeated", "varlen", "sdpa", "eager", "flash_attention_2"]
"""Attention kernels: ours for packed pairs, and transformers' three for padded ones. 'repeated' is
'grouped' on a GPU for grouped-query models: keys are repeated for each query head."""

FLOAT32 = 4
"""Bytes per element of master weights, AdamW's moments and accumulated gradients."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Bytes per element in the layers' arithmetic."""

    stream: int
    """Bytes per element of the residual stream between layers."""

    product: int
    """Bytes per element of a matrix product's inputs and outputs."""

    norms_in_float32: bool = False
    """Whether norms are trained, so in float32, although the stream is not."""

    @property
    def casts(self) -> bool:
        """Whether autocast copies the input of every product: bfloat16 without ZeRO."""
        return self.stream != self.product or self.norms_in_float32


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
    def of(cls, lengths: GroupLengths, *, layout: Layout, attention: Attention) -> ForwardPass:
        """Return the forward pass over groups of these lengths."""
        if layout == "padded":
            size, longest = len(lengths.conversations), int(lengths.longest.max())
            is_even = bool((lengths.conversations == longest).all())
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
            keys = int(lengths.all.sum())
            return cls(positions=positions, queries=positions, keys=keys, masked=0, products=0)
        tokens = GroupTokens(tokens=np.zeros(positions, dtype=np.int32), lengths=lengths)
        kernel: Kernel = "shared" if attention == "grouped" else "grouped"
        packed = pack_groups(tokens, unlabelled(tokens), kernel=kernel)
        grouped, num_shared = split_shared(packed.everywhere)
        groups = grouped.groups
        return cls(
            positions=positions,
            queries=len(grouped.query_order) + num_shared,
            keys=len(grouped.key_positions) + (positions if num_shared else 0),
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
    """Layers that gradients pass through; those below save nothing."""

    passing: int = 0
    """Temporary tensors of a layer below them."""

    unreached: int = 0
    """What the lowest layer's first norm does not save, because its input needs no gradient."""

    is_trimmed: bool

    @property
    def num_checkpointed(self) -> int:
        """Layers that checkpointing recomputes: all but a trimmed last one, whose forward is our
        own."""
        return self.num_layers - self.is_trimmed

    @property
    def on_host(self) -> int:
        """Bytes of pinned memory for the layers' inputs.

        It is allocated in powers of two and kept, and a block serves only inputs of its own power
        (PyTorch's ``CachingHostAllocator.h``): shorter passes add half, a quarter, and so on.
        """
        return 2 * self.num_checkpointed * (1 << (self.between - 1).bit_length())

    def held(self, *, checkpointing: bool, offloading: bool = False) -> int:
        """Return the bytes saved when the forward pass ends.

        Checkpointing keeps only the input of each layer (arXiv:1604.06174, p. 4). With offloading,
        the device has a single one of them at a time.
        """
        if self.num_layers == 0:
            return 0
        around = self.angles + self.last_norm
        if not checkpointing:
            return (self.num_layers - 1) * self.layer + self.last_layer + around - self.unreached
        inputs = (1 if offloading else self.num_checkpointed) * self.between
        return inputs + (self.last_layer if self.is_trimmed else 0) + around

    def peak(self, *, checkpointing: bool, offloading: bool = False) -> int:
        """Return the peak: at the start of the backward pass, or in its first full layer.

        By then the trimmed last layer, or the last norm, is freed. With checkpointing, the full
        layer's activations are recomputed first.
        """
        held = self.held(checkpointing=checkpointing, offloading=offloading)
        if self.num_layers <= self.is_trimmed:  # no full layer
            return max(held, self.passing)
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
    family, tuning = FAMILIES[architecture.family], architecture.tuning
    kept = Kept.of(family, tuning)
    size, hidden = arithmetic, architecture.hidden
    between = forward_pass.positions * hidden * size.stream
    layer = forward_pass.positions * _position(architecture, family, size, kept, liger=liger)
    layer += _attention(architecture, forward_pass, size, kept, attention=attention)
    head = architecture.query_width // architecture.num_heads
    angles = 2 * head * size.stream * (forward_pass.positions if layout == "packed" else 0)
    is_trimmed = architecture.trims(layout)
    last, last_norm = layer, 0
    if is_trimmed:
        # Every position still needs its norm, which two products read, and its keys and values.
        last = forward_pass.positions * _norms(
            family, hidden, size, kept, liger=liger, readers=(kept.keys_values,)
        )
        width = _key_width(architecture, attention)
        last += 2 * width * size.product * forward_pass.keys
        of_keys = _head_norm(family, size, kept, liger=liger) * architecture.key_width
        of_keys += kept.rank * kept.keys_values * size.product
        last += forward_pass.positions * of_keys
    else:
        last_norm = forward_pass.positions * hidden * _normed(family, size, kept, liger=liger)
    inside = architecture.intermediate
    is_unreached = tuning is not None and not tuning.trains_embeddings
    unreached = _unreached(family, size, kept, liger=liger) if is_unreached else 0
    return Activations(
        layer=layer,
        last_layer=last,
        between=between,
        angles=angles,
        last_norm=last_norm,
        working=forward_pass.positions * (2 * inside + hidden) * size.product,
        num_layers=architecture.num_reached,
        is_trimmed=is_trimmed,
        passing=forward_pass.positions
        * (3 * inside * size.product + hidden * (size.product + size.stream)),
        unreached=forward_pass.positions * hidden * unreached,
    )


def _position(
    architecture: Architecture, family: Family, size: Arithmetic, kept: Kept, *, liger: bool
) -> int:
    """Return the bytes that a layer saves per position, attention itself excluded."""
    hidden, projected = architecture.hidden, architecture.query_width + architecture.key_width
    # Queries, keys and values read the first norm; the feed-forward reads the second.
    readers = (kept.attention, kept.branches)
    saved = _norms(family, hidden, size, kept, liger=liger, readers=readers)
    if architecture.parallel_residual and family.norm == "layer":
        saved -= hidden * size.stream  # both norms have the same input
    saved += _head_norm(family, size, kept, liger=liger) * projected
    branches = (2 if liger else 3) + kept.down if family.is_gated else 1 + kept.down
    elements = branches * architecture.intermediate + kept.rank * kept.adapters
    return saved + elements * size.product


def _norms(
    family: Family,
    hidden: int,
    size: Arithmetic,
    kept: Kept,
    *,
    liger: bool,
    readers: Sequence[int],
) -> int:
    """Return the bytes saved per position by norms, including the outputs that products keep.

    ``readers`` holds the number of such products for each norm. Under autocast each has its own
    copy; otherwise all share one.
    """
    results = sum(readers) if size.casts else sum(number > 0 for number in readers)
    normed = _normed(family, size, kept, liger=liger)
    return hidden * (len(readers) * normed + results * size.product)


def _normed(family: Family, size: Arithmetic, kept: Kept, *, liger: bool) -> int:
    """Return the bytes that a norm saves per element: its float32 input and the normalised result.

    LayerNorm and Liger's kernels save the input as-is. RMS norms normalise in float32 and keep the
    result in the input's dtype (Llama) or in float32 (Gemma, OLMo), for the gradient of their
    weight alone.
    """
    if family.norm == "layer":
        return size.stream
    if liger:
        return size.product if family.norm == "post_rms" else size.stream
    if not kept.norms:
        return FLOAT32
    return FLOAT32 + (size.stream if family.norm == "rms" else FLOAT32)


def _unreached(family: Family, size: Arithmetic, kept: Kept, *, liger: bool) -> int:
    """Return the bytes per element that a layer's first norm saves for its input's gradient alone.

    A trained norm of LayerNorm or Liger saves its input in any case.
    """
    if family.norm == "post_rms":
        return 0
    if family.norm == "layer" or liger:
        return 0 if kept.norms else size.stream
    return FLOAT32


def _head_norm(family: Family, size: Arithmetic, kept: Kept, *, liger: bool) -> int:
    """Return the bytes that a norm of queries or keys saves per element."""
    if family.head_norm == "none":
        return 0
    if liger:
        return size.product
    if not kept.norms:
        return FLOAT32
    return FLOAT32 + (size.product if family.head_norm == "heads" else FLOAT32)


def _attention(
    architecture: Architecture,
    forward_pass: ForwardPass,
    size: Arithmetic,
    kept: Kept,
    *,
    attention: Attention,
) -> int:
    """Return the bytes that attention saves: queries, keys, values, output and log-sum-exps.

    Groups of packed branches save the output a second time, in row order, if the projection after
    them keeps it, and a mask in the queries' dtype. With a mask, transformers repeats shared keys
    for every query head. 'eager' attention saves the probabilities and the repeated keys.
    """
    queries, keys = architecture.query_width, _key_width(architecture, attention)
    sums = FLOAT32 * architecture.num_heads * forward_pass.queries
    if attention == "eager":
        probabilities = forward_pass.products * architecture.num_heads
        copies = FLOAT32 + (size.product if size.product < FLOAT32 else 0)
        widths = (3 + kept.output) * queries
        return size.product * widths * forward_pass.positions + probabilities * copies
    if attention in ("varlen", "flash_attention_2"):
        return size.product * 2 * (queries * forward_pass.queries + keys * forward_pass.keys) + sums
    if attention == "sdpa":
        width = queries if forward_pass.masked else keys
        saved = (
            2 * (queries * forward_pass.queries + width * forward_pass.keys) + forward_pass.masked
        )
        if FAMILIES[architecture.family].is_fused:  # values keep all three; the output is copied
            saved += ((2 + kept.output) * queries) * forward_pass.positions
        return size.product * saved + sums
    saved = (
        2 * (queries * forward_pass.queries + keys * forward_pass.keys)
        + kept.output * queries * forward_pass.positions
        + forward_pass.masked
    )
    return size.product * saved + sums


def _key_width(architecture: Architecture, attention: Attention) -> int:
    """Return the elements per position of the keys that attention is called with."""
    return architecture.query_width if attention == "repeated" else architecture.key_width
