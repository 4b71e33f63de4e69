"""A reward server as trainers bring one: FastAPI, transformers, padded batches of 8.

It does what OpenRLHF's ``openrlhf/cli/serve_rm.py`` does, on the CPU: one request at a time, its
texts in batches of ``--batch_size``, padded to the longest, each prompt computed again for each
response.

    python tests/benchmarks/plain_reward_server.py FOLDER PORT [--batch-size 8] [--threads 2]
"""

from __future__ import annotations

import argparse

import torch
import uvicorn
from fastapi import FastAPI, Request
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def build(folder: str, batch_size: int) -> FastAPI:
    """Return the application."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    app = FastAPI()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/get_reward")
    async def get_reward(request: Request) -> dict[str, list[float]]:
        queries = (await request.json())["query"]
        rewards: list[float] = []
        with torch.inference_mode():
            for first in range(0, len(queries), batch_size):
                inputs = tokenizer(
                    queries[first : first + batch_size],
                    padding=True,
                    add_special_tokens=False,
                    return_tensors="pt",
                )
                rewards += model(**inputs).logits[:, 0].tolist()
        return {"rewards": rewards, "scores": rewards}

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("port", type=int)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    uvicorn.run(build(options.folder, options.batch_size), port=options.port, log_level="warning")
