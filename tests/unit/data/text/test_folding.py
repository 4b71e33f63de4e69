"""Texts that are the same but for typography, and numbers that are not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.data.text.folding import fold_text


def fold(text: str) -> str:
    return " ".join(fold_text(text).split())


@pytest.mark.parametrize(
    ("shown", "typed"),
    [
        ("\ufb01re Stra\u00dfe \uff21", "fire STRASSE a"),
        ("What is 5\u00b2?", "what is 5^2?"),
        ("10\u207b\u00b9\u00b2", "10^-12"),
        ("5\u00b23", "5^2 3"),
        ("x\u00b2y", "x^2 y"),
        ("2\u02e3", "2^x"),
        ("e\u1d4f\u02e3", "e^kx"),
        ("2\u207f\u207a\u00b9", "2^(n+1)"),
        ("x\u00b2\u207b\u00b9", "x^(2-1)"),
        ("5\u00bd", "5 1/2"),
        ("\u00bd5", "1/2 5"),
        ("5\u215f4", "5 1/4"),
        ("5\u2153", "5 1/3"),
        ("\u00b9\u2044\u2082", "1/2"),
        ("5\u00b9\u2044\u2082", "5 1/2"),
        ("\u00b9\u00b9\u2044\u2081\u2082", "11/12"),
        ("x\u00b2\u2044\u2083", "x^(2/3)"),
        ("log\u20828", "log_2 8"),
        ("(101)\u2082", "(101)_2"),
        ("C\u2075\u2082", "C^5_2"),
        ("5\u200b\u00bd", "5 1/2"),
        ("\U0001f1025", "1, 5"),
        ("f\u2032 and 5\u33a7", "f' and 5m/s"),
        ("1\u2460", "1 1"),
        ("\u24603+5=?", "1 3+5=?"),
        ("\u24885 apples", "1. 5 apples"),
        ("5\u3251", "5 21"),
        ("101\u2082", "101_2"),
        ("a\u2099\u208a\u2081", "a_(n+1)"),
        ("a\u2099b", "a_n b"),
        ("H\u2082O", "h2o"),
        ("30\u33a1", "30m^2"),
        ("30m\u00b2", "30m^2"),
        ("12 \u2212 7 \u2013 1", "12 - 7 - 1"),
        ("state\u2011of\u2010the", "state-of-the"),
        ("\u201cdon\u2019t\u201d \u201eno\u201c", '"don\'t" "no"'),
        ("\ufeffwh\u00ady\u200b", "why"),
        ("\u0e51.\u0e55 \u0661", "1.5 1"),
    ],
)
def test_a_text_is_compared_as_it_would_be_typed(shown: str, typed: str):
    assert fold(shown) == fold(typed)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5\u00b2", "52"),
        ("2\u02e3", "2x"),
        ("2\u207f\u207a\u00b9", "2\u207f+1"),
        ("x\u00b2\u207b\u00b9", "x\u00b2-1"),
        ("5\u00bd", "51/2"),
        ("\u00bd5", "1/25"),
        ("\u24603", "13"),
        ("\u24885", "1.5"),
        ("5\u3251", "521"),
        ("101\u2082", "1012"),
        ("log\u20828", "log28"),
        ("2\u20623", "23"),
        ("(101)\u2082", "(101)2"),
        ("\u00b9\u00b9\u2044\u2081\u2082", "1 1/12"),
        ("x\u2083\u00b2", "x32"),
        ("a\u2099\u208a\u2081", "a\u2099+1"),
        ("\u0e51.\u0e55", "\u0e51\u0e55"),
    ],
)
def test_numbers_that_read_otherwise_differ(one: str, other: str):
    assert fold(one) != fold(other)


ALPHABET = (
    "a1B^_ \n\u00b2\u207a\u207f\u2082\u2099\u00bd\u2460\u215f\u2044\u2212"
    "\ufb01\u1e9e\u0130\u03c2\u33a1\u0e51"
)


@given(st.text(st.sampled_from(ALPHABET), max_size=12))
def test_folding_a_text_twice_changes_nothing(text: str):
    assert fold(fold(text)) == fold(text)
