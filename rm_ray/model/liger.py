"""Liger's fused kernels as replacements for transformers' own."""

from __future__ import annotations

import logging

from rm_ray.errors import InputError
from rm_ray.model.reward_model import RewardModel

logger = logging.getLogger(__name__)


def apply_liger(model: RewardModel, choice: str, *, on_gpu: bool) -> bool:
    """Swap in Liger's fused RMSNorm, SwiGLU and rotary kernels; return whether it did.

    Raises:
        InputError: ``choice`` is 'on', but workers have no GPU or Liger has no kernels for the
            architecture.
    """
    if choice == "off" or (choice == "auto" and not on_gpu):
        return False
    if not on_gpu:
        raise InputError(
            "model.liger is 'on', but Liger's Triton kernels need a GPU and the workers have none "
            "(cluster.use_gpu). Use 'auto' or 'off'"
        )
    from liger_kernel.transformers.monkey_patch import (  # imports Triton, which needs a GPU
        MODEL_TYPE_TO_APPLY_LIGER_FN,
        _apply_liger_kernel_to_instance,
    )

    model_type = model.classifier.config.model_type
    if model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        if choice == "on":
            raise InputError(f"model.liger is 'on', but Liger has no kernels for '{model_type}'")
        logger.info("liger: no kernels for '%s', continuing without", model_type)
        return False
    _apply_liger_kernel_to_instance(
        model.classifier, fused_linear_cross_entropy=False, cross_entropy=False
    )
    return True
