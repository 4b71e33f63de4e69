"""The longest sequence that a model supports, from its config."""

from __future__ import annotations

from transformers import PretrainedConfig

from rm_ray.errors import InputError


def count_positions(architecture: PretrainedConfig) -> int | None:
    """Return the most tokens of a sequence; None if the config sets no limit.

    Learned position tables end at the limit. Rotary embeddings do not, but beyond it they use
    angles that the model never saw. Scaled ones reach the original limit times their factor.
    """
    settings = architecture.get_text_config().to_dict()
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
    limit: int | None = next((settings[name] for name in names if settings.get(name)), None)
    if limit is None or settings.get("alibi"):
        return None
    rope = settings.get("rope_parameters") or {}
    kinds = rope.values() if all(isinstance(one, dict) for one in rope.values()) else [rope]
    reach = [
        int((one.get("factor") or 1) * (one.get("original_max_position_embeddings") or limit))
        for one in kinds
        if one.get("rope_type", "default") != "default"
    ]
    return max([limit, *reach])


def check_positions(
    architecture: PretrainedConfig,
    max_length: int,
    *,
    model: str,
    options: tuple[str, str] = ("data.max_length", "model.name_or_path"),
) -> None:
    """Check that a conversation of ``max_length`` tokens fits the model.

    ``options`` are what the length and the model are set with.

    Raises:
        InputError: ``max_length`` exceeds the model's positions.
    """
    limit, (length, name) = count_positions(architecture), options
    if limit is not None and max_length > limit:
        raise InputError(
            f"{length} is {max_length}, but {name} '{model}' has {limit} positions. Lower "
            f"{length}, or choose a model with a longer context"
        )
