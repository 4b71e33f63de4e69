"""Reference groups, whose rewards every checkpoint stores for comparison with clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_ray.config.sections.batch import Layout
from rm_ray.data.cache.group_tokens import GroupTokens, count_positions, join_groups

if TYPE_CHECKING:  # slow imports, and a worker imports this module early
    from transformers import PreTrainedTokenizerBase

    from rm_ray.batches.collate import Collator
    from rm_ray.batches.packing import PackedGroups
    from rm_ray.batches.padding import PaddedGroups
    from rm_ray.data.cache.token_table import TokenTable
    from rm_ray.train.engine import Engine

NUM_GROUPS = 8

_CONVERSATIONS = (
    [
        {"role": "user", "content": "What is 12 x 12?"},
        {"role": "assistant", "content": "144."},
    ],
    [
        {"role": "user", "content": "Grüße!\n\nWie heißt 你好 auf Deutsch?"},
        {"role": "assistant", "content": "  „Hallo“ 🙂"},
        {"role": "user", "content": "def f(x): return x_1"},
        {"role": "assistant", "content": "That line has\ttwo names:\n\n1. x\n2. x_1"},
    ],
)


@dataclass(frozen=True, kw_only=True)
class ReferenceGroups:
    """Groups to score, and conversations with the token ids that training uses for them."""

    groups: GroupTokens
    conversations: tuple[dict[str, Any], ...]
    """Each with ``messages`` and ``ids``."""

    def score(self, engine: Engine, collator: Collator, *, tokens_per_pass: int) -> dict[str, Any]:
        """Return ids and rewards in the stored format; every rank calls it, with equal results."""
        import torch

        with engine.evaluating():
            by_pass = [
                engine.rewards(self.lay_out(collator, groups))
                for groups in self.passes(collator.layout, tokens_per_pass)
            ]
        rewards = iter(torch.cat(by_pass).float().tolist())
        scored = [
            {"ids": ids.tolist(), "reward": next(rewards)}
            for group in range(len(self.groups))
            for ids in self.groups.conversations(group)
        ]
        return {"scored": scored, "conversations": self.conversations}

    def passes(self, layout: Layout, tokens_per_pass: int) -> list[list[int]]:
        """Divide the groups, in order, into as few passes of ``tokens_per_pass`` as possible.

        A larger group gets its own pass.
        """
        lengths, passes = self.groups.lengths, [[0]]
        for i in range(1, len(self.groups)):
            joined = np.array([*passes[-1], i])
            if count_positions(lengths[joined], layout) <= tokens_per_pass:
                passes[-1].append(i)
            else:
                passes.append([i])
        return passes

    def lay_out(self, collator: Collator, groups: Sequence[int]) -> PaddedGroups | PackedGroups:
        """Return the given groups, laid out on the device."""
        from rm_ray.batches.collate import unlabelled

        joined = join_groups(
            [[ids.tolist() for ids in self.groups.conversations(group)] for group in groups]
        )
        return collator.to_device(collator.arrange(joined, unlabelled(joined)))


def choose_reference_groups(
    table: TokenTable, tokenizer: PreTrainedTokenizerBase
) -> ReferenceGroups:
    """Choose groups across the shorter half of a table, so that scoring them is cheap."""
    by_length = np.argsort(table.lengths.distinct, kind="stable")
    shorter = np.sort(by_length[: max(len(by_length) // 2, NUM_GROUPS)])
    chosen = shorter[np.linspace(0, len(shorter) - 1, min(NUM_GROUPS, len(shorter))).astype(int)]
    return ReferenceGroups(groups=table.gather(chosen), conversations=tuple(_tokenize(tokenizer)))


def _tokenize(tokenizer: PreTrainedTokenizerBase) -> Sequence[dict[str, Any]]:
    from rm_ray.data.tokens.chat_renderer import TEMPLATE_FAILURES

    tokenized = []
    for messages in _CONVERSATIONS:
        try:
            ids = tokenizer.apply_chat_template(messages, return_dict=False)
        except TEMPLATE_FAILURES:
            continue  # a template may not support this conversation
        tokenized.append({"messages": messages, "ids": list(ids)})
    return tokenized
