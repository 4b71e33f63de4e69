"""How much memory a training takes, by part and moment: pure arithmetic.

What is predicted are the bytes of PyTorch's tensors that a worker holds at once: on a GPU what
``torch.cuda.max_memory_allocated`` counts, on a CPU those of its process's resident memory beyond
what the libraries take. Letters: N are the numbers of all weights, n those of one worker's shard
(N over the workers), b the bytes of a number in the computing weights (2 in bfloat16), B the
numbers of DeepSpeed's reduce bucket.

Sources are the code that allocates: ``rm_ray.train.engine``, PyTorch 2.13 (DDP, AdamW) and
DeepSpeed 0.19.8 (``runtime/zero/stage_1_and_2.py``, ``stage3.py``, ``bf16_optimizer.py``).
``tests/benchmarks/memory_estimate.py`` compares all of it with processes that train.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from rm_ray.config.train_config import Layout
from rm_ray.estimate.activations import Activations, Arithmetic, Attention, ForwardPass, saved
from rm_ray.estimate.architecture import Architecture
from rm_ray.train.zero import BUCKET, LIVE

FLOAT32 = 4
"""Bytes of a number of the master weights, of AdamW's moments, and of accumulated gradients."""

ALL_REDUCE = 500_000_000
"""Numbers that DeepSpeed's BF16_Optimizer exchanges at a time (``MEMORY_OPT_ALLREDUCE_SIZE``)."""

PREFETCH = 50_000_000
"""Numbers that ZeRO-3 gathers ahead of use (``stage3_prefetch_bucket_size``)."""

PERSISTENT = 100_000
"""Tensors of so many numbers are never sharded (``stage3_param_persistence_threshold``)."""

SUB_GROUP = 1_000_000_000
"""Numbers that ZeRO-3 updates at a time (``sub_group_size``)."""


Offload = Literal["none", "optimizer", "all"]
"""What is kept in the machine's memory instead of the device's."""


@dataclass(frozen=True, kw_only=True)
class MemorySetting:
    """What decides a worker's memory beside the model and the pairs."""

    dtype: Literal["float32", "bfloat16"]
    zero_stage: int
    offload: Offload = "none"
    checkpointing: bool = False
    world_size: int = 1
    on_gpu: bool = False
    layout: Layout = "packed"
    attention: Attention = "grouped"
    liger: bool = False

    from_files: bool = True
    """Whether weights are read, rather than drawn."""

    secondary_over: int = 0
    """Workers of a machine that share a second partition of the weights; 0: there is none."""

    accumulates: bool = True
    """Whether a step has several micro-batches, so that gradients wait for the next one."""

    @property
    def is_bf16(self) -> bool:
        """Whether products are computed in bfloat16."""
        return self.dtype == "bfloat16"

    @property
    def arithmetic(self) -> Arithmetic:
        """Bytes of the layers' numbers: DeepSpeed casts the weights, without it autocast does."""
        product = 2 if self.is_bf16 else 4
        return Arithmetic(stream=product if self.zero_stage else 4, product=product)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What a worker holds at one moment of a step, in bytes."""

    name: str
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0

    buffers: int = 0
    """What gradients and weights travel in, and what the optimizer works in."""

    host: int = 0
    """What is kept in the machine's memory instead, all parts together."""

    @property
    def device(self) -> int:
        """All parts on the device together."""
        parts = (self.weights, self.gradients, self.optimizer, self.activations, self.buffers)
        return sum(parts)

    def plus(self, name: str, **more: int) -> Moment:
        """Return another moment, at which parts have so much more."""
        parts = (*PARTS, "host")
        return Moment(name=name, **{p: getattr(self, p) + more.get(p, 0) for p in parts})


PARTS = ("weights", "gradients", "optimizer", "activations", "buffers")

