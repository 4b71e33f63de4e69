"""Choosing the chat template of a tokenizer."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rm_ray.errors import InputError

logger = logging.getLogger(__name__)

BYTE_ORDER_MARK = "\ufeff"
"""Byte-order mark that some editors put at the start of a file."""

DEFAULT = "default"
"""Name in transformers of the template used by default if there are several."""


def choose_template(tokenizer: PreTrainedTokenizerBase, wanted: str | None, *, name: str) -> str:
    """Return the chat template of a tokenizer.

    ``wanted`` is a template, the path of one, or the name of one of the tokenizer's; None means
    the tokenizer's only or default template.

    Raises:
        InputError: there is none, or several without the wanted or default one.
    """
    own = tokenizer.chat_template
    if wanted is not None and not (isinstance(own, dict) and wanted in own):
        return _choose(_read(wanted), None, what=f"data.chat_template '{wanted[:200]}'")
    if own is None:
        beside = Path(name).expanduser() / "chat_template.json"
        found = f" (its chat_template.json is not used by default; set it to '{beside}')"
        raise InputError(
            f"model.tokenizer '{name}' has no chat template, so messages cannot be converted "
            "to text; set data.chat_template to a Jinja template or to the path of one"
            f"{found if beside.exists() else ''}"
        )
    return _choose(own, wanted, what=f"model.tokenizer '{name}'")


def _choose(found: Any, wanted: str | None, *, what: str) -> str:
    """Return the template, or of several the wanted or default one."""
    if isinstance(found, str):
        return found.removeprefix(BYTE_ORDER_MARK)
    named = found if isinstance(found, dict) else _by_name(found, what)
    choice = wanted or DEFAULT
    if choice not in named:
        raise InputError(
            f"{what} has several chat templates but none called '{DEFAULT}': "
            f"{', '.join(sorted(named))}; set data.chat_template to one of these names, or to the "
            "text or path of a template"
        )
    logger.info("chat template: '%s' of %d (%s)", choice, len(named), ", ".join(sorted(named)))
    return str(named[choice]).removeprefix(BYTE_ORDER_MARK)


def _by_name(found: Any, what: str) -> Mapping[str, str]:
    """Return a list of templates, in the form that files have, by name."""
    try:
        return {str(one["name"]): str(one["template"]) for one in found}
    except (TypeError, KeyError):
        raise InputError(
            f"{what} must be a chat template as text, or a list of them with 'name' and "
            f"'template', got {str(found)[:100]}"
        ) from None


def _read(template: str) -> Any:
    """Return the template text or file of a setting; of a JSON file, its ``chat_template``."""
    text = template if "{" in template else _read_file(template)
    try:
        held = json.loads(text)
    except ValueError:
        return text
    return held["chat_template"] if isinstance(held, dict) and "chat_template" in held else text


def _read_file(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"data.chat_template '{path[:200]}' is neither a Jinja template nor a readable "
            f"text file: {error}"
        ) from None
