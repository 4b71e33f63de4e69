"""A base model's files -> its classifier, with all its values or with none."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from rm_ray.errors import InputError, first_line
from rm_ray.model.lean.outline import Sources, compare, outline_alike, outline_from_files
from rm_ray.model.lean.stored_weight import find_stored_weights
from rm_ray.model.weight_files import fetch_weight_files, list_some, read_headers
from rm_ray.pretrained import WITHOUT_ADAPTER, PretrainedName


@dataclass(frozen=True, kw_only=True)
class LoadedBase:
    """A base model before it gets its head."""

    classifier: PreTrainedModel
    unused: Collection[str] = ()
    """Names of weights in the files that the classifier does not have."""
    sources: Sources = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BaseLoader:
    """How one rank loads a base model."""

    name: PretrainedName
    architecture: PretrainedConfig
    dtype: torch.dtype
    attention: str
    loads: bool
    """Whether this rank loads what cannot be read in parts; the others receive it."""
    by_parts: bool
    """Whether weights may be read in parts; an adapter is merged into whole ones."""

    def load(self, *, seed: int, lean: bool) -> LoadedBase:
        """Return the model; if ``lean``, without values that are read later or come from others.

        Raises:
            InputError: it cannot be loaded.
        """
        try:
            torch.manual_seed(seed)
            base = self._outline() if lean else None
            if base is None:
                torch.manual_seed(seed)
                base = self._load_whole()
        except (OSError, ValueError, ImportError) as error:
            raise InputError(f"{self.name.text}: {first_line(error)}") from None
        return base

    def _load_whole(self) -> LoadedBase:
        """Return the model with all values on the CPU."""
        if not self.name.has_weights:
            return LoadedBase(classifier=classifier_of(self.architecture, self.attention))
        classifier, found = AutoModelForSequenceClassification.from_pretrained(
            self.name.place,
            config=self.architecture,
            revision=self.name.revision,
            dtype=self.dtype,
            attn_implementation=self.attention,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # a head of several labels, which is never kept
            output_loading_info=True,
            **WITHOUT_ADAPTER,
        )
        return LoadedBase(classifier=classifier, unused=self._unused(found))

    def _outline(self) -> LoadedBase | None:
        """Return the model without values; None if this rank must load all of them."""
        architecture, dtype, attention = self.architecture, self.dtype, self.attention
        if type(architecture) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            return None  # loading says why not
        unused: Collection[str] = ()
        if self.name.has_weights:
            try:
                files = fetch_weight_files(self.name)
            except InputError:
                return None
            if self.by_parts and (stored := find_stored_weights(files)):
                outlined = outline_from_files(
                    architecture, stored, dtype=dtype, attention=attention
                )
                if outlined is not None:
                    classifier, sources, found = outlined
                    classifier.config.name_or_path = self.name.place
                    unused = self._unused(found)
                    return LoadedBase(classifier=classifier, unused=unused, sources=sources)
            if not self.loads:
                _, found = compare(architecture, read_headers(files))
                unused = self._unused(found)
        if self.loads:
            return None
        alike = outline_alike(architecture, dtype=dtype, attention=attention)
        return None if alike is None else LoadedBase(classifier=alike, unused=unused)

    def _unused(self, found: dict[str, Any]) -> Collection[str]:
        """Return the unused weights of transformers' report, which misses none but the head's.

        Raises:
            InputError: a weight was not loaded, so training would start from random values.
        """
        mismatched = {weight for weight, *_ in found["mismatched_keys"]}
        missing = mismatched | set(found["missing_keys"])
        if gaps := {weight for weight in missing if not weight.startswith("score.")}:
            raise InputError(
                f"{self.name.text} has no matching weights for {list_some(gaps)}, so training "
                "would start from random values"
            )
        unused: Collection[str] = found["unexpected_keys"]
        return unused


def classifier_of(architecture: PretrainedConfig, attention: str) -> PreTrainedModel:
    """Return a classifier with random weights in float32.

    Raises:
        ValueError, ImportError: transformers cannot build it with this attention.
    """
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
        architecture, dtype=torch.float32, attn_implementation=attention
    )
    return model
