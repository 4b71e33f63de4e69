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

from rm_ray.batches.collate import Collator
from rm_ray.batches.spread import spread_packed, spread_padded
from rm_ray.config.scoring import Dtype, ScoringModel
from rm_ray.config.sections.batch import Layout
from rm_ray.data.cache.pair_tokens import join_pairs
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.model.attention import (
    PACKED_ATTENTION,
    choose_kernel,
    head_size,
    why_not_packed,
)
from rm_ray.model.heads import Float32Linear
from rm_ray.model.reward_model import RewardModel
from rm_ray.pretrained import PretrainedName

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
    """Maximum tokens per forward pass; a larger pair gets a pass of its own."""

    @classmethod
    def load(
        cls,
        name_or_path: str,
        *,
        revision: str | None = None,
        dtype: Dtype = "auto",
        device: torch.device,
        tokens_per_forward: int,
    ) -> Scorer:
        """Load a folder that a run exported, or any sequence classifier with one label on the Hub.

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
            )
        if missing := sorted(found["missing_keys"]):  # transformers would initialize them randomly
            raise InputError(
                f"{name.text} has no weights for {', '.join(missing[:3])}"
                f"{' and others' * (len(missing) > 3)}, so it would score at random; it is not a "
                "reward model, or its weights are incomplete"
            )
        head = classifier._modules.get("score")
        if not isinstance(head, nn.Linear) or head.out_features != 1 or head.bias is not None:
            raise InputError(
                f"{name.text} has no 'score' head with a single output and no bias; a "
                "reward model is a sequence classifier with one label (num_labels 1)"
            )
        exact = Float32Linear(head.in_features, 1, bias=False)
        exact.weight = head.weight
        classifier.score = exact
        model = RewardModel(classifier, layout).to(device).eval()
        collator = Collator(
            layout=layout,
            kernel=choose_kernel(device, head.weight.dtype, head_size=head_size(architecture)),
            pad_token_id=tokenizer.pad_token_id,
            device=device,
        )
        return cls(
            model=model,
            tokenizer=tokenizer,
            collator=collator,
            tokens_per_forward=tokens_per_forward,
        )

    def score(self, prompts: Sequence[Sequence[Ids]]) -> list[np.ndarray]:
        """Return the float32 rewards of each prompt's conversations, of which it has at least one.

        Conversations are computed in pairs that share a prefix; an odd last one is paired with
        itself.
        """
        places = [
            (prompt, first, min(first + 1, len(conversations) - 1))
            for prompt, conversations in enumerate(prompts)
            for first in range(0, len(conversations), 2)
        ]
        pairs = [(prompts[prompt][a], prompts[prompt][b]) for prompt, a, b in places]
        rewards = [np.zeros(len(conversations), dtype=np.float32) for conversations in prompts]
        with torch.inference_mode():
            for group in self._groups(pairs):
                joined = join_pairs([pairs[i] for i in group])
                nothing = np.zeros(len(group))
                ready = self.collator.arrange(joined, margins=nothing, weights=nothing)
                scored = self.model(self.collator.to_device(ready)).float().cpu().numpy()
                for i, first, second in zip(group, *scored.reshape(2, -1), strict=True):
                    prompt, a, b = places[i]
                    rewards[prompt][[a, b]] = first, second
        return rewards

    def _groups(self, pairs: Sequence[tuple[Ids, Ids]]) -> Iterator[np.ndarray]:
        """Yield the indices of the pairs of each forward pass."""
        if not pairs:
            return
        lengths = join_pairs(pairs).lengths
        limits = {"world_size": 1, "tokens_per_micro_batch": self.tokens_per_forward}
        if self.collator.layout == "packed":
            (groups,) = spread_packed(lengths.distinct, lengths.distinct, **limits)
        else:
            (groups,) = spread_padded(lengths.longest, **limits)
        for members, _ in groups:
            yield members


def model_name(name_or_path: str, revision: str | None = None) -> PretrainedName:
    """Return the name of a reward model, as set by ``--model``."""
    return PretrainedName(name=name_or_path, option="--model", revision=revision)


def load_architecture(name: PretrainedName) -> PretrainedConfig:
    """Return a reward model's config.

    Raises:
        InputError: the model is missing or unreadable, or does not have exactly one label.
    """
    with name.loading(CONTENTS):
        architecture: PretrainedConfig = AutoConfig.from_pretrained(
            name.place, revision=name.revision, trust_remote_code=False
        )
    if architecture.num_labels != 1:
        raise InputError(
            f"{name.text} has {architecture.num_labels} labels; a reward model has one"
        )
    return architecture


def model_fingerprint(model: ScoringModel, architecture: PretrainedConfig) -> str:
    """Hash what determines the rewards; a local folder by its files' names, sizes and mtimes."""
    path = model_name(model.model).path
    version: object
    if path.is_dir():
        version = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in path.iterdir())
    else:
        version = [model.model, architecture._commit_hash]
    settings = [version, model.dtype, model.max_length]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()
