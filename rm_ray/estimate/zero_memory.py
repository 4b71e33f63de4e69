"""A worker's memory at each ZeRO stage, moment by moment; stage 0 is PyTorch's DDP.

Follows the code that allocates it: ``rm_ray.train.engine``, PyTorch 2.13 (DDP, AdamW) and
DeepSpeed 0.19.8 (``runtime/zero/stage_1_and_2.py``, ``stage3.py``, ``bf16_optimizer.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from rm_ray.estimate.activations import FLOAT32
from rm_ray.estimate.memory_terms import MemoryTerms
from rm_ray.estimate.moments import Moment
from rm_ray.train.deepspeed_config import LIVE

ALL_REDUCE = 500_000_000
"""Elements that DeepSpeed's BF16_Optimizer exchanges at once (``MEMORY_OPT_ALLREDUCE_SIZE``)."""

PREFETCH = 50_000_000
"""Elements that ZeRO-3 prefetches (``stage3_prefetch_bucket_size``)."""

PERSISTENT = 100_000
"""Tensors of up to this many elements stay gathered (``stage3_param_persistence_threshold``)."""

DDP_BROADCAST = 250 * 2**20
"""Bytes that DDP copies at once when it sends rank 0's weights to the others at the start."""

SUB_GROUP = 1_000_000_000
"""Elements that ZeRO-3 updates at once (``sub_group_size``)."""


def moments_of(terms: MemoryTerms) -> list[Moment]:
    """Return the moments at the setting's stage, up to the update.

    Frozen weights are in the dtype of products at every stage, without gradients or state.
    """
    setting = terms.setting
    if setting.zero_stage == 0:
        return data_parallel(terms)
    if setting.zero_stage == 3:
        return sharded_weights(terms)
    if setting.zero_stage == 1 and setting.is_bf16 and setting.offload == "none":
        return sharded_optimizer_in_bf16(terms)
    return sharded_optimizer(terms)


def data_parallel(terms: MemoryTerms) -> list[Moment]:
    """Return DDP's moments: float32 weights and AdamW moments; gradients are views of buckets.

    A parameter's new gradient is added into its bucket. Under autocast, bfloat16 copies of the
    matrices live from their first use to the end of the forward pass; the graph keeps the copies
    that it was built with.
    """
    held = Moment(
        name="between steps",
        weights=FLOAT32 * terms.full + terms.frozen,
        gradients=FLOAT32 * terms.full,
        optimizer=2 * FLOAT32 * terms.full,
    )
    casts = in_graph = 0
    if terms.setting.is_bf16:
        casts = 2 * terms.trained.num_in_linears
        in_graph = casts
        if terms.setting.checkpointing:
            in_graph = 2 * 2 * terms.trained.layer_parameters
    new = terms.new_gradient(FLOAT32 + (2 if terms.setting.is_bf16 else 0))
    sent = min(held.weights, DDP_BROADCAST)
    return [
        Moment(name="start", weights=held.weights, buffers=sent),
        held.plus(
            "end of forward",
            activations=terms.activations_after_forward,
            buffers=casts + terms.dequantized,
        ),
        held.plus(
            "backward",
            gradients=new,
            activations=terms.peak_activations,
            buffers=in_graph + terms.dequantized,
        ),
        held.plus("end of backward", gradients=FLOAT32 * terms.embedding),
        held.plus("update", buffers=terms.adamw(max(terms.trained.parameters))),
    ]


def sharded_optimizer_in_bf16(terms: MemoryTerms) -> list[Moment]:
    """Return the moments of ZeRO-1 in bfloat16 (DeepSpeed's BF16_Optimizer).

    Every worker has all bfloat16 weights; master weights and AdamW moments are sharded. Every
    worker accumulates all gradients in float32, next to the bfloat16 ones of the current backward
    pass. They are cast for the exchange, after being flattened once more if all matrices and
    vectors fit into one bucket.
    """
    half = 2 * terms.full
    held = Moment(
        name="between steps",
        weights=half + terms.frozen,
        gradients=FLOAT32 * terms.full,
        optimizer=3 * FLOAT32 * terms.shard,
    )
    waiting = half if terms.setting.accumulates else 0
    flattened = FLOAT32 * terms.full if terms.full <= ALL_REDUCE else 0
    return [
        Moment(name="start", weights=2 * half + terms.frozen),
        held.plus(
            "backward",
            gradients=waiting + terms.new_gradient(2),
            activations=terms.peak_activations,
            buffers=terms.dequantized,
        ),
        held.plus("exchange", gradients=half, buffers=flattened + half),
        held.plus("update", gradients=half, buffers=terms.adamw(terms.shard)),
    ]


