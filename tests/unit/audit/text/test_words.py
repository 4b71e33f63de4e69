"""Words, and hashes of words and n-grams."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.audit.text.words import hash_ngrams, hash_words, plain_text, split_words


def test_words_are_folded_and_lose_their_punctuation():
    assert split_words("Don't SHOUT, please: it's 42!") == [
        *("don", "t", "shout", "please", "it", "s", "42")
    ]
    assert split_words("Straße ﬁne") == ["strasse", "fine"]


def test_letters_of_scripts_without_spaces_are_words():
    assert split_words("日本 is 日本") == ["日", "本", "is", "日", "本"]
    assert split_words("Привет, мир") == ["привет", "мир"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 12+7?", "what  is 12 + 7"),
        ("Is **Python** the best?", "Is Python the best"),
        ("“Don't panic”!", "don\u2019t panic"),
        ("It costs 3.500.", "It costs 3.500"),
        ("Stop! Wait: why?!", "stop wait why"),
        ("¿Por qué…?", "por qué"),
        ("天空为什么是蓝色的。", "天空为什么是蓝色的?"),
        ("1. Why? 2. How?", "1. Why 2. How"),
        ("Is it 5?", "Is it 5"),
        ("Wow!\u2026 ok", "Wow, ok"),
        ("\u9898\u76ee\uff1aA\u548cB", "\u9898\u76ee: A\u548cB"),
        ("\u4f60\u597d\uff015\u4e2a", "\u4f60\u597d! 5\u4e2a"),
        ("\u4ef7\u683c5.5\u5143", "\u4ef7\u683c5.5 \u5143"),
        ("gcd(48,180)", "gcd(48, 180)"),
        ('What does "Catch 22" mean?', "What does \u00abCatch 22\u00bb mean"),
        ("\u0627\u0644\u0633\u0645\u0627\u0621\u061f", "\u0627\u0644\u0633\u0645\u0627\u0621"),
        ("Sort [3,1,2] in Python.", "Sort [3, 1, 2] in Python"),
        ("Is (0,0) on it?", "Is (0, 0) on it"),
        ("Jan 1,2020", "Jan 1, 2020"),
        ("3:5", "3 : 5"),
        ("**What is 12 + 7?** Why", "What is 12 + 7? Why"),
        ("x\u00b2 + y\u00b9\u2070", "x^2+y^10"),
        ("2\u207f", "2^n"),
        ("What is **12** + 7?", "What is 12 + 7?"),
        ("**2. Why is the sky blue?**", "2. Why is the sky blue?"),
        ('**"Why?"** he', "Why he"),
        ("if x!=y", "if x != y"),
        ("say 'yes, please', he", "say yes please he"),
        ("\u4ed6\u8bf4'hello world'\u5417", "\u4ed6\u8bf4 hello world \u5417"),
        (
            "\u092f\u0939 \u0915\u094d\u092f\u093e \u0939\u0948\u0964 \u0915",
            "\u092f\u0939 \u0915\u094d\u092f\u093e \u0939\u0948 \u0915",
        ),
        ("\u5929\u4e3a\u4ec0\u4e48**\u84dd**\uff1f", "\u5929\u4e3a\u4ec0\u4e48\u84dd"),
        ("\u4f60\u597d\uff01\u5929\uff1a\u84dd", "\u4f60\u597d\u5929\u84dd"),
        ("**What is *the* capital of Peru?**", "What is the capital of Peru"),
        ('*Why is the sky "blue now"* and', "why is the sky blue now and"),
        ("*(Why)* he", "(Why) he"),
        ("**Q:** What", "Q: What"),
        ("the dogs\u2019 'best of all' toy", "the dogs' best of all toy"),
        ("What is 12 \u2212 7?", "What is 12 - 7?"),
        ("10\u207b\u00b3", "10^-3"),
        ("Part 1:\n\n5 apples?", "Part 1: 5 apples?"),
    ],
)
def test_marks_of_sentences_and_spaces_around_symbols_do_not_count(one: str, other: str):
    assert plain_text(one) == plain_text(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 12 + 7?", "What is 12 - 7?"),
        ("5! - 3", "5 - 3"),
        ("(5!)", "(5)"),
        ("Compute $\\frac{10!}{8!}$.", "Compute $\\frac{10}{8}$."),
        ("10! mod 7", "10 mod 7"),
        ("n! / 2", "n / 2"),
        ("(n + 1)! / 2", "(n + 1) / 2"),
        ("f'(2)", "f(2)"),
        ("f''(2)", "f'(2)"),
        ("f\u2019(2)", "f(2)"),
        ("y'' + y = 0", "y + y = 0"),
        ("x != y", "x = y"),
        ("5! \u00d7 3", "5 \u00d7 3"),
        ("2n! / 3", "2n / 3"),
        ("5! < 6", "5 < 6"),
        ("Is it true that 0! = 1?", "Is it true that 0 != 1?"),
        ("5! != 3", "5 != 3"),
        ("Is 5! \u2264 100?", "Is 5 \u2264 100?"),
        ("5!! = 15", "5! = 15"),
        ("What is 5!?", "What is 5?"),
        ("ab! / 2", "ab / 2"),
        ("3 : 5", "3 5"),
        ("Solve y''' - y = 0", "Solve y' - y = 0"),
        ("Solve 2y'' + y = 0", "Solve 2y' + y = 0"),
        ("Where is f'' > 0?", "Where is f' > 0?"),
        ("$f''$", "$f'$"),
        ("y'' \u2212 y = 0", "y' \u2212 y = 0"),
        ("2f'(x)", "2f(x)"),
        ("\u03b8'(0)", "\u03b8(0)"),
        ("f_1'(0)", "f_1(0)"),
        ("(ab)' + c", "(ab) + c"),
        ('a 5" board', "a 5 board"),
        ("2\u207f", "2n"),
        ("10\u207b\u00b3", "10 - 3"),
        ("5\u00b2", "52"),
        ("5 *6* 7", "5 6 7"),
        ("SELECT *, count(*)", "SELECT count()"),
        ("3,500", "3.500"),
        ("What is det [1 2; 3 4]?", "What is det [1; 2 3 4]?"),
        ("What is '5' + '3'?", "What is 5 + 3?"),
        ("print('x')", "print(x)"),
        ("What does the ? operator do?", "What does the . operator do?"),
        ("What does cd .. do?", "What does cd do?"),
        ("the regex .* matches", "the regex * matches"),
        ("What does ?? mean", "What does ?. mean"),
        ("cd ..", "cd"),
        ("Find n! for n=4", "Find n for n=4"),
        ("\u8ba1\u7b97n!\u7684\u4f4d\u6570", "\u8ba1\u7b97n\u7684\u4f4d\u6570"),
        ("is it == 'true'?", "is it == true?"),
        ("echo `date`", "echo date"),
        ("obj?.prop", "obj.prop"),
        ("the regex ^ab?$ matches", "the regex ^ab$ matches"),
        ("the regex .*?", "the regex .*"),
        ("\\alpha!}", "\\alpha}"),
        ("log.5", "log 5"),
        ("\u6982\u7387\u662f.5", "\u6982\u7387\u662f5"),
        ("n!=120", "n\u2260120"),
        ("*5* a", "5 a"),
        ("\u0926\u093f\u0928", "\u0926\u0940\u0928"),
        ("\u0e51.\u0e55", "\u0e51\u0e55"),
        ("\u0e51:\u0e55", "\u0e51\u0e55"),
        ("2\u02e3", "2x"),
        ("0.5", "0:5"),
        (".5", "5"),
        ("version 3.5", "version 3 5"),
        ("python3.11", "python3 11"),
        ("C#", "C"),
        ("2 * (3 + 4)", "2 * 3 + 4"),
        ("2 * 3 * 4", "2 3 4"),
        ("a*b*c", "abc"),
        ("snake_case", "snake case"),
    ],
)
def test_symbols_and_marks_within_numbers_count(one: str, other: str):
    assert plain_text(one) != plain_text(other)


@pytest.mark.parametrize("operator", "-+*/^=<>%|&\u00d7\u00f7\u00b7\u2264\u2265\u2260")
def test_a_factorial_before_an_operator_counts_after_a_word_too(operator: str):
    assert plain_text(f"ab! {operator} 2") != plain_text(f"ab {operator} 2")


@pytest.mark.parametrize(
    "mark", "\u3001\u3002\uff0c\uff1a\uff01\uff1f\u300a\u300b\u300c\u300d\u300e\u300f"
)
def test_marks_of_chinese_do_not_count(mark: str):
    assert plain_text(f"\u65e5\u672c{mark}\u5929") == plain_text("\u65e5\u672c\u5929")


@pytest.mark.parametrize("mark", "\u060c\u061b\u061f\u06d4")
def test_marks_of_arabic_do_not_count(mark: str):
    asked = "\u0644\u0645\u0627\u0630\u0627{} \u0644\u0648\u0646"
    assert plain_text(asked.format(mark)) == plain_text(asked.format(""))


def test_vowel_signs_are_parts_of_words():
    assert split_words("\u0926\u093f\u0928 \u0939\u0948?") == ["\u0926\u093f\u0928", "\u0939\u0948"]
    assert split_words("\u0e3f5 \u17d4") == ["5"]  # baht, and a full stop of Khmer


@given(
    st.text(
        st.sampled_from(
            "ab1_ \n.,:!*'\"-+()#\u2260\u00bd\u2460\u2082\u0130\u0e3f\u0e34\u093f"
            "\u00b2\u00e9\u65e5\u3002\ufb01"
        ),
        max_size=30,
    )
)
def test_plain_texts_have_the_words_of_the_texts(text: str):
    assert split_words(plain_text(text)) == split_words(text)


def test_marks_that_nothing_ends_are_kept_however_many():
    assert plain_text("*a " * 100_000).count("*") == 100_000
    quoted = ("\u65e5'a" * 33 + " ") * 300  # minutes, if each quote were followed to its end
    assert plain_text(quoted).count("a") == 33 * 300


def test_many_spaces_are_one():
    assert plain_text(f"5{' ' * 200_000}!{' ' * 200_000}= 4") == plain_text("5 ! = 4")


def test_hashes_are_the_same_in_every_process():
    assert hash_words(["why"]).tolist() == [
        int.from_bytes(bytes.fromhex("6ed53f31e57e930c"), "little")
    ]


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 6))
def test_ngrams_are_equal_where_their_words_are(words: list[str], n: int):
    hashes = hash_ngrams(hash_words(words), n)
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    assert len(hashes) == len(grams)
    assert len(set(hashes.tolist())) == len(set(grams))
    by_gram = dict(zip(grams, hashes.tolist(), strict=True))
    assert [by_gram[gram] for gram in grams] == hashes.tolist()


def test_ngrams_of_different_lengths_differ():
    same = hash_words(["a"] * 3)
    assert not np.isin(hash_ngrams(same, 2), hash_ngrams(same, 3)).any()
