"""A published reward model -> the rewards of conversations, packed as in training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from rm_ray.batches.collate import Collator
from rm_ray.batches.spread import spread_packed, spread_padded
from rm_ray.config.scoring import Dtype
from rm_ray.config.train_config import Layout
from rm_ray.data.cache.pair_tokens import join_pairs
from rm_ray.data.tokens.tokenization import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.model.attention import (
    PACKED_ATTENTION,
    choose_kernel,
    head_size,
    why_not_packed,
)
from rm_ray.model.reward_model import Float32Linear, RewardModel

logger = logging.getLogger(__name__)

Ids = Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A reward model that only scores."""

    model: RewardModel
    tokenizer: PreTrainedTokenizerBase
    collator: Collator
    tokens_per_forward: int
    """Upper bound on the tokens of a forward pass; a conversation that is larger stands alone."""

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
        """Load a folder that a run exported, or any sequence classifier of one label on the Hub.

        Raises:
            InputError: it cannot be found, or is no reward model.
        """
        architecture = load_architecture(name_or_path, revision)
        tokenizer = load_tokenizer(name_or_path, revision=revision)
        reason = why_not_packed(architecture)
        layout: Layout = "padded" if reason else "packed"
        if reason:
            logger.info("conversations are padded instead of packed, since %s", reason)
        wanted = "auto" if dtype == "auto" else getattr(torch, dtype)
        try:
            classifier, found = AutoModelForSequenceClassification.from_pretrained(
                _place(name_or_path),
                revision=revision,
                trust_remote_code=False,
                dtype=wanted,
                attn_implementation="sdpa" if reason else PACKED_ATTENTION,
                output_loading_info=True,
            )
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
            raise _refuse(name_or_path, error) from None
        if missing := sorted(found["missing_keys"]):  # transformers would draw them at random
            raise InputError(
                f"--model '{name_or_path}' has no weights for {', '.join(missing[:3])}"
                f"{' and others' * (len(missing) > 3)}, so it would score at random; it is no "
                "reward model, or its weights are not all there"
            )
        head = classifier._modules.get("score")
        if not isinstance(head, nn.Linear) or head.out_features != 1 or head.bias is not None:
            raise InputError(
                f"--model '{name_or_path}' has no 'score' head of one number on its last token; a "
                "reward model is a sequence classifier of one label (num_labels 1)"
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
        """Return the rewards, float32, of each prompt's conversations, one at least.

        Two at a time share their common prefix; a last one without a partner is its own.
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
        """Yield which pairs are computed together."""
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


def load_architecture(name_or_path: str, revision: str | None = None) -> PretrainedConfig:
    """Return a reward model's config.

    Raises:
        InputError: it cannot be found, or has more labels than one.
    """
    try:
        architecture = AutoConfig.from_pretrained(
            _place(name_or_path), revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise _refuse(name_or_path, error) from None
    if architecture.num_labels != 1:
        raise InputError(
            f"--model '{name_or_path}' has {architecture.num_labels} labels; a reward model has one"
        )
    return architecture


def _place(name_or_path: str) -> str:
    path = Path(name_or_path).expanduser()
    return str(path) if path.is_dir() else name_or_path


def _refuse(name_or_path: str, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(
        f"--model '{name_or_path}' cannot be loaded: it must be a folder with config.json, weights "
        "and tokenizer, or a name on the Hugging Face Hub that this machine can reach (HF_TOKEN "
        f"for a private one, HF_ENDPOINT for a mirror). {reason}"
    )
