"""A chat template that asks for today's date, made to give the same text on every day."""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache

import jinja2
from jinja2 import meta
from transformers import PreTrainedTokenizerBase

ASKED = "strftime_now"
"""The function by which a template asks; transformers and servers give it."""

_DIRECTIVES = [*"aAbBcdeDFGHIjmMpSTuUVwWxXyY", "-d", "-m", "-H", "-I", "-M", "-j"]

_INDENTED_BLOCK = re.compile(r"^[ \t]+(?={%(?!\+))")


def asks_for_date(template: str) -> bool:
    """Tell whether a template calls for today's date; one that cannot be read does not."""
    return ASKED in template and ASKED in _undeclared(template)


@lru_cache(maxsize=8)
def _undeclared(template: str) -> frozenset[str]:
    try:
        # transformers' own tag, which plain Jinja does not know
        plain = re.sub(r"{%-?\s*(?:end)?generation\s*-?%}", "", template)
        environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
        return frozenset(meta.find_undeclared_variables(environment.parse(plain)))
    except jinja2.TemplateError:
        return frozenset()


def pin_date(tokenizer: PreTrainedTokenizerBase, day: date) -> bool:
    """Write a date into the tokenizer's templates; return whether one asks for it.

    The template gets a macro of the function's name, so that it needs nobody who knows the date.
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
    """Return a template that writes the given day wherever it asked for today's."""
    if not asks_for_date(template):
        return template
    written = "".join(
        f".replace({f'%{letter}'!r}, {day.strftime(f'%{letter}')!r})" for letter in _DIRECTIVES
    )
    written += ".replace('%%', '%')"
    macro = f"{{% macro {ASKED}(format) %}}{{{{ format{written} }}}}{{% endmacro %}}"
    # a value between keeps the template's own first line break, which a block would swallow
    return f"{macro}{{{{ '' }}}}{_INDENTED_BLOCK.sub('', template)}"