def sharded_optimizer(terms: MemoryTerms) -> list[Moment]:
    """Return the moments of ZeRO-1 and ZeRO-2 (DeepSpeedZeroOptimizer).

    Every worker has all weights; master weights (even next to float32 weights) and AdamW moments
    are sharded. Gradients pass through a bucket into their shard.

    Offload moves master weights, AdamW moments, the gradient shard and the compute weights' shard
    to the host; host and device each keep a buffer for the largest gradient.
    """
    setting, offloads = terms.setting, terms.setting.offload != "none"
    travels = FLOAT32 if setting.zero_stage == 1 else terms.size
    shards = FLOAT32 * terms.shard
    largest = terms.size * max(terms.trained.parameters)
    held = Moment(
        name="between steps",
        weights=terms.size * terms.full + terms.frozen,
        optimizer=0 if offloads else 3 * shards,
        buffers=largest if offloads else 0,
        host=4 * shards + terms.size * terms.shard + largest if offloads else 0,
    )
    waiting = _waiting_gradients(terms)
    update = terms.adamw(terms.shard)
    flat = 0 if setting.is_bf16 else shards
    return [
        Moment(name="start", weights=2 * terms.size * terms.full + terms.frozen),
        held.plus(
            "backward",
            gradients=waiting + terms.new_gradient(terms.size),
            activations=terms.peak_activations,
            buffers=terms.empty_buckets(travels) + _in_bucket_at_peak(terms) + terms.dequantized,
        ),
        held.plus(
            "exchange",
            gradients=_exchanged_gradients(terms, waiting) + terms.last_gradient(terms.size),
            # Stage 1 exchanges nothing before the backward pass ends.
            activations=0 if setting.zero_stage == 1 else terms.activations_at_first_exchange,
            buffers=terms.full_bucket(travels) + _bucket_copy(terms, travels),
        ),
        held.plus(
            "update",
            gradients=shards + flat,
            buffers=0 if offloads else update,
            host=update if offloads else 0,
        ),
    ]


def _in_bucket_at_peak(terms: MemoryTerms) -> int:
    """Return the bytes of an empty bucket that have been written to when activations peak.

    A trimmed last layer saves little, so they peak in the one before it, when stage 2 has the last
    one's gradients in its bucket.
    """
    if terms.setting.on_gpu or terms.setting.zero_stage != 2:
        return 0
    activations = terms.activations
    is_passed = activations.is_trimmed and activations.num_layers > 1
    return terms.size * min(terms.in_bucket, terms.trained.layer_parameters) if is_passed else 0


def _waiting_gradients(terms: MemoryTerms) -> int:
    """Return the bytes of gradients accumulated until the next micro-batch.

    Stage 1 accumulates full gradients, in float32; stage 2 accumulates shards.
    """
    if not terms.setting.accumulates:
        return 0
    return FLOAT32 * (terms.full if terms.setting.zero_stage == 1 else terms.shard)


def _exchanged_gradients(terms: MemoryTerms, waiting: int) -> int:
    """Return the bytes of gradients outside the bucket during its exchange.

    In bfloat16 their float32 shard is allocated while the bucket's copy is still alive; at stage 2
    it replaces the accumulated one. In float32 it is allocated after the copy is freed, and counted
    with it (``_bucket_copy``).
    """
    shards = FLOAT32 * terms.shard
    if terms.setting.zero_stage == 1:
        outside = FLOAT32 * (terms.full - terms.in_bucket)
        return outside + shards if terms.setting.is_bf16 else outside
    return max(waiting, shards) if terms.setting.is_bf16 else waiting


def _bucket_copy(terms: MemoryTerms, travels: int) -> int:
    """Return the bytes of the copy of a bucket's gradients, at ``travels`` bytes per element.

    A single worker needs no copy of float32 gradients. Stage 1 in bfloat16 also casts the copy for
    the exchange.
    """
    setting = terms.setting
    copy = travels * terms.in_bucket if setting.is_bf16 or setting.world_size > 1 else 0
    if setting.zero_stage == 1 and setting.is_bf16:
        copy += 2 * terms.in_bucket
    return copy if setting.is_bf16 else max(copy, FLOAT32 * terms.shard)


