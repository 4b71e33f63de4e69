"""Pinning the date of chat templates that ask for today's, so that their text never changes."""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache

import jinja2
from jinja2 import meta
from transformers import PreTrainedTokenizerBase

DATE_FUNCTION = "strftime_now"
"""Function that a template calls for the date; transformers and servers provide it."""

_DIRECTIVES = [*"aAbBcdeDFGHIjmMpSTuUVwWxXyY", "-d", "-m", "-H", "-I", "-M", "-j"]

_INDENTED_BLOCK = re.compile(r"^[ \t]+(?={%(?!\+))")


def asks_for_date(template: str) -> bool:
    """Return whether a template calls for today's date; False if it cannot be parsed."""
    return DATE_FUNCTION in template and DATE_FUNCTION in _undeclared(template)


@lru_cache(maxsize=8)
def _undeclared(template: str) -> frozenset[str]:
    try:
        # transformers' own tag, unknown to plain Jinja
        plain = re.sub(r"{%-?\s*(?:end)?generation\s*-?%}", "", template)
        environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
        return frozenset(meta.find_undeclared_variables(environment.parse(plain)))
    except jinja2.TemplateError:
        return frozenset()


def pin_date(tokenizer: PreTrainedTokenizerBase, day: date) -> bool:
    """Pin the date in the tokenizer's templates; return whether any of them asks for it.

    A macro of the same name replaces the function, so clients need not provide the date.
    """
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        pinned = {name: pin(text, day) for name, text in templates.items()}
        tokenizer.chat_template = pinned
        return any(pinned[name] != templates[name] for name in templates)
    if templates is None or not asks_for_date(templates):
        return False
    tokenizer.chat_template = pin(templates, day)
    return True


def pin(template: str, day: date) -> str:
    """Return a template that writes the given day in place of today's."""
    if not asks_for_date(template):
        return template
    written = "".join(
        f".replace({f'%{letter}'!r}, {day.strftime(f'%{letter}')!r})" for letter in _DIRECTIVES
    )
    written += ".replace('%%', '%')"
    macro = f"{{% macro {DATE_FUNCTION}(format) %}}{{{{ format{written} }}}}{{% endmacro %}}"
    # the empty value keeps the template's first line break, which Jinja drops after a block
    return f"{macro}{{{{ '' }}}}{_INDENTED_BLOCK.sub('', template)}"
