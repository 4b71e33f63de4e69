"""A comparison group: one prompt, its responses, and what a row says of which is better."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rm_ray.data.rows.context import NO_CONTEXT, Context
from rm_ray.data.rows.turns import Message


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Which of two responses is better; both are indices into the responses of a group."""

    better: int
    worse: int
    weight: float = 1.0
    """Relative to the other comparisons of the group, which weigh 1 together in the loss."""
    margin: float = 0.0
    """How much higher the reward of ``better`` should be."""
    probability: float = 1.0
    """That ``better`` wins, in [0.5, 1]; exactly 0.5 is a tie."""

    @property
    def is_tie(self) -> bool:
        """Whether neither response is better."""
        return self.probability == 0.5

    def swap(self) -> Comparison:
        """Return the comparison with its preference reversed."""
        return replace(self, better=self.worse, worse=self.better)


TIE = 0.5
"""The probability that says that two responses are equally good."""

FIRST_WINS = (Comparison(better=0, worse=1),)
"""The comparisons of a plain pair, its chosen response first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """One prompt, K >= 1 distinct responses, and the comparisons among them."""

    prompt: list[Message]
    """The turns that all conversations share."""
    responses: list[Message]
    """K last turns, the assistant's; of a pair, the chosen one first."""
    comparisons: tuple[Comparison, ...] = FIRST_WINS
    scores: tuple[float, ...] | None = None
    """K scores, higher is better, NaN where a response has none; None if none has one."""
    source: str = ""
    context: Context = NO_CONTEXT

    @classmethod
    def pair(
        cls,
        chosen: list[Message],
        rejected: list[Message],
        *,
        margin: float = 0.0,
        source: str = "",
        context: Context = NO_CONTEXT,
    ) -> Group:
        """Return the group of two conversations that differ only in their last turn."""
        wins = (Comparison(better=0, worse=1, margin=margin),) if margin else FIRST_WINS
        return cls(
            prompt=chosen[:-1],
            responses=[chosen[-1], rejected[-1]],
            comparisons=wins,
            source=source,
            context=context,
        )

    @property
    def conversations(self) -> list[list[Message]]:
        """The K conversations: the prompt with each response."""
        return [[*self.prompt, response] for response in self.responses]

    def swap(self) -> Group:
        """Return the group with all its preferences reversed; it keeps no scores."""
        return replace(self, comparisons=tuple(c.swap() for c in self.comparisons), scores=None)
