"""Checks of a tokenizer's ids: gaps, and ids without an embedding in the model."""

from __future__ import annotations

import logging

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rm_ray.errors import InputError

logger = logging.getLogger(__name__)


def add_pad_token(tokenizer: PreTrainedTokenizerBase, content: str) -> None:
    """Add a pad token with an unused id.

    Tokenizers take their number of tokens as the next id, which is in use if their ids have gaps.

    Raises:
        InputError: the next id is in use.
    """
    taken = {number: token for token, number in tokenizer.get_vocab().items()}
    tokenizer.add_special_tokens({"pad_token": content})
    if (other := taken.get(tokenizer.pad_token_id)) not in (None, content):
        raise InputError(
            f"model.tokenizer '{tokenizer.name_or_path}' has gaps in its ids: it has {len(taken)} "
            f"tokens with ids up to {max(taken)}, so a new pad token would get id "
            f"{tokenizer.pad_token_id}, which {other!r} uses; set pad_token in "
            "tokenizer_config.json to one of its own tokens that no conversation contains, or fill "
            "the gaps"
        )


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, architecture: PretrainedConfig, *, is_trained: bool
) -> None:
    """Check that the model has an embedding for every id or can get one.

    Embeddings are added for added tokens. If the model ``is_trained`` and lacks embeddings for
    tokens of the base vocabulary, it was trained with another tokenizer.

    Raises:
        InputError: it was, or ids exceed the embeddings that would be added.
    """
    rows: int = architecture.get_text_config().vocab_size
    ids, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    token, largest = max(ids.items(), key=lambda item: item[1])
    what = f"model.tokenizer '{tokenizer.name_or_path}'"
    if largest >= max(rows, len(tokenizer)):
        raise InputError(
            f"{what} has gaps in its ids: it has {len(tokenizer)} tokens with ids up to {largest} "
            f"({token!r}), but the model has embeddings for {rows}; choose the model's own "
            "tokenizer"
        )
    beyond = [name for name, number in ids.items() if number >= rows]
    if is_trained and (foreign := [name for name in beyond if name not in added]):
        raise InputError(
            f"{what} is not the model's: {len(foreign)} of its tokens have ids from {rows} on, "
            f"but the model has no embeddings for them (such as {foreign[0]!r}); set "
            "model.tokenizer to the tokenizer that the model was trained with"
        )
    if is_trained and (new := [name for name in beyond if name != tokenizer.pad_token]):
        logger.info(
            "%d tokens of the tokenizer are new to the model; their embeddings start near the mean "
            "of the others: %s",
            len(new),
            ", ".join(sorted(new)[:4]) + " ..." * (len(new) > 4),
        )
