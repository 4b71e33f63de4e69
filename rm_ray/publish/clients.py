"""Scoring as client code would: with only the exported folder and transformers.

A standalone program, independent of this package: ``python -P clients.py FOLDER`` reads JSON from
standard input and writes JSON to standard output.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

BATCH = 8


def main() -> int:
    """Score ``{"ids": [[...]], "conversations": [[...]]}``; return the exit status."""
    folder, asked = sys.argv[1], json.load(sys.stdin)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    scoring = pipeline("text-classification", model=model, tokenizer=tokenizer, batch_size=BATCH)
    ids = asked["ids"]
    texts = [_text(tokenizer, each) for each in ids]
    with torch.inference_mode():
        answer = {
            "alone": [_rewards(model, tokenizer, [each])[0] for each in ids],
            "padded batch": [
                reward
                for first in range(0, len(ids), BATCH)
                for reward in _rewards(model, tokenizer, ids[first : first + BATCH])
            ],
            "pipeline": [None if t is None else scoring(t)[0]["score"] for t in texts],
            "conversations": [
                tokenizer.apply_chat_template(messages, return_dict=False)
                for messages in asked["conversations"]
            ],
        }
    json.dump(answer, sys.stdout)
    return 0


def _rewards(model: Any, tokenizer: Any, ids: list[list[int]]) -> list[float]:
    batch = tokenizer.pad([{"input_ids": each} for each in ids], return_tensors="pt")
    rewards: list[float] = model(**batch).logits[:, 0].float().tolist()
    return rewards


def _text(tokenizer: Any, ids: list[int]) -> str | None:
    """Return a text that tokenizes to exactly these ids; None if there is none."""
    for start in (0, 1):  # the tokenizer may add the first token itself
        text: str = tokenizer.decode(ids[start:], clean_up_tokenization_spaces=False)
        if tokenizer(text)["input_ids"] == ids:
            return text
    return None


if __name__ == "__main__":
    sys.exit(main())
