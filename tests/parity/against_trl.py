"""Train on real preference pairs beside TRL's RewardTrainer, and compare.

Same initial weights, pairs, order, batches, optimizer and schedule. Both models are then scored by
transformers alone. Prints a table in Markdown; the pairs are those of ``../shared/data``.

    python tests/parity/against_trl.py [--epochs 2] [--max_length 1024] [--batch 26]
"""

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from datasets import Dataset  # noqa: E402
from tables import SHARED_DATA  # noqa: E402
from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: E402
from trl import RewardConfig, RewardTrainer  # noqa: E402

from rm_ray.cluster.ray_cluster import ray_cluster  # noqa: E402
from rm_ray.config.recipe import parse_config  # noqa: E402
from rm_ray.config.sections.model import ModelConfig  # noqa: E402
from rm_ray.config.train_config import TrainConfig  # noqa: E402
from rm_ray.data.cache.token_table import open_table  # noqa: E402
from rm_ray.data.tokens.tokenizer import load_tokenizer  # noqa: E402
from rm_ray.driver.drive import drive  # noqa: E402
from rm_ray.logs import log_to_stdout  # noqa: E402
from rm_ray.model.build import build_reward_model  # noqa: E402
from rm_ray.model.export import export_model  # noqa: E402
from rm_ray.preflight.resolve import resolve_run  # noqa: E402
from rm_ray.storage import Storage  # noqa: E402

MODEL = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 384, "vocab_size": 4098,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}  # fmt: skip


