"""What each process of the traffic test runs: a step, and the bytes of its collectives."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ranks import Case, Trainer
from tables import ready_step
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from transformers import AutoConfig, AutoModelForSequenceClassification

from rm_ray.config.sections.model import ModelConfig
from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.memory_setting import MemorySetting
from rm_ray.estimate.traffic import traffic_of
from rm_ray.train import deepspeed_config

MODEL = {
    "model_type": "llama", "hidden_size": 384, "intermediate_size": 768, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 6, "vocab_size": 4_200,
}  # fmt: skip


@dataclass(frozen=True)
class TrafficCase:
    """One way to train, and ZeRO-3's reuse distance."""

    zero_stage: int
    dtype: str = "float32"
    tokens: int = 4_000
    """Of a micro-batch."""
    checkpointing: bool = False
    secondary: bool = False
    live: int = 1


class Counter:
    """Counts the bytes that go through DeepSpeed's and DDP's collectives."""

    def __init__(self) -> None:
        self.bytes = {"reduced": 0, "scattered": 0, "gathered": 0, "gathered_near": 0}

    def watch(self, patched: Any, world_size: int) -> None:
        """Wrap DeepSpeed's collectives; those over part of the ranks are near."""

        def wrap(name: str, kind: str, whole: int) -> None:
            original = getattr(patched, name)

            def call(backend: Any, *tensors: Any, **options: Any) -> Any:
                names = ("output_tensor", "input_tensor")
                given = tensors[whole] if len(tensors) > whole else options.get(names[whole])
                group = options.get("group") or next(
                    (t for t in tensors if isinstance(t, torch.distributed.ProcessGroup)), None
                )
                is_near = group is not None and group.size() < world_size
                key = "gathered_near" if is_near and kind == "gathered" else kind
                parts = given if isinstance(given, list) else [given]
                self.bytes[key] += sum(part.numel() * part.element_size() for part in parts)
                return original(backend, *tensors, **options)

            setattr(patched, name, call)

        wrap("all_reduce", "reduced", 0)
        wrap("all_gather_into_tensor", "gathered", 0)
        wrap("all_gather", "gathered", 0)
        wrap("reduce_scatter_tensor", "scattered", 1)

    def watch_ddp(self, model: Any) -> None:
        """Count each bucket of gradients as DDP exchanges it."""

        def hook(
            state: Any, bucket: torch.distributed.GradBucket
        ) -> torch.futures.Future[torch.Tensor]:
            self.bytes["reduced"] += bucket.buffer().numel() * bucket.buffer().element_size()
            return allreduce_hook(state, bucket)

        model.register_comm_hook(None, hook)


def count_all(rank: int, cases: list[TrafficCase], folder: Path) -> None:
    """Take three steps of every case; rank 0 leaves the last one's bytes, and the predicted."""
    from deepspeed.comm.torch import TorchBackend

    path = folder / f"model-{rank}.json"
    path.write_text(json.dumps(MODEL))
    with torch.device("meta"):  # before ZeRO-3, under which transformers shards what it builds
        config = AutoConfig.for_model(**MODEL, num_labels=1)
        architecture = Architecture.of(AutoModelForSequenceClassification.from_config(config))
    counter, found = Counter(), []
    for i, case in enumerate(cases):
        deepspeed_config.LIVE = case.live
        trainer = Trainer(
            Case(
                case.zero_stage,
                case.dtype,
                ModelConfig(name_or_path=str(path), gradient_checkpointing=case.checkpointing),
                secondary=case.secondary,
            ),
            folder,
        )
        engine = trainer.engine
        if i == 0:
            counter.watch(TorchBackend, engine.world_size)
        if case.zero_stage == 0:
            counter.watch_ddp(engine.model)
        settings = replace(trainer.plan.settings, tokens_per_micro_batch=case.tokens)
        trainer.plan = replace(trainer.plan, settings=settings)
        trainer.train(0, 2)
        counter.bytes = dict.fromkeys(counter.bytes, 0)
        trainer.train(2, 3)
        micro_batches = ready_step(
            trainer.table, trainer.plan, 2, trainer.tokenizer, rank=rank,
            world_size=engine.world_size,
        )  # fmt: skip
        predicted = traffic_of(
            architecture,
            MemorySetting(
                dtype=case.dtype,  # type: ignore[arg-type]
                zero_stage=case.zero_stage,
                checkpointing=case.checkpointing,
                world_size=engine.world_size,
                secondary_size=2 if case.secondary else 0,
            ),
            num_micro_batches=len(micro_batches),
            live=case.live,
        ).total
        wanted = {k: n for k, n in asdict(predicted).items() if k in counter.bytes}
        found.append([len(micro_batches), dict(counter.bytes), wanted])
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))
