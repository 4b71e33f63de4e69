"""Reference pairs, whose rewards every checkpoint stores for comparison with clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_ray.config.sections.batch import Layout
from rm_ray.data.cache.pair_tokens import PairTokens, join_pairs

if TYPE_CHECKING:  # slow imports, and a worker imports this module early
    from transformers import PreTrainedTokenizerBase

    from rm_ray.batches.collate import Collator
    from rm_ray.batches.packing import PackedPairs
    from rm_ray.batches.padding import PaddedPairs
    from rm_ray.data.cache.token_table import TokenTable
    from rm_ray.train.engine import Engine

NUM_PAIRS = 8

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
class ReferencePairs:
    """Pairs to score, and conversations with the token ids that training uses for them."""

    pairs: PairTokens
    conversations: tuple[dict[str, Any], ...]
    """Each with ``messages`` and ``ids``."""

    def score(self, engine: Engine, collator: Collator, *, tokens_per_pass: int) -> dict[str, Any]:
        """Return ids and rewards in the stored format; every rank calls it, with equal results."""
        import torch

        with engine.evaluating():
            by_pass = [
                engine.rewards(self.lay_out(collator, pairs)).reshape(2, -1)
                for pairs in self.passes(collator.layout, tokens_per_pass)
            ]
        rewards = torch.cat(by_pass, dim=1).float().T.tolist()
        scored = [
            {
                "chosen_ids": self.pairs.chosen(i).tolist(),
                "rejected_ids": self.pairs.rejected(i).tolist(),
                "chosen_reward": chosen,
                "rejected_reward": rejected,
            }
            for i, (chosen, rejected) in enumerate(rewards)
        ]
        return {"pairs": scored, "conversations": self.conversations}

    def passes(self, layout: Layout, tokens_per_pass: int) -> list[list[int]]:
        """Divide the pairs, in order, into as few passes of ``tokens_per_pass`` as possible.

        A larger pair gets its own pass.
        """
        lengths, passes = self.pairs.lengths, [[0]]
        for i in range(1, len(self.pairs)):
            joined = np.array([*passes[-1], i])
            distinct, longest = lengths.distinct[joined].sum(), lengths.longest[joined].max()
            computed = distinct if layout == "packed" else 2 * len(joined) * longest
            if computed <= tokens_per_pass:
                passes[-1].append(i)
            else:
                passes.append([i])
        return passes

    def lay_out(self, collator: Collator, pairs: Sequence[int]) -> PaddedPairs | PackedPairs:
        """Return the given pairs, laid out on the device."""
        ids = [(self.pairs.chosen(i).tolist(), self.pairs.rejected(i).tolist()) for i in pairs]
        nothing = np.zeros(len(pairs))
        laid_out = collator.arrange(join_pairs(ids), margins=nothing, weights=nothing)
        return collator.to_device(laid_out)


def choose_reference_pairs(table: TokenTable, tokenizer: PreTrainedTokenizerBase) -> ReferencePairs:
    """Choose pairs across the shorter half of a table, so that scoring them is cheap."""
    by_length = np.argsort(table.lengths.distinct, kind="stable")
    shorter = np.sort(by_length[: max(len(by_length) // 2, NUM_PAIRS)])
    chosen = shorter[np.linspace(0, len(shorter) - 1, min(NUM_PAIRS, len(shorter))).astype(int)]
    return ReferencePairs(pairs=table.gather(chosen), conversations=tuple(_tokenize(tokenizer)))


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
