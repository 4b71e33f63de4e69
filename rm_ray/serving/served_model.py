"""Model versions in memory: the one that serves, or several that judge together."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rm_ray.config.scoring import RewardScale, ScoringModel
from rm_ray.data.sources.synthetic import generate_pairs
from rm_ray.data.tokens.tokenizer import tokenizer_differences
from rm_ray.errors import InputError, first_line
from rm_ray.evaluation.reports.ensemble import spread_over_models
from rm_ray.evaluation.reward_statistics import RewardStatistics, find_statistics
from rm_ray.model.positions import check_positions, count_positions
from rm_ray.scoring.scorer import Scorer, load_architecture, model_name
from rm_ray.serving.question import Question, Rewards
from rm_ray.serving.refusal import refuse
from rm_ray.serving.tokens import ConversationTokens
from rm_ray.serving.versions import ModelVersion

logger = logging.getLogger(__name__)

NUM_ANCHORS = 32
"""Built-in pairs on which the models of an ensemble are given the same mean reward."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedModel:
    """A loaded model version, with the tokenizer that belongs to it."""

    name: str
    scorer: Scorer
    tokens: ConversationTokens
    statistics: RewardStatistics | None = None
    """Those by which its rewards are standardized; None if they are raw."""

    @classmethod
    def load(
        cls,
        version: ModelVersion,
        model: ScoringModel,
        *,
        device: torch.device,
        cache_bytes: int = 0,
    ) -> ServedModel:
        """Load a version, and score two tokens with it.

        ``cache_bytes`` are for keys and values of earlier passes.

        Raises:
            InputError: it is unreadable, no reward model, gives rewards that are not finite, has no
                statistics to standardize them, or does not fit into memory with its cache.
        """
        with version.files() as place:
            name = model_name(place, version.revision)
            architecture = load_architecture(name)
            statistics = find_statistics(name, model.rewards, shown=model.model)
            max_length = find_max_length(architecture, model)
            with _fitting(version.name, cache_bytes):
                scorer = Scorer.load(
                    place,
                    revision=version.revision,
                    dtype=model.dtype,
                    device=device,
                    tokens_per_forward=model.tokens_per_pass(use_gpu=device.type == "cuda"),
                    cache_bytes=cache_bytes,
                )
                _try(scorer, version.name)
        return cls(
            name=version.name,
            scorer=scorer,
            tokens=ConversationTokens.of(scorer.tokenizer, max_length),
            statistics=statistics,
        )

    def encode(self, question: Question) -> list[np.ndarray]:
        """Return the token ids of a question's conversations, in order.

        Raises:
            RefusedError: a conversation cannot be scored; the message says which, and why.
        """
        try:
            encoded = self.tokens.encode_all(question)
        except InputError as error:
            raise refuse(422, str(error)) from None
        self.refuse_unknown(encoded)
        return encoded

    def refuse_unknown(self, encoded: Sequence[np.ndarray]) -> None:
        """Refuse ids beyond the vocabulary, which would fail for all requests of a batch.

        Raises:
            RefusedError: names the conversation and the id.
        """
        size = self.scorer.model.classifier.get_input_embeddings().weight.shape[0]
        for number, ids in enumerate(encoded):
            if ids.max() >= size:
                raise refuse(
                    422,
                    f"conversation {number} has the token id {int(ids.max())}, but the model "
                    f"knows ids from 0 to {size - 1}; tokenize with the served model's tokenizer",
                )

    def scaled(self, rewards: np.ndarray) -> np.ndarray:
        """Return raw rewards of any shape as they are served."""
        return rewards if self.statistics is None else self.statistics.standardize(rewards)

    def anchor_reward(self) -> float:
        """Return the mean reward of the responses of the first built-in pairs.

        Raises:
            InputError: it is not finite, or the chat template does not take them.
        """
        tokens = replace(self.tokens, max_length=2**31)
        pairs = generate_pairs("test", NUM_ANCHORS)
        encoded = [[tokens.encode(pair[side]) for side in ("chosen", "rejected")] for pair in pairs]
        lists = [[ids.tolist() for ids in responses] for responses in encoded]
        found = float(np.concatenate(self.scorer.score(lists)).mean(dtype=np.float64))
        if not np.isfinite(found):
            raise InputError(
                f"--model '{self.name}' gives rewards that are not finite; its weights are "
                "broken, or its dtype overflows"
            )
        return found


