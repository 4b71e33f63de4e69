"""The reward model: a decoder backbone and a scalar head on each sequence's last token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rm_ray.batches.packing import PackedPairs
from rm_ray.batches.padding import PaddedPairs
from rm_ray.config.sections.batch import Layout
from rm_ray.model.last_layer import trim_last_layer


class RewardModel(nn.Module):
    """Scores the two conversations of each pair.

    Wraps a transformers sequence classifier with one label, so its ``save_pretrained`` writes
    exactly the trained weights.
    """

    def __init__(self, classifier: PreTrainedModel, layout: Layout) -> None:
        super().__init__()
        self.classifier = classifier
        self._is_trimmed = layout == "packed" and trim_last_layer(classifier.base_model)

    def forward(self, pairs: PaddedPairs | PackedPairs) -> Tensor:
        """Return ``[2P]`` float32 rewards: all chosen conversations, then all rejected ones."""
        if isinstance(pairs, PackedPairs):
            hidden = self._read_packed(pairs)
            by_pair: Tensor = self.classifier.score(hidden).reshape(-1, 2)
            return by_pair.T.reshape(-1)
        hidden = self.classifier.base_model(
            input_ids=pairs.input_ids, attention_mask=pairs.attention_mask, use_cache=False
        ).last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)
        rewards: Tensor = self.classifier.score(hidden[rows, pairs.last_positions])
        return rewards.squeeze(-1)

    def _read_packed(self, pairs: PackedPairs) -> Tensor:
        """Return the last hidden states at each branch's last token, ``[2P, hidden]``."""
        hidden: Tensor = self.classifier.base_model(
            input_ids=pairs.input_ids,
            position_ids=pairs.position_ids,
            packed=pairs,
            use_cache=False,
        ).last_hidden_state[0]
        return hidden if self._is_trimmed else hidden[pairs.last_positions]
