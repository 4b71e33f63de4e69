"""A checkpoint of a part of a model, and its base model -> an export of the whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from rm_ray.config.sections.model import ResolvedModel
from rm_ray.config.train_config import TrainConfig
from rm_ray.model.build import build_reward_model
from rm_ray.model.export import export_model
from rm_ray.model.tuning.trainable import choose_trained, loads_in_dtype
from rm_ray.publish.base_hash import hash_base
from rm_ray.runs.record import refuse_other_base
from rm_ray.train.placement import stream_whole
from rm_ray.train.slices import stream_weights


def export_onto_base(
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    files: Iterable[Path],
    folder: Path,
    *,
    base_hash: str,
) -> None:
    """Write the model of a checkpoint's slices in ``files``, which hold only what is trained.

    All other weights are read from the base model's files one at a time, where they can be.

    Raises:
        InputError: the base model has changed since the run began.
    """
    refuse_other_base(base_hash, hash_base(config.model), model=config.model.name_or_path)
    dtype = getattr(torch, config.model.dtype)
    settings = {
        **vars(config.model),
        "gradient_checkpointing": False,
        "activation_offloading": False,
    }
    loads_half = loads_in_dtype(config.model, config.lora)
    model = build_reward_model(
        ResolvedModel(**settings),
        tokenizer,
        seed=config.run.seed,
        layout="padded" if config.batch.layout == "padded" else "packed",
        dtype=dtype if loads_half else torch.float32,
        lean=True,
    )
    choose_trained(model, config.model, config.lora, seed=config.run.seed, dtype=dtype)
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    trained = {name: torch.empty(shape, dtype=torch.float32) for name, shape in shapes.items()}
    for name, first, values in stream_weights(shapes, files):
        trained[name].view(-1)[first : first + len(values)] = values
    weights = ((n, trained.get(n, weight)) for n, weight in stream_whole(model, None, rank=0))
    most = config.model.shard_bytes
    export_model(model, weights, tokenizer, folder, dtype=dtype, max_shard_size=most)