@contextmanager
def _fitting(name: str, cache_bytes: int) -> Iterator[None]:
    """Turn too little memory of a GPU into what to do.

    Raises:
        InputError: there is too little.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = "; lower --prefix_cache_gib, or take" if cache_bytes else "; take"
        raise InputError(
            f"--model '{name}' does not fit into the GPU's memory{advice} a smaller dtype or a "
            f"larger GPU: {first_line(error)}"
        ) from None


def _try(scorer: Scorer, name: str) -> None:
    """Score two tokens; on a GPU, the cache takes all its memory for them.

    Raises:
        InputError: the reward is not finite.
    """
    (rewards,) = scorer.score([[[0, 0]]])
    if not np.isfinite(rewards).all():
        raise InputError(
            f"--model '{name}' gives rewards that are not finite; its weights are broken, or its "
            "dtype overflows"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedModels:
    """The M models whose mean reward is served; mostly one.

    The spread is that of ``jobs/evaluate.py``: the sample standard deviation over the models, each
    without its own mean reward, since Bradley-Terry rewards are defined up to a constant. There,
    it is the mean over the rows; a server has none, so it takes that over the same built-in
    responses for each model, its anchors. Standardized rewards, and those with a reference, are
    without shifts already.
    """

    members: tuple[ServedModel, ...]
    """Of one tokenizer and chat template; the first one encodes."""
    shifts: np.ndarray
    """``[M]`` float64: the models' mean rewards, which are taken off for the spread; zeros where
    the rewards are standardized."""

    @classmethod
    def of(cls, members: Sequence[ServedModel]) -> ServedModels:
        """Join models; conversations may be as long as all of them support.

        Raises:
            InputError: their tokenizers differ, or rewards are not finite.
        """
        first, *others = members
        if not others:
            return cls(members=(first,), shifts=np.zeros(1))
        require_same_tokenizer([(each.name, each.scorer.tokenizer) for each in members])
        shortest = min(each.tokens.max_length for each in members)
        first = replace(first, tokens=replace(first.tokens, max_length=shortest))
        shifts = [0.0 if each.statistics else each.anchor_reward() for each in members]
        return cls(members=(first, *others), shifts=np.array(shifts))

    @property
    def name(self) -> str:
        """The names of the versions."""
        return " + ".join(each.name for each in self.members)

    @property
    def scale(self) -> RewardScale:
        """What is made of the rewards, the same for all models."""
        return "raw" if self.members[0].statistics is None else "standardized"

    @property
    def max_length(self) -> int:
        """Maximum tokens of a conversation."""
        return self.members[0].tokens.max_length

    def encode(self, question: Question) -> list[np.ndarray]:
        """Return the token ids of a question's conversations, in order.

        Raises:
            RefusedError: a conversation cannot be scored; the message says which, and why.
        """
        first, *others = self.members
        encoded = first.encode(question)
        for each in others:
            each.refuse_unknown(encoded)
        return encoded

    def num_cached(self, ids: np.ndarray) -> int:
        """Return how many tokens at the start of a conversation no model computes again."""
        return min(each.scorer.num_cached(ids) for each in self.members)

    def score(self, prompts: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
        """Return all conversations' raw float32 rewards by each model, ``[M, conversations]``."""
        lists = [[ids.tolist() for ids in conversations] for conversations in prompts]
        return np.stack([np.concatenate(each.scorer.score(lists)) for each in self.members])

    def join(
        self, scores: np.ndarray, encoded: Sequence[np.ndarray], *, has_reference: bool = False
    ) -> Rewards:
        """Return the answer for encoded conversations with such ``scores``, as of ``score``.

        With a reference, which is the last conversation, the answer is for the others. Each model's
        rewards are standardized, and the reference's taken off, before they are joined.
        """
        raw = scores.astype(np.float64)
        rewards = np.stack([each.scaled(row) for each, row in zip(self.members, raw, strict=True)])
        count, reference, centred = len(encoded), None, rewards - self.shifts[:, None]
        if has_reference:
            count, reference = count - 1, float(rewards[:, -1].mean())
            rewards = centred = rewards[:, :-1] - rewards[:, -1:]
        is_raw, is_one = self.scale == "raw", len(self.members) == 1
        return Rewards(
            rewards=tuple(rewards.mean(axis=0).tolist()),
            num_tokens=tuple(map(len, encoded[:count])),
            model=self.name,
            spread=None if is_one else tuple(spread_over_models(centred).tolist()),
            raw=None if is_raw else tuple(raw[:, :count].mean(axis=0).tolist()),
            reference=reference,
        )


def require_same_tokenizer(tokenizers: Sequence[tuple[str, PreTrainedTokenizerBase]]) -> None:
    """Refuse models, each with its name, that do not give the same ids to every conversation.

    Raises:
        InputError: says what differs.
    """
    (first, tokenizer), *others = tokenizers
    for name, other in others:
        if differences := tokenizer_differences(tokenizer, other):
            raise InputError(
                f"--model '{first}' and '{name}' differ in their tokenizers "
                f"({', '.join(differences)}), and models that judge together must give the same "
                "token ids; serve models of one tokenizer and chat template, such as the seeds of "
                "a sweep"
            )


def find_max_length(architecture: PretrainedConfig, model: ScoringModel) -> int:
    """Return the most tokens of a conversation: ``--max_length``, or the model's positions.

    Raises:
        InputError: ``--max_length`` exceeds the model's positions.
    """
    if model.max_length is None:
        return count_positions(architecture) or 2**31
    options = ("--max_length", "--model")
    check_positions(architecture, model.max_length, model=model.model, options=options)
    return model.max_length
