"""The language of a text."""

import pytest

from rm_ray.audit.text.language import NO_LANGUAGE, identify_language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Why is the sky blue, and not green, when I look at it in the evening?", "en"),
        ("Warum ist der Himmel blau und nicht grün, wenn ich ihn am Abend ansehe?", "de"),
        ("なぜ空は青いのですか、夕方に見ると緑ではないのですか。", "ja"),
        ("Почему небо синее, а не зелёное, когда я смотрю на него вечером?", "ru"),
        ("1 + 1 = 2", NO_LANGUAGE),
        ("", NO_LANGUAGE),
    ],
)
def test_languages_of_whole_sentences_are_found(text: str, language: str):
    assert identify_language(text) == language
