"""The rewards that rewardbench's command line writes, of pairs and of single conversations."""

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

import rewardbench.rewardbench
from transformers import BatchEncoding


def stay_on_cpu() -> None:
    """Let the command line, which moves every batch to "cuda", run without a GPU."""
    to = BatchEncoding.to
    BatchEncoding.to = lambda self, device, **options: to(
        self, "cpu" if device == "cuda" else device, **options
    )


def run(rows: list[dict[str, Any]], dtype: str, *options: str) -> list[dict[str, Any]]:
    """Run the command line on rows; return the lines that it writes."""
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sys.argv = [
        "rewardbench", "--model=model", "--dataset=rows.jsonl", "--load_json", "--not_quantized",
        f"--torch_dtype={dtype}", "--max_length=4096", *options,
    ]  # fmt: skip
    rewardbench.rewardbench.main()
    lines = Path("results/model_outputs.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def main(folder: Path) -> None:
    os.chdir(folder)  # the names of its files begin with the model's
    stay_on_cpu()
    conversations = json.loads(Path("conversations.json").read_text())
    dtype = json.loads(Path("model/config.json").read_text())["torch_dtype"]
    singles = [{"messages": messages} for messages in conversations]
    scores = [line["results"] for line in run(singles, dtype, "--prioritize_scoring")]
    # of a pair it takes the turns to be the user's and the assistant's by turns
    places = [i for i in range(0, len(conversations), 2) if conversations[i][0]["role"] == "user"]
    pairs = [{"chosen": conversations[i], "rejected": conversations[i + 1]} for i in places]
    ranked: list[float | None] = [None] * len(conversations)
    for i, line in zip(places, run(pairs, dtype), strict=True):
        ranked[i : i + 2] = line["scores_chosen"], line["scores_rejected"]
    result = {
        "version": f"rewardbench {importlib.metadata.version('rewardbench')}",
        "rewards": {"conversations": scores, "pairs": ranked},
    }
    Path("result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
