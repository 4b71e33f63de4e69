"""The rewards that transformers alone gives, by the model itself and by its pipeline."""

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

BATCH_SIZE = 8


@torch.no_grad()
def main(folder: Path) -> None:
    conversations = json.loads((folder / "conversations.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForSequenceClassification.from_pretrained(
        folder / "model", torch_dtype="auto"
    ).eval()
    ids = [
        tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        for messages in conversations
    ]

    def score(part: list[list[int]]) -> list[float]:
        batch = tokenizer.pad({"input_ids": part}, return_tensors="pt")
        return model(**batch).logits[:, 0].float().tolist()

    def in_batches(size: int) -> list[float]:
        return [r for i in range(0, len(ids), size) for r in score(ids[i : i + size])]

    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
    ways = {
        "model, one by one": in_batches(1),
        f"model, padded batches of {BATCH_SIZE}": in_batches(BATCH_SIZE),
        "pipeline, one by one": [found["score"] for found in classify(texts)],
        f"pipeline, padded batches of {BATCH_SIZE}": [
            found["score"] for found in classify(texts, batch_size=BATCH_SIZE)
        ],
    }
    result = {"version": f"transformers {transformers.__version__}", "rewards": ways}
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
