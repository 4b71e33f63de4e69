"""Settings of the model: backbone, tokenizer, precision and kernels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from rm_ray.config.checks import refuse_password, require
from rm_ray.config.fields import MAY_CHANGE
from rm_ray.config.sections.data import BUILTIN

Head = Literal["auto", "new", "keep"]

LEAST_SHARD = 10**6
"""Fewer bytes a file are taken for a forgotten unit."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([kmgt])(i)?b)?")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The backbone, its tokenizer, precision and kernels."""

    name_or_path: str = BUILTIN
    """Decoder on the Hub, a folder with one, a config.json (random weights), or 'builtin'."""

    revision: str | None = None
    """Branch, tag or commit of a model on the Hub."""

    tokenizer: str | None = None
    """Tokenizer on the Hub or in a folder, or 'builtin'; by default the model's own."""

    head: Head = "auto"
    """'auto' continues from the head that a reward model already has, and draws a new one for other
    models; 'keep' requires one; 'new' always draws one."""

    trainable: str = "all"
    """What is trained: 'all'; 'last:4', the last 4 layers, the final norm and the head; or 'head',
    the head alone. The rest stays as it is, in dtype. 'all' with LoRA (lora.rank)."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the backbone. Master weights, optimizer, head and loss stay in float32."""

    quantization: Literal["none", "nf4"] = "none"
    """'nf4' holds the frozen weights of linear layers in 4 bits (QLoRA, arXiv:2305.14314) and
    computes with them in dtype; layers whose number of inputs is not a multiple of 64 stay in
    dtype. Needs LoRA and a ZeRO stage below 3; works on GPUs and CPUs. A merged export holds the
    values that the 4-bit weights stand for, so its rewards are those of training; an adapter has
    them only on a base that is quantized alike."""

    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation with batch.layout 'padded'. With 'packed' it must be 'sdpa', and
    means variable-length flash attention in bfloat16 on GPUs, otherwise PyTorch's attention."""

    gradient_checkpointing: Annotated[bool | Literal["auto"], MAY_CHANGE] = False
    """Recompute activations in the backward pass: less memory, about a third more time. 'auto' does
    so if the settings that then fit in memory are predicted to be clearly faster."""

    activation_offloading: Annotated[bool, MAY_CHANGE] = False
    """Keep what recomputation starts from, the input of every layer, in the host's memory until the
    backward pass needs it: for conversations so long that these inputs fill a GPU. The results are
    the same. Needs GPUs and model.gradient_checkpointing true."""

    liger: Literal["auto", "on", "off"] = "auto"
    """Liger's fused Triton kernels, which need a GPU; 'auto' uses them on GPUs."""

    max_shard_size: Annotated[int | str, MAY_CHANGE] = "50GB"
    """Most bytes of a weight file of the exported model and of published ones, as a number or as in
    '5GB'; a larger model gets several, with an index. A single weight is never split."""

    def __post_init__(self) -> None:
        for name in ("name_or_path", "tokenizer"):
            refuse_password(f"model.{name}", getattr(self, name), "the environment, as HF_TOKEN")
        is_known = re.fullmatch(r"all|head|last:(?!0+$)[0-9]{1,9}", self.trainable) is not None
        rule = "'all', 'head', or 'last:N' with a number N of layers, such as 'last:4'"
        require(is_known, "model.trainable", self.trainable, rule)
        recomputes, offloads = self.gradient_checkpointing, self.activation_offloading
        rule = f"false unless model.gradient_checkpointing is true (it is {recomputes!r})"
        require(recomputes is True or not offloads, "model.activation_offloading", offloads, rule)
        rule = "at least 1MB: a number of bytes, or one with KB, MB, GB, TB, as in '5GB'"
        is_enough = (
            _SIZE.fullmatch(self._shard_size) is not None and self.shard_bytes >= LEAST_SHARD
        )
        require(is_enough, "model.max_shard_size", self.max_shard_size, rule)

    @property
    def shard_bytes(self) -> int:
        """``max_shard_size`` as a number."""
        number, prefix, binary = _SIZE.fullmatch(self._shard_size).groups()  # type: ignore[union-attr]
        return int(float(number) * (1_024 if binary else 1_000) ** " kmgt".index(prefix or " "))

    @property
    def _shard_size(self) -> str:
        return str(self.max_shard_size).strip().lower()

    @property
    def num_trained_layers(self) -> int | None:
        """The number of last layers to train, 0 for the head alone; None for all weights."""
        if self.trainable == "all":
            return None
        return 0 if self.trainable == "head" else int(self.trainable.removeprefix("last:"))


@dataclass(frozen=True, kw_only=True)
class ResolvedModel(ModelConfig):
    """Model settings without 'auto'."""

    gradient_checkpointing: Annotated[bool, MAY_CHANGE] = False
    """Whether to recompute activations in the backward pass."""