def main() -> None:
    """Train both, score both, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=26)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    options = parser.parse_args()
    log_to_stdout()
    with tempfile.TemporaryDirectory(prefix="rm_ray-trl-") as name:
        compare(options, Path(name))


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Train ours, then TRL's, from the same weights in the same order."""
    (folder / "model.json").write_text(json.dumps(MODEL))
    config = parse_config(settings(options, folder))
    started = time.monotonic()
    ours = drive(config)
    ours_seconds = time.monotonic() - started
    with ray_cluster(config.cluster):
        resolved = resolve_run(config, Storage.open(str(folder)), config.cluster)
    table = open_table(resolved.train.parts)
    rows = read_rows("train.jsonl.gz")
    order = [table.row[pair] for e in range(options.epochs) for pair in resolved.plan.order(e)]
    started = time.monotonic()
    losses = train_with_trl(options, folder, config, [rows[row] for row in order])
    trl_seconds = time.monotonic() - started
    history = (folder / "ours" / "history.jsonl").read_text().splitlines()
    our_losses = [
        record["metrics"]["train/rm/loss"]
        for record in map(json.loads, history)
        if record["kind"] == "train"
    ]
    sets = {"train": [rows[row] for row in table.row], "held out": read_rows("eval.jsonl")}
    print(f"\n{commit()}; {platform.processor() or platform.machine()}, torch {torch.__version__}")
    print(f"{len(table)} pairs, {len(our_losses)} steps of {options.batch}; "
          f"refused: {resolved.refused}")  # fmt: skip
    print(f"wall: ours {ours_seconds:.0f} s (with Ray and tokenisation), TRL {trl_seconds:.0f} s")
    print("\n| | ours | TRL | difference |\n|---|---|---|---|")
    tail = max(1, len(our_losses) // 10)
    row("training loss, mean of all steps", mean(our_losses), mean(losses))
    row("training loss, last tenth of the steps", mean(our_losses[-tail:]), mean(losses[-tail:]))
    worst = max(abs(a - b) for a, b in zip(our_losses, losses, strict=True))
    print(f"| largest difference of a step's loss | | | {worst:.2e} |")
    for name, pairs in sets.items():
        mine = score(folder / "ours" / "export", pairs, options.max_length)
        other = score(folder / "trl-final", pairs, options.max_length)
        row(f"{name}: loss of the final model", mine["loss"], other["loss"])
        row(f"{name}: accuracy", mine["accuracy"], other["accuracy"])
        low, high = wilson(other["accuracy"], other["pairs"])
        inside = "inside" if low <= mine["accuracy"] <= high else "OUTSIDE"
        print(f"| {name}: 95% interval of TRL's, {other['pairs']} pairs | {inside} "
              f"| {low:.4f} to {high:.4f} | |")  # fmt: skip
    print(f"\nours, as it reports: {ours['metrics']['eval/rm/accuracy']:.4f} held out")


def settings(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return our run's settings."""
    return {
        "run": {"name": "ours", "storage_path": str(folder), "seed": 5},
        "data": {
            "train": [str(SHARED_DATA / "train.jsonl.gz")],
            "eval": [str(SHARED_DATA / "eval.jsonl")],
            "max_length": options.max_length,
        },
        "model": {
            "name_or_path": str(folder / "model.json"),
            "tokenizer": str(SHARED_DATA / "tokenizer_bpe4k"),
        },
        "batch": {"global_batch_size": options.batch, "tokens_per_micro_batch": 16_384},
        "optimizer": {"learning_rate": options.learning_rate, "epochs": options.epochs},
        "cluster": {"num_workers": 1, "cpus_per_worker": 2},
    }


def train_with_trl(
    options: argparse.Namespace, folder: Path, config: TrainConfig, rows: list[dict[str, Any]]
) -> list[float]:
    """Train TRL's RewardTrainer on the rows in their order; return each step's loss."""
    tokenizer = load_tokenizer(str(SHARED_DATA / "tokenizer_bpe4k"))
    model = build_reward_model(
        ModelConfig(name_or_path=str(folder / "model.json")), tokenizer, seed=config.run.seed
    )
    export_model(model, model.state_dict(), tokenizer, folder / "start", dtype=torch.float32)
    torch.set_num_threads(2)
    trainer = RewardTrainer(
        model=str(folder / "start"),
        args=RewardConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=options.batch // 2,
            gradient_accumulation_steps=2,
            num_train_epochs=1,  # the rows hold every epoch in our order
            train_sampling_strategy="sequential",
            learning_rate=options.learning_rate,
            lr_scheduler_type="linear",
            weight_decay=0.0,
            max_grad_norm=1.0,
            max_length=options.max_length,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            model_init_kwargs={"dtype": "float32"},
        ),
        train_dataset=Dataset.from_list([{s: r[s] for s in ("chosen", "rejected")} for r in rows]),
    )
    trainer.train()
    trainer.save_model(str(folder / "trl-final"))
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def read_rows(name: str) -> list[dict[str, Any]]:
    """Return all rows of a file of the shared pairs."""
    from rm_ray.data.sources.fragments import Fragment
    from rm_ray.data.sources.readers import read_rows as read

    fragment = Fragment(kind="jsonl", location=str(SHARED_DATA / name))
    return [json.loads(text) for _, text in read(fragment)]


@torch.no_grad()
def score(folder: Path, pairs: list[dict[str, Any]], max_length: int) -> dict[str, Any]:
    """Score pairs with transformers alone, one conversation at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    margins = []
    for pair in pairs:
        sides = [
            tokenizer.apply_chat_template(pair[s])["input_ids"] for s in ("chosen", "rejected")
        ]
        if max(map(len, sides)) <= max_length:
            chosen, rejected = (model(torch.tensor([ids])).logits[0, 0] for ids in sides)
            margins.append(chosen - rejected)
    found = torch.stack(margins).double()
    accuracy = ((found > 0).double() + (found == 0).double() / 2).mean().item()
    return {"loss": -F.logsigmoid(found).mean().item(), "accuracy": accuracy, "pairs": len(found)}


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95% Wilson score interval of a share."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    half /= 1 + z * z / count
    return centre - half, centre + half


def row(name: str, ours: float, theirs: float) -> None:
    """Print a row of the table."""
    print(f"| {name} | {ours:.5f} | {theirs:.5f} | {ours / theirs - 1:+.3%} |")


def mean(values: list[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)


def commit() -> str:
    """Return the commit that is measured."""
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
