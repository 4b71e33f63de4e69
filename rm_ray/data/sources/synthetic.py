"""The built-in data: generated preference pairs and a tokenizer for them, with no download.

There are five tasks, each with a rule for the better answer: colours, opposites, counting, manners,
and greeting in the requested language. Random remarks are appended to both answers, so length does
not reveal which is better.
"""

from __future__ import annotations

import functools
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPLITS = {"train": 6_000, "test": 500}
"""Pairs per split."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

NAMES = ("Ana", "Ben", "Chen", "Dina", "Emil", "Fatou", "Goro", "Hana", "Ivan", "Jo", "Kofi", "Lu")
_REMARKS = (
    "I hope that helps.",
    "That is all I know.",
    "Ask me again if you like.",
    "This is a common question.",
    "Let me know what you think about it.",
    "There is more to say, of course.",
)
_COLOURS = {
    "grass": "green", "snow": "white", "coal": "black", "a lemon": "yellow", "blood": "red",
    "the sea": "blue", "chocolate": "brown", "a plum": "purple", "a carrot": "orange",
    "a flamingo": "pink", "milk": "white", "a frog": "green", "the night": "black",
    "a tomato": "red", "the sky": "blue", "honey": "yellow",
}  # fmt: skip
_OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "light": "dark", "early": "late",
    "open": "closed", "rich": "poor", "young": "old",
}  # fmt: skip
_KIND_ANSWERS = (
    "Of course, I am glad to help you.",
    "Good question, let us look at it together.",
    "Thank you for asking, here is my advice.",
    "Certainly, we can solve this step by step.",
)
_RUDE_ANSWERS = (
    "What a stupid thing to ask me now.",
    "Leave me alone and do all of it yourself.",
    "I really do not care about your problem.",
    "Only a fool would need my help with that.",
)
_ERRANDS = ("taxes", "garden", "essay", "bicycle", "printer", "homework", "kitchen", "letter")
_GREETINGS = {
    "French": ("Bonjour, comment allez-vous ?", "Salut, bonne journée à vous."),
    "Spanish": ("Hola, ¿cómo estás hoy?", "Buenos días, mucho gusto."),
    "German": ("Guten Tag, wie geht es Ihnen?", "Hallo, schön Sie zu sehen."),
    "Italian": ("Buongiorno, come sta oggi?", "Ciao, piacere di vederti."),
}


def _colour(rng: random.Random) -> tuple[str, str, str]:
    thing, colour = rng.choice(list(_COLOURS.items()))
    wrong = rng.choice(sorted(set(_COLOURS.values()) - {colour}))
    subject = thing[0].upper() + thing[1:]
    return f"What colour is {thing}?", f"{subject} is {colour}.", f"{subject} is {wrong}."


def _opposite(rng: random.Random) -> tuple[str, str, str]:
    pairs = list(_OPPOSITES.items()) + [(b, a) for a, b in _OPPOSITES.items()]
    word, opposite = rng.choice(pairs)
    wrong = rng.choice(sorted({b for _, b in pairs} - {opposite}))
    answer = "The opposite of {} is {}."
    question = f"What is the opposite of {word}?"
    return question, answer.format(word, opposite), answer.format(word, wrong)


def _count(rng: random.Random) -> tuple[str, str, str]:
    first, length = rng.randint(1, 12), rng.randint(4, 6)
    numbers = list(range(first, first + length))
    wrong = numbers.copy()
    while wrong == numbers:
        rng.shuffle(wrong)
    spoken, misspoken = (", ".join(map(str, n)) + "." for n in (numbers, wrong))
    return f"Count from {first} to {numbers[-1]}.", spoken, misspoken


def _manners(rng: random.Random) -> tuple[str, str, str]:
    question = f"Can you help me with my {rng.choice(_ERRANDS)}?"
    return question, rng.choice(_KIND_ANSWERS), rng.choice(_RUDE_ANSWERS)


def _language(rng: random.Random) -> tuple[str, str, str]:
    asked, other = rng.sample(sorted(_GREETINGS), 2)
    question = f"Please greet me in {asked}."
    return question, rng.choice(_GREETINGS[asked]), rng.choice(_GREETINGS[other])


_TASKS: dict[str, Callable[[random.Random], tuple[str, str, str]]] = {
    "colours": _colour,
    "opposites": _opposite,
    "counting": _count,
    "manners": _manners,
    "languages": _language,
}


def generate_pairs(split: str, count: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield raw rows of a split; a longer ``count`` begins with the same rows.

    No prompt is in both splits: its checksum assigns it to one.
    """
    rng = random.Random(f"rm_ray {split}")
    kinds = list(_TASKS)
    for i in range(SPLITS[split] if count is None else count):
        kind = kinds[i % len(kinds)]
        while True:
            question, better, worse = _TASKS[kind](rng)
            prompt = f"{rng.choice(NAMES)} asks: {question}"
            if _split_of(prompt) == split:
                break
        sides = [
            [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": _with_remarks(answer, rng)},
            ]
            for answer in (better, worse)
        ]
        yield {"chosen": sides[0], "rejected": sides[1], "source": f"builtin/{kind}"}


def _split_of(prompt: str) -> str:
    return "test" if zlib.crc32(prompt.encode()) % 8 == 0 else "train"


def _with_remarks(answer: str, rng: random.Random) -> str:
    return " ".join([answer, *rng.sample(_REMARKS, rng.randint(0, 2))])


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a new instance of the built-in tokenizer, with its chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(train_tokenizer()),
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
    )


@functools.cache
def train_tokenizer() -> str:
    """Train a byte-level BPE tokenizer on the training split, and return its JSON; deterministic.

    It takes a quarter of a second, once for each process.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1_024,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (
        message["content"]
        for row in generate_pairs("train", 2_000)
        for message in (*row["chosen"], row["rejected"][-1])
    )
    backend.train_from_iterator(texts, trainer)
    return backend.to_str()
