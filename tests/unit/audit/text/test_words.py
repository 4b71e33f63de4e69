"""Words, and hashes of words and n-grams."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.audit.text.words import hash_ngrams, hash_words, split_words


def test_words_are_folded_and_lose_their_punctuation():
    assert split_words("Don't SHOUT, please: it's 42!") == [
        *("don", "t", "shout", "please", "it", "s", "42")
    ]
    assert split_words("Straße ﬁne") == ["strasse", "fine"]


def test_letters_of_scripts_without_spaces_are_words():
    assert split_words("日本 is 日本") == ["日", "本", "is", "日", "本"]
    assert split_words("Привет, мир") == ["привет", "мир"]


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
