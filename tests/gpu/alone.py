"""The engine that training has, on one rank without Ray."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from transformers.integrations import unset_hf_deepspeed_config

from gpu.bench import Bench
from rm_ray.config.sections.cluster import ClusterConfig, ZeroStage
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.model.reward_model import RewardModel
from rm_ray.train.engine import Engine


def join_alone(bench: Bench) -> None:
    """Make the process's group of one, which DeepSpeed and DDP ask for, where there is none."""
    if dist.is_initialized():
        return
    os.environ |= {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    store = dist.HashStore()
    dist.init_process_group(bench.pick("nccl", "gloo"), store=store, rank=0, world_size=1)


def build_engine(bench: Bench, model: RewardModel, *, zero_stage: ZeroStage) -> Engine:
    """Build an engine in bfloat16 for a model, which is its own from then on."""
    join_alone(bench)
    forget_engines()
    return Engine(
        model,
        OptimizerConfig(learning_rate=1e-5),
        ClusterConfig(zero_stage=zero_stage),
        dtype=torch.bfloat16,
        use_gpu=not bench.is_dry,
    )


def forget_engines() -> None:
    """Clear what Accelerate keeps of engines; after ZeRO-3 transformers shards all later models."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    unset_hf_deepspeed_config()
