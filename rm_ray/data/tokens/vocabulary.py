"""The ids of a tokenizer: holes between them, and those that a model has no embedding for."""

from __future__ import annotations

import logging

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rm_ray.errors import InputError

logger = logging.getLogger(__name__)


def add_pad_token(tokenizer: PreTrainedTokenizerBase, content: str) -> None:
    """Add a pad token with an id that no other token has.

    A tokenizer counts its tokens to find the next id. Where ids are left out between them, that one
    may be taken.

    Raises:
        InputError: it is.
    """
    taken = {number: token for token, number in tokenizer.get_vocab().items()}
    tokenizer.add_special_tokens({"pad_token": content})
    if (other := taken.get(tokenizer.pad_token_id)) not in (None, content):
        raise InputError(
            f"model.tokenizer '{tokenizer.name_or_path}' leaves out ids: it has {len(taken)} "
            f"tokens with ids up to {max(taken)}, so a pad token that is added would get id "
            f"{tokenizer.pad_token_id}, which is that of {other!r}; name one of its own tokens "
            "that no conversation holds as pad_token in tokenizer_config.json, or fill the ids "
            "that are left out"
        )


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, architecture: PretrainedConfig, *, is_trained: bool
) -> None:
    """See that the model has an embedding for every id, or can get one.

    Rows for tokens that were added to a tokenizer are made; where a model ``is_trained``, one that
    lacks rows for the tokenizer's own words was trained with another tokenizer.

    Raises:
        InputError: it was, or ids lie beyond the rows that are made.
    """
    rows: int = architecture.get_text_config().vocab_size
    ids, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    token, largest = max(ids.items(), key=lambda item: item[1])
    what = f"model.tokenizer '{tokenizer.name_or_path}'"
    if largest >= max(rows, len(tokenizer)):
        raise InputError(
            f"{what} leaves out ids: it has {len(tokenizer)} tokens with ids up to {largest} "
            f"({token!r}), and the model has embeddings for {rows}; choose the model's own "
            "tokenizer"
        )
    beyond = [name for name, number in ids.items() if number >= rows]
    if is_trained and (foreign := [name for name in beyond if name not in added]):
        raise InputError(
            f"{what} is not the model's: {len(foreign)} of its words have ids from {rows} on, "
            f"which the model has no embeddings for ({foreign[0]!r} and the like); set "
            "model.tokenizer to the tokenizer that it was trained with"
        )
    if is_trained and (new := [name for name in beyond if name != tokenizer.pad_token]):
        logger.info(
            "%d tokens of the tokenizer are new to the model, and get embeddings like the mean of "
            "the others: %s",
            len(new),
            ", ".join(sorted(new)[:4]) + " ..." * (len(new) > 4),
        )
