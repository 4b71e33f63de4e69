"""Settings of the model: backbone, tokenizer, precision and kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from rm_ray.config.checks import refuse_password
from rm_ray.config.fields import MAY_CHANGE
from rm_ray.config.sections.data import BUILTIN


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The backbone, its tokenizer, precision and kernels."""

    name_or_path: str = BUILTIN
    """Decoder on the Hub, a folder with one, a config.json (random weights), or 'builtin'."""

    revision: str | None = None
    """Branch, tag or commit of a model on the Hub."""

    tokenizer: str | None = None
    """Tokenizer on the Hub or in a folder, or 'builtin'; by default the model's own."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the backbone. Master weights, optimizer, head and loss stay in float32."""

    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation with batch.layout 'padded'. With 'packed' it must be 'sdpa', and
    means variable-length flash attention in bfloat16 on GPUs, otherwise PyTorch's attention."""

    gradient_checkpointing: Annotated[bool | Literal["auto"], MAY_CHANGE] = False
    """Recompute activations in the backward pass: less memory, about a third more time. 'auto' does
    so if the settings that then fit in memory are predicted to be clearly faster."""

    liger: Literal["auto", "on", "off"] = "auto"
    """Liger's fused Triton kernels, which need a GPU; 'auto' uses them on GPUs."""

    def __post_init__(self) -> None:
        for name in ("name_or_path", "tokenizer"):
            refuse_password(f"model.{name}", getattr(self, name), "the environment, as HF_TOKEN")


@dataclass(frozen=True, kw_only=True)
class ResolvedModel(ModelConfig):
    """Model settings without 'auto'."""

    gradient_checkpointing: Annotated[bool, MAY_CHANGE] = False
    """Whether to recompute activations in the backward pass."""
