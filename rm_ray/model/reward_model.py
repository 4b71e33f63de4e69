"""The reward model: a decoder backbone and a scalar head on each sequence's last token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rm_ray.batches.packing import PackedGroups
from rm_ray.batches.padding import PaddedGroups
from rm_ray.config.sections.batch import Layout
from rm_ray.model.last_layer import trim_last_layer
from rm_ray.model.lean.outline import Sources
from rm_ray.model.tie_parameter import TieParameter


class RewardModel(nn.Module):
    """Scores the conversations of comparison groups.

    Wraps a transformers sequence classifier with one label, so its ``save_pretrained`` writes
    exactly the trained weights.
    """

    def __init__(
        self,
        classifier: PreTrainedModel,
        layout: Layout,
        *,
        kept_head: str | None = None,
        sources: Sources | None = None,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.kept_head = kept_head
        """Weight of the base model that the head started from; None if it was drawn."""
        self.sources = sources
        """Where the engine reads parameters on ``meta``; None once all have their values.

        Rank 0 has those of every parameter on ``meta`` that has no source.
        """
        self.tie: TieParameter | None = None
        """The parameter of ties, if it is learned."""
        self.has_frozen_backbone = False
        """Whether only the head is trained: hidden states are computed without gradients."""
        self._is_trimmed = layout == "packed" and trim_last_layer(classifier.base_model)

    def forward(self, groups: PaddedGroups | PackedGroups) -> Tensor:
        """Return ``[R]`` float32 rewards, in the order of the groups and their responses.

        If the parameter of ties is learned, its logarithm follows: ``[R + 1]``.
        """
        rewards = self._score(groups)
        return rewards if self.tie is None else torch.cat([rewards, self.tie()])

    def _score(self, groups: PaddedGroups | PackedGroups) -> Tensor:
        needs_gradients = torch.is_grad_enabled() and not self.has_frozen_backbone
        if isinstance(groups, PackedGroups):
            with torch.set_grad_enabled(needs_gradients):
                hidden = self._read_packed(groups)
            by_response: Tensor = self.classifier.score(hidden)
            return by_response.squeeze(-1)
        with torch.set_grad_enabled(needs_gradients):
            hidden = self.classifier.base_model(
                input_ids=groups.input_ids, attention_mask=groups.attention_mask, use_cache=False
            ).last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)
        rewards: Tensor = self.classifier.score(hidden[rows, groups.last_positions])
        return rewards.squeeze(-1)[groups.rows]

    def _read_packed(self, groups: PackedGroups) -> Tensor:
        """Return the last hidden states at each response's last token, ``[R, hidden]``."""
        hidden: Tensor = self.classifier.base_model(
            input_ids=groups.input_ids,
            position_ids=groups.position_ids,
            packed=groups,
            use_cache=False,
        ).last_hidden_state[0]
        return hidden if self._is_trimmed else hidden[groups.last_positions]
