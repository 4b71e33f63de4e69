"""What a request asks, and the rewards that answer it, whatever the client's protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rm_ray.config.scoring import RewardScale

Messages = Sequence[Mapping[str, Any]]

Conversation = str | Sequence[int] | Messages
"""Rendered text, token ids, or messages for the chat template."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a request asks: conversations, in the order of the answer's rewards."""

    conversations: tuple[Conversation, ...]
    tools: Sequence[Mapping[str, Any]] | None = None
    """Tools that the chat template writes into conversations given as messages."""
    has_reference: bool = False
    """Whether the last conversation only gives the reward that is taken off all others."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the protocol's answer depends on."""


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """The answer: rewards and lengths of the conversations, in their order."""

    rewards: tuple[float, ...]
    """A model's rewards, or the means over the models of an ensemble: float32 if one model's are
    raw and there is no reference."""
    num_tokens: tuple[int, ...]
    model: str
    """Name of the served model."""
    spread: tuple[float, ...] | None = None
    """Standard deviation of each reward over the models of an ensemble, without their shifts."""
    raw: tuple[float, ...] | None = None
    """What was standardized, without the reference's taken off; None if the rewards are raw."""
    reference: float | None = None
    """The reference's reward, which was taken off ``rewards``."""

    @property
    def scale(self) -> RewardScale:
        """What was made of the rewards."""
        return "raw" if self.raw is None else "standardized"
