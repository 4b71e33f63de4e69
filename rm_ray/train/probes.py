"""A few pairs whose rewards are kept with every checkpoint, to compare what clients make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_ray.data.pair_tokens import PairTokens, join_pairs

if TYPE_CHECKING:  # a worker reads this module before it has time for those
    from transformers import PreTrainedTokenizerBase

    from rm_ray.data.collate import Collator
    from rm_ray.data.token_table import TokenTable
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
class Probes:
    """Pairs to score, and conversations with the ids that training would give them."""

    pairs: PairTokens
    conversations: tuple[dict[str, Any], ...]
    """Each with ``messages`` and ``ids``."""

    def score(self, engine: Engine, collator: Collator) -> dict[str, Any]:
        """Return ids and rewards, as a run keeps them; all ranks call it and compute the same."""
        nothing, scored = np.zeros(1), []
        with engine.evaluating():
            for i in range(len(self.pairs)):  # alone: together they may exceed a micro-batch
                chosen, rejected = self.pairs.chosen(i).tolist(), self.pairs.rejected(i).tolist()
                pair = join_pairs([(chosen, rejected)])
                laid_out = collator.arrange(pair, margins=nothing, weights=nothing)
                rewards = engine.rewards(collator.to_device(laid_out)).float().tolist()
                scored.append(
                    {
                        "chosen_ids": chosen,
                        "rejected_ids": rejected,
                        "chosen_reward": rewards[0],
                        "rejected_reward": rewards[1],
                    }
                )
        return {"pairs": scored, "conversations": self.conversations}


def choose_probes(table: TokenTable, tokenizer: PreTrainedTokenizerBase) -> Probes:
    """Choose pairs spread over the shorter half of a table, so that they cost little anywhere."""
    by_length = np.argsort(table.lengths.distinct, kind="stable")
    shorter = np.sort(by_length[: max(len(by_length) // 2, NUM_PAIRS)])
    chosen = shorter[np.linspace(0, len(shorter) - 1, min(NUM_PAIRS, len(shorter))).astype(int)]
    return Probes(pairs=table.gather(chosen), conversations=tuple(_tokenize(tokenizer)))


def _tokenize(tokenizer: PreTrainedTokenizerBase) -> Sequence[dict[str, Any]]:
    from rm_ray.data.tokenization import TEMPLATE_FAILURES

    tokenized = []
    for messages in _CONVERSATIONS:
        try:
            ids = tokenizer.apply_chat_template(messages, return_dict=False)
        except TEMPLATE_FAILURES:
            continue  # a template may take conversations of another form alone
        tokenized.append({"messages": messages, "ids": list(ids)})
    return tokenized
