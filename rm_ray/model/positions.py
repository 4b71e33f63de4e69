"""How long a sequence a model can take, by its config."""

from __future__ import annotations

from transformers import PretrainedConfig

from rm_ray.errors import InputError


def count_positions(architecture: PretrainedConfig) -> int | None:
    """Return the most tokens of a sequence; None where the config sets no limit.

    Tables of learned positions end there. Rotary embeddings go on, to angles that the model never
    saw; a scaling of them by a factor reaches that many times what it was made for.
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


def check_positions(architecture: PretrainedConfig, max_length: int, *, model: str) -> None:
    """See that the longest conversation that is let through has positions for all its tokens.

    Raises:
        InputError: it may have more tokens than the model has positions.
    """
    limit = count_positions(architecture)
    if limit is not None and max_length > limit:
        raise InputError(
            f"data.max_length is {max_length}, but model.name_or_path '{model}' has {limit} "
            f"positions; set data.max_length to {limit} or less, or choose a model of longer "
            "context"
        )
