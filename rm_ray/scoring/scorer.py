"""Rewards of conversations from a published reward model, packed as in training."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from rm_ray.batches.cached_prefixes import CachedPrefixes
from rm_ray.batches.collate import Collator, unlabelled
from rm_ray.batches.spread import spread_packed, spread_padded
from rm_ray.config.scoring import Dtype, ScoringModel
from rm_ray.config.sections.batch import Layout
from rm_ray.data.cache.group_tokens import GroupTokens, join_groups
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.evaluation.reward_statistics import STATISTICS, RewardStatistics
from rm_ray.model.attention import (
    PACKED_ATTENTION,
    choose_kernel,
    head_size,
    why_not_packed,
)
from rm_ray.model.heads import Float32Linear
from rm_ray.model.reward_model import RewardModel
from rm_ray.pretrained import WITHOUT_ADAPTER, PretrainedName, read_adapter_config
from rm_ray.scoring.prefix_cache import PrefixCache, cost_of_cached, token_bytes

logger = logging.getLogger(__name__)

Ids = Sequence[int]

CONTENTS = "a folder with config.json, weights and tokenizer"


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A reward model for inference."""

    model: RewardModel
    tokenizer: PreTrainedTokenizerBase
    collator: Collator
    tokens_per_forward: int
    """Maximum tokens per forward pass, cached ones in part (``cost_of_cached``); two conversations
    with more get a pass of their own. What passes of one call evict from each other adds to it."""
    cache: PrefixCache | None = None
    """What is kept between passes; None if each computes all its tokens."""

    @classmethod
    def load(
        cls,
        name_or_path: str,
        *,
        revision: str | None = None,
        dtype: Dtype = "auto",
        device: torch.device,
        tokens_per_forward: int,
        cache_bytes: int = 0,
    ) -> Scorer:
        """Load a folder that a run exported, or any sequence classifier with one label on the Hub.

        If its conversations can be packed, ``cache_bytes`` are used for keys and values of earlier
        passes.

        Raises:
            InputError: the model is missing or unreadable, or is not a reward model.
        """
        name = model_name(name_or_path, revision)
        architecture = load_architecture(name)
        tokenizer = load_tokenizer(name_or_path, revision=revision)
        reason = why_not_packed(architecture)
        layout: Layout = "padded" if reason else "packed"
        if reason:
            logger.info("conversations are padded instead of packed, because %s", reason)
        wanted = "auto" if dtype == "auto" else getattr(torch, dtype)
        with name.loading(CONTENTS):
            classifier, found = AutoModelForSequenceClassification.from_pretrained(
                name.place,
                revision=revision,
                trust_remote_code=False,
                dtype=wanted,
                attn_implementation="sdpa" if reason else PACKED_ATTENTION,
                output_loading_info=True,
                **WITHOUT_ADAPTER,
            )
        if missing := sorted(found["missing_keys"]):  # transformers would initialize them randomly
            raise InputError(
                f"{name.text} has no weights for {', '.join(missing[:3])}"
                f"{' and others' * (len(missing) > 3)}, so it would score at random; it is not a "
                "reward model, or its weights are incomplete"
            )
        head = _make_head_exact(classifier, name)
        model = RewardModel(classifier, layout).to(device).eval()
        collator = Collator(
            layout=layout,
            kernel=choose_kernel(device, head.weight.dtype, head_size=head_size(architecture)),
            pad_token_id=tokenizer.pad_token_id,
            device=device,
        )
        most_kept = 0 if reason else cache_bytes // token_bytes(architecture, head.weight.dtype)
        if cache_bytes:
            logger.info("the cache of prefixes has room for %s tokens", f"{most_kept:,}")
        return cls(
            model=model,
            tokenizer=tokenizer,
            collator=collator,
            tokens_per_forward=tokens_per_forward,
            cache=PrefixCache(most_kept) if most_kept else None,
        )

    def score(self, prompts: Sequence[Sequence[Ids]]) -> list[np.ndarray]:
        """Return the float32 rewards of each prompt's conversations, of which it has at least one.

        The conversations of a prompt are computed together, over one prefix, if they fit.
        """
        if not prompts:
            return []
        joined = join_groups(prompts)
        parts = [
            (prompt, slice(first, first + size))
            for prompt, size in enumerate(self._sizes(joined))
            for first in range(0, len(prompts[prompt]), size)
        ]
        groups = [prompts[prompt][part] for prompt, part in parts]
        if len(parts) > len(prompts):
            joined = join_groups(groups)
        rewards = [np.zeros(len(conversations), dtype=np.float32) for conversations in prompts]
        with torch.inference_mode():
            for members in self._passes(joined):
                joined = join_groups([groups[i] for i in members])
                by_group = np.split(self._score(joined), joined.lengths.starts[1:])
                for i, values in zip(members, by_group, strict=True):
                    prompt, part = parts[i]
                    rewards[prompt][part] = values
        return rewards

    def _score(self, groups: GroupTokens) -> np.ndarray:
        """Return the rewards of groups, in one pass: ``[R]``."""
        if self.cache is None:
            return self._forward(groups, None)
        prefixes, rewards = self.cache.begin(groups), None
        try:
            rewards = self._forward(groups, prefixes)
        finally:  # keys that are not finite would spoil all that shares them
            is_sound = rewards is not None and bool(np.isfinite(rewards).all())
            self.cache.end(groups, prefixes, keep=is_sound)
        return rewards

    def _forward(self, groups: GroupTokens, prefixes: CachedPrefixes | None) -> np.ndarray:
        ready = self.collator.arrange(groups, unlabelled(groups), prefixes)
        rewards: np.ndarray = self.model(self.collator.to_device(ready)).float().cpu().numpy()
        return rewards

    def num_cached(self, ids: np.ndarray) -> int:
        """Return how many tokens at the start of a conversation need not be computed."""
        return self.cache.count(ids) if self.cache else 0

    def _cached(self, groups: GroupTokens) -> np.ndarray:
        """Return the tokens of each group's prefix that need not be computed: ``[G]``."""
        if self.cache is None:
            return np.zeros_like(groups.lengths.prefix)
        first = [self.num_cached(groups.conversation(group, 0)) for group in range(len(groups))]
        cached: np.ndarray = np.minimum(first, groups.lengths.prefix)
        return cached

    def _costs(self, groups: GroupTokens) -> np.ndarray:
        """Return what each packed group counts for in the size of a pass: ``[G]``."""
        lengths, cached = groups.lengths, self._cached(groups)
        reading = cost_of_cached(cached, lengths.num_responses)
        costs: np.ndarray = lengths.distinct - cached + reading
        return costs

    def _sizes(self, groups: GroupTokens) -> list[int]:
        """Return how many of each prompt's conversations are computed together: all if they fit.

        Otherwise, as many as surely fit, but at least two.
        """
        lengths = groups.lengths
        longest, responses = lengths.longest, lengths.num_responses
        if self.collator.layout == "packed":
            positions = self._costs(groups)  # at most what they cost if nothing is cached
            shared, each = lengths.prefix, longest - lengths.prefix
        else:
            positions, shared, each = responses * longest, np.zeros_like(longest), longest
        most = np.maximum(2, (self.tokens_per_forward - shared) // each)
        sizes: list[int] = np.where(positions > self.tokens_per_forward, most, responses).tolist()
        return sizes

    def _passes(self, groups: GroupTokens) -> Iterator[np.ndarray]:
        """Yield the indices of the groups of each forward pass."""
        lengths = groups.lengths
        limits = {"world_size": 1, "tokens_per_micro_batch": self.tokens_per_forward}
        if self.collator.layout == "packed":
            costs = self._costs(groups)
            (passes,) = spread_packed(costs, costs, **limits)
        else:
            (passes,) = spread_padded(lengths.longest, lengths.num_responses, **limits)
        for members, _ in passes:
            yield members


def _make_head_exact(classifier: nn.Module, name: PretrainedName) -> nn.Linear:
    """Make the head compute in float32, and return it.

    Raises:
        InputError: it is not a reward model's.
    """
    head = classifier._modules.get("score")
    if not isinstance(head, nn.Linear) or head.out_features != 1 or head.bias is not None:
        raise InputError(
            f"{name.text} has no 'score' head with a single output and no bias; a "
            "reward model is a sequence classifier with one label (num_labels 1)"
        )
    exact = Float32Linear(head.in_features, 1, bias=False)
    exact.weight = head.weight
    classifier.score = exact
    return exact


def model_name(name_or_path: str, revision: str | None = None) -> PretrainedName:
    """Return the name of a reward model, as set by ``--model``."""
    return PretrainedName(name=name_or_path, option="--model", revision=revision)


def load_architecture(name: PretrainedName) -> PretrainedConfig:
    """Return a reward model's config.

    Raises:
        InputError: the model is missing, unreadable or an adapter, or does not have exactly one
            label.
    """
    try:
        with name.loading(CONTENTS):
            architecture: PretrainedConfig = AutoConfig.from_pretrained(
                name.place, revision=name.revision, trust_remote_code=False
            )
    except InputError:
        if read_adapter_config(name) is None:
            raise
        raise InputError(
            f"{name.text} is an adapter without the model that it belongs to. A run with "
            "lora.export 'merged' or 'both' exports the whole model; otherwise load the adapter "
            "with peft, call merge_and_unload(), save model and tokenizer, and name their folder"
        ) from None
    if architecture.num_labels != 1:
        raise InputError(
            f"{name.text} has {architecture.num_labels} labels; a reward model has one"
        )
    return architecture


def model_fingerprint(
    model: ScoringModel, architecture: PretrainedConfig, statistics: RewardStatistics | None = None
) -> str:
    """Hash what determines the rewards; a local folder by its files' names, sizes and mtimes.

    ``statistics`` are those by which rewards are standardized.
    """
    path = model_name(model.model).path
    version: object
    if path.is_dir():
        files = (file for file in path.iterdir() if file.name != STATISTICS)
        version = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files)
    else:
        version = [model.model, architecture._commit_hash]
    settings: list[object] = [version, model.dtype, model.max_length]
    if statistics is not None:
        settings.append(statistics.to_json())
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()
