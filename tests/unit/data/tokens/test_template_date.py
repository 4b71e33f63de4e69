from datetime import date, datetime
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rm_ray.data.tokens.template_date import asks_for_date, pin, pin_date
from rm_ray.data.tokens.tokenizer import load_tokenizer, tokenizer_fingerprint

ASKS = """{{- bos_token or '' }}
{%- if strftime_now is defined %}{% set day = strftime_now("%d %b %Y") %}
{%- else %}{% set day = "26 Jul 2024" %}{% endif %}
Today is {{ day }} ({{ strftime_now('%Y-%m-%d, %A') }}).
{% macro year() %}{{ strftime_now('%Y') }}{% endmacro %}{{ year() }}
{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"""
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
LEAP_DAY = date(2024, 2, 29)


@pytest.mark.parametrize("before", ["", "\n", "\n\n", "  ", "  {% if true %}x{% endif %}\n", " a"])
def test_a_pinned_template_writes_what_it_wrote_on_that_day(before: str):
    tokenizer = load_tokenizer("builtin", chat_template=before + ASKS)
    today = datetime.now().date()
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False)

    assert pin_date(tokenizer, today)

    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == expected


def test_the_exported_template_writes_that_day_for_every_client(tmp_path: Path):
    tokenizer = load_tokenizer("builtin", chat_template=ASKS)
    pin_date(tokenizer, LEAP_DAY)
    tokenizer.save_pretrained(tmp_path)

    text = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(MESSAGES, tokenize=False)

    assert "Today is 29 Feb 2024 (2024-02-29, Thursday).\n2024" in text


def test_another_day_changes_the_fingerprint_only_if_the_template_asks_for_the_date():
    def prints(template: str | None) -> set[str]:
        found = set()
        for day in (LEAP_DAY, date(2026, 11, 28)):
            tokenizer = load_tokenizer("builtin", chat_template=template)
            assert pin_date(tokenizer, day) is (template is not None)
            found.add(tokenizer_fingerprint(tokenizer))
        return found

    assert len(prints(ASKS)) == 2
    assert len(prints(None)) == 1


def test_a_template_that_only_mentions_the_function_is_left_alone():
    template = "{# no strftime_now #}{% for m in messages %}{{ m.content }}{% endfor %}"

    assert not asks_for_date(template)
    assert pin(template, LEAP_DAY) == template
    assert pin(pin(ASKS, LEAP_DAY), date(2026, 1, 1)) == pin(ASKS, LEAP_DAY)