BEFORE = ("build", "start")
"""Moments before the first step: the model on the CPU, and on the device before it is sharded."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """What one worker needs."""

    moments: tuple[Moment, ...]
    on_gpu: bool

    @property
    def peak(self) -> Moment:
        """The moment with the most; a CPU's memory is the machine's."""
        return max(self.moments, key=lambda m: m.device + (0 if self.on_gpu else m.host))

    @property
    def device(self) -> int:
        """Most bytes of the device."""
        return self.peak.device + (0 if self.on_gpu else self.peak.host)

    @property
    def machine(self) -> int:
        """Most bytes of the machine's memory."""
        return max(moment.host for moment in self.moments) if self.on_gpu else self.device

    def part(self, name: str) -> int:
        """Return the most that a part takes once training has begun."""
        training = (moment for moment in self.moments if moment.name not in BEFORE)
        most: int = max(getattr(moment, name) for moment in training)
        return most


def estimate(
    architecture: Architecture, row: ForwardPass, setting: MemorySetting
) -> MemoryEstimate:
    """Return the memory of a worker whose largest forward pass is over this row."""
    activations = saved(
        architecture,
        row,
        setting.arithmetic,
        layout=setting.layout,
        attention=setting.attention,
        liger=setting.liger,
    )
    inside = _Inside(architecture=architecture, setting=setting, activations=activations)
    if setting.zero_stage == 0:
        moments = inside.data_parallel()
    elif setting.zero_stage == 3:
        moments = inside.sharded()
    elif setting.zero_stage == 1 and setting.is_bf16 and setting.offload == "none":
        moments = inside.sharded_optimizer_in_bf16()
    else:
        moments = inside.sharded_optimizer()
    # Every worker builds the whole model on the CPU before anything is sharded.
    reads_half = setting.is_bf16 and setting.zero_stage > 0 and setting.from_files
    size = 2 if reads_half else FLOAT32
    build = Moment(name="build", host=size * architecture.num_parameters)
    return MemoryEstimate(moments=(build, *moments), on_gpu=setting.on_gpu)


