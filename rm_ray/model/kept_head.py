"""The head that a base model's files already have: found by name and shape, kept or refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Size, Tensor

from rm_ray.config.sections.model import Head, ModelConfig
from rm_ray.errors import InputError
from rm_ray.pretrained import base_model

LANGUAGE_HEADS = ("lm_head.", "embed_out.")
"""Prefixes of heads that predict tokens; a reward model does not use them."""

PLAIN = (
    "score",  # transformers, and OpenRLHF's default
    "value_head",  # OpenRLHF's --value_head_prefix, Janus
    "v_head",  # DeepSpeed-Chat, InternLM2
    "v_head.summary",  # TRL, LLaMA-Factory
    "rm_head",  # NeMo-Aligner, VideoAlign
    "reward_head",
    "regression_head",  # UltraRM, Eurus-RM
)
"""Names of modules that reward models use for one linear layer on the last hidden state."""

_HEAD_WORDS = re.compile(
    r"(^|_)(heads?|score|value|reward|regression|classifier|rm|critic|gating|normalizer)(_|$)"
)
"""What a root module is called that turns hidden states into rewards, or scales them."""

_NEW = "set model.head to 'new' to train its backbone with a new head"


@dataclass(frozen=True, kw_only=True)
class KeptHead:
    """The weights of a linear head with one output, by their names in the files."""

    weight: str
    """``[1, hidden]``."""
    bias: str | None = None
    """``[1]``; a bias other than zero is refused, so this has no effect on rewards."""


def find_head_weights(
    weights: Mapping[str, Tensor], unused: Collection[str], *, hidden_size: int
) -> dict[str, Size]:
    """Return the shapes of all weights in the files that belong to a head, by name.

    ``unused`` are those that the sequence classifier does not have. Among them, a weight belongs
    to a head if its root module is named like one, or if it is a root module's ``[1, hidden]``.
    """
    unused = set(unused)
    return {
        name: weight.shape
        for name, weight in weights.items()
        if name.startswith("score.")
        or (name in unused and _is_head_like(name, weight.shape, hidden_size))
    }


def _is_head_like(name: str, shape: Size, hidden_size: int) -> bool:
    root, *inner = name.removeprefix("model.").split(".")
    if name.startswith(LANGUAGE_HEADS):
        return False
    return bool(_HEAD_WORDS.search(root)) or (len(inner) == 1 and shape == (1, hidden_size))


def choose_head(
    choice: Head,
    found: Mapping[str, Size],
    *,
    hidden_size: int,
    architectures: Sequence[str],
    model: str,
) -> KeptHead | None:
    """Return the head to keep among those ``found``, or None to draw a new one.

    ``architectures`` are the classes in the model's config.json; ``model`` names it in errors.

    Raises:
        InputError: ``choice`` is 'keep' but there is no head; or it is not 'new', and how the
            head's weights make one reward is unclear.
    """
    if choice == "new":
        return None
    if not found:
        if choice == "keep":
            raise InputError(
                f"model.head is 'keep', but {model} has no head: none of its weights is a "
                f"{', '.join(f'{name}.weight' for name in PLAIN)}. Name a reward model, or {_NEW}"
            )
        return None
    listed = ", ".join(f"{name} {list(shape)}" for name, shape in sorted(found.items())[:6])
    more = f" and {len(found) - 6} more" if len(found) > 6 else ""
    if obstacle := _why_unclear(found, hidden_size, architectures):
        raise InputError(f"{model} has a head ({listed}{more}) that {obstacle}; {_NEW}")
    name = next(name for name in found if name.endswith(".weight"))
    bias = f"{name.removesuffix('weight')}bias"
    return KeptHead(weight=name, bias=bias if bias in found else None)


def _why_unclear(
    found: Mapping[str, Size], hidden_size: int, architectures: Sequence[str]
) -> str | None:
    """Return why the weights are not one linear head on the last token; None if they are."""
    plain = [name for name in PLAIN if f"{name}.weight" in found]
    if len(plain) > 1:
        return f"is one of several: {' and '.join(plain)}"
    if not plain or not found.keys() <= {f"{plain[0]}.weight", f"{plain[0]}.bias"}:
        return (
            "is not a single linear layer of a known name (if it is one, on the last token's final "
            "hidden state, call it score.weight)"
        )
    for architecture in architectures:
        if architecture.endswith("ForTokenClassification"):
            return f"scores every token (architectures in its config.json: {architecture})"
    shape = found[f"{plain[0]}.weight"]
    if len(shape) != 2 or shape[1] != hidden_size:
        return f"does not fit the backbone, whose hidden size is {hidden_size}"
    if shape[0] != 1:
        return f"has {shape[0]} outputs, and nothing says which one is the reward"
    return None


def refuse_bias(name: str, bias: Tensor, *, model: str) -> None:
    """Refuse a head's bias unless it is zero.

    The sequence classifiers of transformers have no bias in their head, so an export without it
    would score every conversation lower than the kept head does.

    Raises:
        InputError: the bias is not zero.
    """
    if bias.float().any():
        values = ", ".join(f"{value:g}" for value in bias.float().flatten().tolist()[:3])
        raise InputError(
            f"{model} has a head with a bias ({name} is {values}), which an exported reward model "
            "has no place for. Subtracting it from every reward changes no comparison: set it to "
            f"zero in the model's files to keep the head, or {_NEW}"
        )


def require_head_files(config: ModelConfig) -> None:
    """Check that a model whose head is to be kept has weights.

    Raises:
        InputError: ``model.head`` is 'keep', but the weights are random.
    """
    model = base_model(config)
    if config.head == "keep" and not model.has_weights:
        raise InputError(
            f"model.head is 'keep', but {model.text} has random weights. Name a reward model with "
            "weights, or set model.head to 'new'"
        )
