"""What a reader of the README has: pairs in two files here, and a model on the Hub.

The pairs are the built-in ones, and the model has the name, the family and none of the size of
the one on the page; it goes to the Hub that HF_ENDPOINT names.
"""

import json
import tempfile
from pathlib import Path

import torch
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, Qwen3Config

from rm_ray.data.sources.synthetic import build_tokenizer, generate_pairs

MODEL = "Qwen/Qwen3-0.6B"


def write_pairs(path: Path, split: str) -> None:
    """Write pairs as the page shows one."""
    with path.open("w") as file:
        for pair in generate_pairs(split):
            chosen, rejected = pair["chosen"], pair["rejected"]
            row = {
                "prompt": chosen[0]["content"],
                "chosen": chosen[1]["content"],
                "rejected": rejected[1]["content"],
            }
            file.write(json.dumps(row) + "\n")


def upload_model() -> None:
    """Put a small model of random weights on the Hub."""
    tokenizer = build_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    hub = HfApi()
    hub.create_repo(MODEL, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        hub.upload_folder(repo_id=MODEL, folder_path=folder)


if __name__ == "__main__":
    write_pairs(Path("pairs.jsonl"), "train")
    write_pairs(Path("held_out.jsonl"), "test")
    upload_model()
