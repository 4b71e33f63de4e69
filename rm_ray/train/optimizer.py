"""AdamW, its parameter groups, and the learning rate per step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.importing import hidden

with hidden("bitsandbytes"):  # leads to peft, which would spend a second importing it
    from transformers import get_scheduler


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, fused: bool = False
) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices, but not on vectors (norms, biases).

    ``fused`` updates each tensor in a single pass without temporary memory.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if is_matrix(p)], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if not is_matrix(p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=fused or None,
    )


def is_matrix(parameter: nn.Parameter) -> bool:
    """Return whether a parameter has two dimensions or more, when it is whole."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)  # DeepSpeed's, if sharded
    return len(shape) >= 2


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> Callable[[int], float]:
    """Return the learning rate as a function of completed steps, from 0 to ``num_steps``.

    The schedules are those of transformers' ``get_scheduler``, in optimizer steps of the run.
    """
    placeholder = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    scheduler = get_scheduler(
        config.schedule,
        placeholder,
        num_warmup_steps=config.warmup_steps,
        num_training_steps=num_steps,
    )
    factor = scheduler.lr_lambdas[0]
    return lambda step: config.learning_rate * float(factor(step))
