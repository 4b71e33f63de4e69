"""The language of a text, by py3langid's model, which is part of that package."""

from __future__ import annotations

import py3langid

MOST_CHARACTERS = 500
"""Characters of a text that are looked at."""

NO_LANGUAGE = "zxx"
"""ISO 639 code of what is in no language; py3langid gives it to random letters."""


def identify_language(text: str) -> str:
    """Return the ISO 639 code of the likeliest language; short texts are often mistaken."""
    beginning = text[:MOST_CHARACTERS]
    if not any(map(str.isalpha, beginning)):
        return NO_LANGUAGE
    return str(py3langid.classify(beginning)[0])