@dataclass(frozen=True, kw_only=True)
class _Inside:
    """The arithmetic of one setting; one method for each way in which weights are kept."""

    architecture: Architecture
    setting: MemorySetting
    activations: Activations

    @property
    def whole(self) -> int:
        """N."""
        return self.architecture.num_parameters

    @property
    def shard(self) -> int:
        """n, rounded up."""
        return -(-self.whole // self.setting.world_size)

    @property
    def size(self) -> int:
        """b."""
        return self.setting.arithmetic.product

    @property
    def in_bucket(self) -> int:
        """Numbers that a bucket holds once all gradients have come, or it is full."""
        return min(BUCKET, self.whole)

    @property
    def peak(self) -> int:
        """Most bytes of activations."""
        return self.activations.peak(checkpointing=self.setting.checkpointing)

    def new_gradient(self, size: int) -> int:
        """Return the bytes of the largest gradient of a layer before it is added up."""
        return size * self.architecture.largest_in_layer

    def last_gradient(self, size: int) -> int:
        """Return the bytes of the gradient with whose coming the bucket is exchanged.

        Where one bucket takes all of them it is the embedding's.
        """
        is_embedding = self.whole <= BUCKET
        return size * (self.embedding if is_embedding else self.architecture.largest_in_layer)

    def bucket(self, size: int) -> int:
        """Return what empty buckets take: on a CPU memory counts once it is written to.

        Where stages 1 and 2 exchange one beside the backward pass, another is filled.
        """
        num_buckets = 1 if self.setting.zero_stage == 3 else 2
        return num_buckets * size * BUCKET if self.setting.on_gpu else 0

    def full_bucket(self, size: int) -> int:
        """Return what buckets take when one is full."""
        return self.bucket(size) if self.setting.on_gpu else size * self.in_bucket

    def at_first_exchange(self) -> int:
        """Return the activations that are left when the bucket is full for the first time.

        Gradients come, and activations go, layer by layer.
        """
        return math.floor(self.peak * (1 - self.in_bucket / self.whole))

    def adamw(self, numbers: int) -> int:
        """Return what AdamW allocates while it updates so many numbers (torch/optim/adam.py).

        Fused, as with GPUs, nothing; else the roots of second moments and their quotient.
        """
        return 0 if self.setting.on_gpu else 2 * FLOAT32 * numbers

    def data_parallel(self) -> list[Moment]:
        """DDP: float32 weights, moments, and buckets, of which gradients are views.

        A parameter's new gradient is added to them. Under autocast the matrices' bfloat16 copies
        live from their first use on, all of them until the forward pass ends; the graph keeps
        those that it was built with.
        """
        held = Moment(
            name="between steps",
            weights=FLOAT32 * self.whole,
            gradients=FLOAT32 * self.whole,
            optimizer=2 * FLOAT32 * self.whole,
        )
        casts = in_graph = 0
        if self.setting.is_bf16:
            casts = 2 * self.architecture.num_in_linears
            in_graph = casts
            if self.setting.checkpointing:
                in_graph = 2 * 2 * self.architecture.layer_parameters
        new = self.new_gradient(FLOAT32 + (2 if self.setting.is_bf16 else 0))
        return [
            held.plus(
                "end of forward",
                activations=self.activations.held(checkpointing=self.setting.checkpointing),
                buffers=casts,
            ),
            held.plus("backward", gradients=new, activations=self.peak, buffers=in_graph),
            held.plus("end of backward", gradients=FLOAT32 * self.embedding),
            held.plus("update", buffers=self.adamw(max(self.architecture.parameters))),
        ]

    @property
    def embedding(self) -> int:
        """Numbers of the embedding, whose gradient is dense and comes last."""
        return self.architecture.parameters[0]

    def sharded_optimizer_in_bf16(self) -> list[Moment]:
        """ZeRO-1 in bfloat16, DeepSpeed's BF16_Optimizer.

        Weights in bfloat16 on every worker, master weights and moments in shards. Gradients are
        added up in float32 for all weights on every worker, beside those in bfloat16 of the
        backward pass at hand. To be exchanged they are cast, and before that flattened once more
        where matrices and vectors fit into one bucket together.
        """
        half = 2 * self.whole
        held = Moment(
            name="between steps",
            weights=half,
            gradients=FLOAT32 * self.whole,
            optimizer=3 * FLOAT32 * self.shard,
        )
        waiting = half if self.setting.accumulates else 0
        flattened = FLOAT32 * self.whole if self.whole <= ALL_REDUCE else 0
        return [
            Moment(name="start", weights=2 * half),
            held.plus("backward", gradients=waiting + self.new_gradient(2), activations=self.peak),
            held.plus("exchange", gradients=half, buffers=flattened + half),
            held.plus("update", gradients=half, buffers=self.adamw(self.shard)),
        ]

    def sharded_optimizer(self) -> list[Moment]:
        """ZeRO-1 and ZeRO-2, DeepSpeedZeroOptimizer.

        Weights on every worker; master weights, even beside float32 ones, and moments in shards.
        Gradients pass through a bucket, and once more through a copy of it, into their shard; a
        worker alone needs no copy of float32 ones. At stage 1 they wait whole, in float32, and a
        copy is cast to travel. At stage 2 they do not wait; the shards of several micro-batches
        are added up, float32 ones, which are made when the copy is gone, beside the old one.

        Offloaded are master weights, moments, a gradient's shard, the computing weights' shard,
        and room for the largest gradient, which the device has too.
        """
        setting, offloads = self.setting, self.setting.offload != "none"
        travels = FLOAT32 if setting.zero_stage == 1 else self.size
        shards = FLOAT32 * self.shard
        largest = self.size * max(self.architecture.parameters)
        held = Moment(
            name="between steps",
            weights=self.size * self.whole,
            optimizer=0 if offloads else 3 * shards,
            buffers=largest if offloads else 0,
            host=4 * shards + self.size * self.shard + largest if offloads else 0,
        )
        if setting.zero_stage == 1:
            waiting = FLOAT32 * self.whole if setting.accumulates else 0
            gradients = FLOAT32 * (self.whole - self.in_bucket)
            activations = 0  # nothing travels before the backward pass is over
        else:
            waiting = gradients = shards if setting.accumulates else 0
            activations = self.at_first_exchange()
        copy = travels * self.in_bucket if setting.is_bf16 or setting.world_size > 1 else 0
        if setting.zero_stage == 1 and setting.is_bf16:
            copy += 2 * self.in_bucket
        if setting.is_bf16:
            gradients = max(gradients, shards) if setting.zero_stage == 2 else gradients + shards
        else:
            copy = max(copy, shards)
        update = self.adamw(self.shard)
        flat = 0 if setting.is_bf16 else shards
        return [
            Moment(name="start", weights=2 * self.size * self.whole),
            held.plus(
                "backward",
                gradients=waiting + self.new_gradient(self.size),
                activations=self.peak,
                buffers=self.bucket(travels),
            ),
            held.plus(
                "exchange",
                gradients=gradients + self.last_gradient(self.size),
                activations=activations,
                buffers=self.full_bucket(travels) + copy,
            ),
            held.plus(
                "update",
                gradients=shards + flat,
                buffers=0 if offloads else update,
                host=self.adamw(self.shard) if offloads else 0,
            ),
        ]

    def sharded(self) -> list[Moment]:
        """ZeRO-3: everything in shards, weights gathered for use.

        Gathering runs ahead until so much is live, and what is used again within that distance
        stays. A gathering takes its weights twice while they are sorted. Small tensors stay whole.
        A second partition lies beside the first. A worker alone gathers nothing. Gradients pass
        through a bucket and a copy of it, of which gloo makes one more, into their shard.

        Offloaded are master weights, moments, gradients twice, and with 'all' the shards.
        """
        setting, size = self.setting, self.size
        offloads = setting.offload != "none"
        shards = FLOAT32 * self.shard
        own = size * self.shard
        gathered = fetched = kept_whole = 0
        if setting.world_size > 1:
            gathered = size * min(self.whole, LIVE + self.architecture.largest_in_layer)
            fetched = size * min(self.whole, max(PREFETCH, self.architecture.largest_in_layer))
            small = [numbers for numbers in self.architecture.parameters if numbers <= PERSISTENT]
            kept_whole = size * sum(small)
        second = size * -(-self.whole // setting.secondary_over) if setting.secondary_over else 0
        on_host = 0
        if offloads:
            on_host = 5 * shards + (own if setting.offload == "all" else 0)
        held = Moment(
            name="between steps",
            weights=kept_whole + second + (0 if setting.offload == "all" else own),
            gradients=0 if offloads else shards,
            optimizer=0 if offloads else 3 * shards,
            host=on_host,
        )
        copy = cast = size * self.in_bucket
        if setting.is_bf16:
            cast += FLOAT32 * self.in_bucket // setting.world_size
        if not setting.on_gpu:
            copy *= 2
        sub_group = min(self.shard, SUB_GROUP)
        return [
            Moment(name="start", weights=size * self.whole + own + second),
            held.plus(
                "end of forward",
                weights=gathered,
                activations=self.activations.held(checkpointing=setting.checkpointing),
                buffers=self.full_bucket(size) + fetched,
            ),
            held.plus(
                "backward",
                weights=gathered,
                gradients=self.new_gradient(size),
                activations=self.peak,
                buffers=self.full_bucket(size),
            ),
            held.plus(
                "exchange",
                gradients=self.last_gradient(size),
                activations=self.at_first_exchange(),
                buffers=self.full_bucket(size) + max(copy, cast),
            ),
            held.plus(
                "update",
                buffers=self.full_bucket(size)
                + (0 if offloads else FLOAT32 * sub_group + self.adamw(sub_group)),
                host=self.adamw(sub_group) if offloads else 0,
            ),
        ]


def alternatives(setting: MemorySetting) -> list[MemorySetting]:
    """Return the same training at every stage, with and without what saves memory.

    In the order in which they are to be preferred: more memory before more communication, and
    that before computing twice (a third more time), and that before the host's slower memory. A
    CPU has nowhere to offload to.
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
            secondary_over=setting.secondary_over if stage == 3 and offload != "all" else 0,
        )
        for offload, known in stages
        if setting.on_gpu or offload == setting.offload
        for checkpointing in (False, True)
        for stage in known
    ]
