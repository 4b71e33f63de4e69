"""Settings of LoRA: low-rank adapters that are trained instead of the backbone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from rm_ray.config.checks import require
from rm_ray.config.fields import MAY_CHANGE

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters of a rank in linear layers (arXiv:2106.09685); the head is always trained whole."""

    rank: int = 0
    """Rank of the adapters; 0 trains without LoRA."""

    alpha: float = 32.0
    """Scale of the adapters: their product is multiplied by alpha / rank."""

    targets: tuple[str, ...] = (ALL_LINEAR,)
    """Linear layers with adapters: 'all-linear' (all but the head), or names such as q_proj."""

    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead, so that larger ranks learn as fast
    (arXiv:2312.03732)."""

    train_embeddings: bool = False
    """Train the input embeddings too, whole."""

    export: Annotated[Literal["merged", "adapter", "both"], MAY_CHANGE] = "merged"
    """'merged' adds the adapters to the weights, and any client reads the result; 'adapter' writes
    a folder for peft, which needs the base model; 'both' writes both."""

    def __post_init__(self) -> None:
        require(self.rank >= 0, "lora.rank", self.rank, "at least 0 (0 trains without LoRA)")
        require(0 < self.alpha < math.inf, "lora.alpha", self.alpha, "above 0 and finite")
        named = [name for name in self.targets if name.strip()]
        is_list = len(named) == len(self.targets) > 0
        alone = ALL_LINEAR not in self.targets or len(self.targets) == 1
        rule = "'all-linear' alone, or names of linear layers such as q_proj"
        require(is_list and alone, "lora.targets", self.targets, rule)

    @property
    def is_on(self) -> bool:
        """Whether adapters are trained."""
        return self.rank > 0

    @property
    def scaling(self) -> float:
        """The factor of the adapters' product."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def writes_adapter(self) -> bool:
        """Whether the export includes a folder for peft."""
        return self.export != "merged"

    @property
    def writes_merged(self) -> bool:
        """Whether the export includes the model with its adapters merged."""
        return self.export != "adapter"