def sharded_weights(terms: MemoryTerms) -> list[Moment]:
    """Return ZeRO-3's moments: all state sharded, weights gathered for use (``GatheredWeights``).

    At the start, each worker keeps its shard of one weight after another. A second partition adds
    to the first. Gradients pass through a bucket and its copy, which gloo copies once more, into
    their shard.

    Offload moves master weights, AdamW moments and gradients (twice) to the host, and with 'all'
    the weight shards too.
    """
    setting, size = terms.setting, terms.size
    offloads = setting.offload != "none"
    shards, own = FLOAT32 * terms.shard, size * terms.shard + terms.frozen
    every = terms.architecture.num_parameters
    gathered = GatheredWeights.of(terms)
    second = size * -(-every // setting.secondary_size) if setting.secondary_size else 0
    on_host = 5 * shards + (own if setting.offload == "all" else 0)
    held = Moment(
        name="between steps",
        weights=gathered.kept + second + (0 if setting.offload == "all" else own),
        gradients=0 if offloads else shards,
        optimizer=0 if offloads else 3 * shards,
        host=on_host if offloads else 0,
    )
    bucket = terms.full_bucket(size)
    sub_group = min(terms.shard, SUB_GROUP)
    update = terms.adamw(sub_group)
    return [
        Moment(name="start", weights=own, buffers=terms.placed),
        held.plus(
            "start of forward",
            weights=gathered.live,
            activations=terms.activations_of_frozen_layer,
            buffers=bucket + gathered.in_flight,
        ),
        held.plus(
            "end of forward",
            weights=gathered.live,
            activations=terms.activations_after_forward,
            buffers=bucket + gathered.in_flight_again,
        ),
        held.plus(
            "backward",
            weights=gathered.live,
            gradients=terms.new_gradient(size),
            activations=terms.peak_activations,
            buffers=bucket,
        ),
        held.plus(
            "exchange",
            gradients=terms.last_gradient(size),
            activations=terms.activations_at_first_exchange,
            buffers=bucket + _scattered_copy(terms),
        ),
        held.plus(
            "update",
            buffers=bucket + (0 if offloads else FLOAT32 * sub_group + update),
            host=update if offloads else 0,
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class GatheredWeights:
    """Bytes of gathered weights on a ZeRO-3 worker, besides its shard; 0 for a single worker.

    ZeRO-3 prefetches until ``LIVE`` elements are gathered, and keeps weights that are reused within
    that distance.
    """

    kept: int = 0
    """Small tensors, which stay gathered."""

    live: int = 0
    """Layers in use, and prefetched layers."""

    in_flight: int = 0
    """Temporary second copy while gathered weights are rearranged."""

    in_flight_again: int = 0
    """The same when the forward pass ends, and the layers that the backward pass goes through are
    fetched for it."""

    @classmethod
    def of(cls, terms: MemoryTerms) -> GatheredWeights:
        """Compute the bytes from a model and its setting."""
        if terms.setting.world_size == 1:
            return cls()
        architecture, size = terms.architecture, terms.size
        small = [numbers for numbers in architecture.parameters if numbers <= PERSISTENT]
        every, largest = architecture.num_parameters, architecture.largest_in_layer
        passed = every
        if architecture.tuning is not None and not architecture.tuning.trains_embeddings:
            passed = architecture.num_reached * architecture.layer_parameters
        at_once = max(PREFETCH, largest)
        return cls(
            kept=size * sum(small),
            live=size * min(every, LIVE + largest),
            in_flight=size * min(every, at_once),
            in_flight_again=size * min(passed, at_once),
        )


def _scattered_copy(terms: MemoryTerms) -> int:
    """Return the bytes of a bucket's copy while it is exchanged or cast to float32 shards."""
    copy = cast = terms.size * terms.in_bucket
    if terms.setting.is_bf16:
        cast += FLOAT32 * terms.in_bucket // terms.setting.world_size
    if not terms.setting.on_gpu:
        copy *= 2
    return max(copy, cast)
