import functools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from rm_ray.data.rows.pairs import parse_pair
from rm_ray.data.sources.synthetic import (
    SPLITS,
    build_tokenizer,
    generate_pairs,
    train_tokenizer,
)

Row = dict[str, Any]

EACH_SPLIT = pytest.mark.parametrize("split", list(SPLITS))


def responses(row: Row) -> tuple[str, str]:
    return row["chosen"][-1]["content"], row["rejected"][-1]["content"]


@functools.cache
def rows_of(split: str) -> list[Row]:
    return list(generate_pairs(split))


def prompts(split: str) -> set[str]:
    return {row["chosen"][0]["content"] for row in rows_of(split)}


@EACH_SPLIT
def test_the_pairs_are_the_same_every_time(split: str):
    assert list(generate_pairs(split)) == list(generate_pairs(split))


@EACH_SPLIT
def test_a_longer_count_begins_with_the_same_rows(split: str):
    assert list(generate_pairs(split, 40))[:25] == list(generate_pairs(split, 25))
    assert list(generate_pairs(split))[:25] == list(generate_pairs(split, 25))


@EACH_SPLIT
def test_a_split_has_its_stated_number_of_rows(split: str):
    assert len(rows_of(split)) == SPLITS[split]


def test_the_splits_differ_and_share_no_prompt():
    train, test = prompts("train"), prompts("test")

    assert not train & test
    assert len(train) > 500
    assert len(test) > 50


@EACH_SPLIT
def test_every_row_keeps_the_contract(split: str):
    for row in rows_of(split):
        pair = parse_pair(row)
        assert (pair.chosen, pair.rejected) == (row["chosen"], row["rejected"])
        assert pair.source == row["source"]


@EACH_SPLIT
def test_all_tasks_are_equally_frequent(split: str):
    kinds = Counter(row["source"] for row in rows_of(split))

    assert len(kinds) == 5
    assert set(kinds.values()) == {SPLITS[split] // 5}


@EACH_SPLIT
def test_the_better_answer_to_a_count_is_in_order(split: str):
    rows = [row for row in rows_of(split) if row["source"] == "builtin/counting"]

    def numbers(response: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", response)]

    for row in rows:
        chosen, rejected = map(numbers, responses(row))
        first, last = numbers(row["chosen"][0]["content"])
        assert chosen == list(range(first, last + 1))
        assert rejected != chosen
        assert sorted(rejected) == chosen


def test_the_same_question_is_never_answered_both_ways():
    answers: dict[str, tuple[set[str], set[str]]] = {}
    for row in rows_of("train"):
        if row["source"] in ("builtin/colours", "builtin/opposites"):
            question = row["chosen"][0]["content"].split("asks: ")[1]
            better, worse = answers.setdefault(question, (set(), set()))
            chosen, rejected = responses(row)
            better.add(chosen.split(".")[0])
            worse.add(rejected.split(".")[0])

    assert len(answers) > 20
    for better, worse in answers.values():
        assert len(better) == 1
        assert not better & worse


LENGTHS: dict[str, Callable[[str], int]] = {
    "characters": len,
    "words": lambda text: len(text.split()),
}


@EACH_SPLIT
@pytest.mark.parametrize("unit", [*LENGTHS, "tokens"])
def test_the_longer_response_is_chosen_half_of_the_time(
    split: str, unit: str, tokenizer: PreTrainedTokenizerFast
):
    wins = []
    for row in rows_of(split):
        chosen, rejected = (length_of(text, unit, tokenizer) for text in responses(row))
        wins.append((chosen > rejected) + 0.5 * (chosen == rejected))

    assert sum(wins) / len(wins) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("unit", [*LENGTHS, "tokens"])
def test_the_best_guess_from_the_difference_of_lengths_fails_on_held_out_pairs(
    unit: str, tokenizer: PreTrainedTokenizerFast
):
    def differences(split: str) -> list[int]:
        lengths = [
            [length_of(text, unit, tokenizer) for text in responses(row)] for row in rows_of(split)
        ]
        return [chosen - rejected for chosen, rejected in lengths]

    wins = Counter(differences("train"))

    def guess(difference: int) -> float:
        """Return the share of training pairs, in either order, that this difference wins."""
        won, lost = wins[difference], wins[-difference]
        return 0.5 if won == lost else float(won > lost)

    guesses = [guess(difference) for difference in differences("test")]
    assert sum(guesses) / len(guesses) < 0.55


def length_of(text: str, unit: str, tokenizer: PreTrainedTokenizerFast) -> int:
    return len(tokenizer(text)["input_ids"]) if unit == "tokens" else LENGTHS[unit](text)


def test_the_tokenizer_is_the_same_every_time(tokenizer: PreTrainedTokenizerFast):
    first = build_tokenizer()
    trained_again = train_tokenizer.__wrapped__()
    assert trained_again == train_tokenizer() == Tokenizer.from_str(trained_again).to_str()
    first.add_tokens(["<|more|>"])
    first, second = build_tokenizer(), build_tokenizer()

    assert "<|more|>" not in first.get_vocab()
    assert first.get_vocab() == second.get_vocab()
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert first.chat_template == second.chat_template
    assert first.get_vocab() == tokenizer.get_vocab()


def test_every_text_round_trips_through_the_tokenizer():
    tokenizer = build_tokenizer()
    text = "Grass is green. 好 é 😀\n\tx  y"

    ids = tokenizer(text)["input_ids"]

    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_the_template_writes_roles_and_ends_each_answer_with_the_end_token():
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
    ]

    tokenizer = build_tokenizer()

    start = "<|system|>\nBe kind.\n<|user|>\nWhy?\n<|assistant|>\n"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == f"{start}So.<|end|>"
    assert start == tokenizer.apply_chat_template(
        messages[:-1], tokenize=False, add_generation_prompt=True
    )


def test_the_special_tokens_are_single_and_distinct():
    tokenizer = build_tokenizer()
    special = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]

    ids = [tokenizer(token)["input_ids"] for token in special]

    assert [len(one) for one in ids] == [1] * len(special)
    assert len({one[0] for one in ids}) == len(special)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<|pad|>")
