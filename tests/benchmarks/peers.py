"""Speed beside other trainers: TRL's RewardTrainer and open-instruct's loop.

All train the same model from the same weights on the same pairs, so many to an optimizer step,
with AdamW, in float32 on the CPU, and take turns of one step each, in processes of their own. The
steps' losses say whether they really do the same.

    python tests/benchmarks/peers.py [--pairs real] [--runs 5] [--pairs-per-step 16]

TRL's best setting is the fastest of a sweep over its batch size and its grouping by length,
without recomputing activations, which its defaults do. Grouping changes which pairs a step holds;
here it is over the pairs of all turns, dealt so that the turns are alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from machine import ROOT, describe_machine
from report import Spread, goal, limit, markdown_table, print_report

sys.path[:0] = [str(ROOT)]
os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed, where it is imported, says so on stdout

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from core import (  # noqa: E402
    LIMIT_GOALS,
    Setting,
    add_model_options,
    add_turn_options,
    describe_model,
    limit_of,
    pairs_per_second,
    ratio,
    train,
    write_model,
)
from pair_set import TOKENIZERS, PairSet, deal_alike, read_pairs  # noqa: E402
from transformers import AutoModelForSequenceClassification  # noqa: E402
from turns import Figures, Turn, resident_bytes, take_turns  # noqa: E402

from rm_ray.batches.padding import pad_pairs  # noqa: E402
from rm_ray.config.sections.batch import Layout  # noqa: E402
from rm_ray.config.sections.model import ModelConfig  # noqa: E402
from rm_ray.data.tokens.tokenizer import load_tokenizer  # noqa: E402
from rm_ray.model.build import build_reward_model  # noqa: E402
from rm_ray.model.export import export_model  # noqa: E402

LEARNING_RATE, MAX_GRAD_NORM = 1e-5, 1.0
OVER_TRL_DEFAULT, OVER_BEST_PADDED = 4.0, 1.6
"""How many times the pairs per second of others packed pairs are to reach, on the real pairs."""
SAME_LOSS = 1e-4
"""Most that the loss of a step may differ between trainers of the same pairs."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """How another trainer trains: right-padded batches of so many pairs, accumulated to a step."""

    title: str
    model: str
    pairs: str
    pairs_per_step: int
    batch: int
    recomputes: bool = False
    """Whether activations are recomputed in the backward pass."""
    grouped: bool = False
    """Whether batches hold pairs of similar length."""


def train_with_trl(peer: Peer, turn: Turn) -> None:
    """Take turns of one step of TRL's trainer; what is not named here is as TRL has it."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    pairs = PairSet.load(Path(peer.pairs))
    order = np.arange(len(pairs.pairs))
    if peer.grouped:
        order = deal_alike(
            pairs.lengths.longest,
            steps=len(order) // peer.pairs_per_step,
            block=peer.batch,
            rng=np.random.default_rng(0),
        )
    tokens = pairs.gather(order)
    rows = [
        {"chosen_ids": tokens.chosen(i).tolist(), "rejected_ids": tokens.rejected(i).tolist()}
        for i in range(len(tokens))
    ]

    class Turns(TrainerCallback):  # type: ignore[misc]
        """Ends a turn with each step's log, which is the last thing a step does."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            if "loss" not in logs:
                return
            turn.over(
                seconds=time.perf_counter() - self.started,
                pairs=peer.pairs_per_step,
                loss=logs["loss"],
                peak_memory=resident_bytes("VmHWM"),
            )
            self.started = time.perf_counter()

    with tempfile.TemporaryDirectory(prefix="rm_ray-trl-") as folder:
        trainer = RewardTrainer(
            model=peer.model,
            args=RewardConfig(
                output_dir=folder,
                per_device_train_batch_size=peer.batch,
                gradient_accumulation_steps=peer.pairs_per_step // peer.batch,
                gradient_checkpointing=peer.recomputes,
                num_train_epochs=1,
                train_sampling_strategy="sequential",
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                weight_decay=0.0,
                max_grad_norm=MAX_GRAD_NORM,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                bf16=False,
                disable_tqdm=True,
                model_init_kwargs={"dtype": "float32"},
            ),
            train_dataset=Dataset.from_list(rows),
            callbacks=[Turns()],
        )
        trainer.train()


def train_like_origin(peer: Peer, turn: Turn) -> None:
    """Take turns of one step of the loop of open-instruct's ``reward_modeling.py``.

    Its batches are padded, chosen and rejected together, to the longest of both.
    """
    pairs = PairSet.load(Path(peer.pairs))
    model = AutoModelForSequenceClassification.from_pretrained(
        peer.model, num_labels=1, dtype=torch.float32
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    zeros = np.zeros(peer.batch)
    started = time.perf_counter()
    for first in range(0, len(pairs.pairs), peer.pairs_per_step):
        loss_of_step = 0.0
        for begin in range(first, first + peer.pairs_per_step, peer.batch):
            batch = pad_pairs(
                pairs.gather(np.arange(begin, begin + peer.batch)),
                margins=zeros,
                weights=zeros,
                pad_token_id=pairs.vocabulary.pad_token_id,
            )
            output = model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            )
            chosen, rejected = output.logits.squeeze(-1).chunk(2)
            loss = -F.logsigmoid(chosen - rejected).mean() * peer.batch / peer.pairs_per_step
            torch.autograd.backward(loss)
            loss_of_step += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        turn.over(
            seconds=time.perf_counter() - started,
            pairs=peer.pairs_per_step,
            loss=loss_of_step,
            peak_memory=resident_bytes("VmHWM"),
        )
        started = time.perf_counter()


def main() -> None:
    """Sweep TRL's settings, let all take turns, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", choices=sorted(TOKENIZERS), default="real")
    add_model_options(parser)
    parser.add_argument("--pairs-per-step", type=int, default=16, help="a multiple of 8")
    parser.add_argument("--tokens-per-micro-batch", nargs="+", type=int, default=[2_048, 16_384])
    add_turn_options(parser)
    options = parser.parse_args()
    if options.pairs_per_step % 8:
        parser.error(f"--pairs-per-step must be a multiple of 8, got {options.pairs_per_step}")
    with tempfile.TemporaryDirectory(prefix="rm_ray-peers-") as name:
        folder = Path(name)
        everything = read_pairs(options.pairs)
        model = write_start(options, everything, folder)
        sweep = sweep_trl(options, everything, model, folder)
        pairs = everything.deal(steps=options.runs + 1, size=options.pairs_per_step)
        pairs.save(folder / "pairs.npz")
        best = max(sweep, key=lambda peer: sweep[peer])
        results = race(options, best, model, str(folder / "pairs.npz"))
    mine = [figures for turns in results.values() for figures in turns]
    top = limit_of([figures for figures in mine if "matrix_peak" in figures])
    ours = fastest_packed(results)
    header = [
        "trainer", "pairs/s", "ours over it", "of the limit", "peak GB", "loss of the last step",
    ]  # fmt: skip
    print_report(
        f"{describe_machine()}; {describe_model(options)}, float32 on CPU, {options.threads} "
        f"threads; {options.runs} turns of one step of {options.pairs_per_step} {options.pairs} "
        f"pairs ({pairs.distinct_per_pair:.0f} distinct tokens each, {pairs.both_over_distinct:.2f}"
        " times as many in both conversations), medians (least to most)",
        markdown_table(
            header, [row(peer, turns, results[ours], top) for peer, turns in results.items()]
        ),
        f"limit of matrix products alone: {top:.2f} pairs/s",
        "\n".join(f"- {line}" for line in goals(options, results, top)),
        "TRL's sweep, one turn each, in pairs/s:",
        markdown_table(
            ["setting", "pairs/s"], [[peer.title, f"{s:.2f}"] for peer, s in sweep.items()]
        ),
        figures={
            "pairs": options.pairs,
            "pairs_per_step": options.pairs_per_step,
            "distinct_per_pair": pairs.distinct_per_pair,
            "both_over_distinct": pairs.both_over_distinct,
            "limit": top,
            "trainers": [
                {
                    **asdict(peer),
                    "title": peer.title,
                    "pairs_per_second": Spread.of(pairs_per_second(turns)),
                    "ours_over_it": ratio(results[ours], turns),
                    "turns": turns,
                }
                for peer, turns in results.items()
            ],
            "sweep": {peer.title: speed for peer, speed in sweep.items()},
        },
    )


def write_start(options: argparse.Namespace, pairs: PairSet, folder: Path) -> str:
    """Write the weights that all start from, as every client of transformers reads them."""
    tokenizer = load_tokenizer(TOKENIZERS[options.pairs])
    config = ModelConfig(name_or_path=write_model(options, len(tokenizer), folder))
    model = build_reward_model(config, tokenizer, seed=0, layout="padded")
    start = folder / "start"
    export_model(model, model.state_dict(), tokenizer, start, dtype=torch.float32)
    return str(start)


def sweep_trl(
    options: argparse.Namespace, everything: PairSet, model: str, folder: Path
) -> dict[Peer, float]:
    """Return the pairs per second of TRL's settings, from one turn each."""
    size = max(8, options.pairs_per_step // 2)
    path = everything.deal(steps=2, size=size, seed=1).save(folder / "sweep.npz")
    peers = [
        Peer(
            title=f"TRL, batch {batch}, {'grouped by length' if grouped else 'in order'}",
            model=model,
            pairs=str(path),
            pairs_per_step=size,
            batch=batch,
            grouped=grouped,
        )
        for batch, grouped in ((1, False), (2, False), (2, True), (4, False), (4, True), (8, True))
    ]
    speeds = {}
    for peer in peers:
        [[figures]] = take_turns([(train_with_trl, peer)], turns=1, threads=options.threads)
        speeds[peer] = figures["pairs"] / figures["seconds"]
    return speeds


def race(
    options: argparse.Namespace, best: Peer, model: str, pairs: str
) -> dict[Peer | Setting, list[Figures]]:
    """Let all take their turns; return what each measured."""
    shared: dict[str, Any] = {
        "model": model, "pairs": pairs, "pairs_per_step": options.pairs_per_step,
    }  # fmt: skip
    contestants: list[tuple[Any, Peer | Setting]] = [
        (train_with_trl, Peer(title="TRL, its defaults: batch 8, activations recomputed",
                              batch=8, recomputes=True, **shared)),
        (train_with_trl, Peer(title="TRL, batch 1, the rest as its defaults",
                              batch=1, recomputes=True, **shared)),
        (train_with_trl, replace(best, title=f"TRL at its best: {best.title[5:]}", **shared)),
        (train_like_origin, Peer(title="open-instruct's loop, batch 4", batch=4, **shared)),
        (train_like_origin, Peer(title="open-instruct's loop, batch 1", batch=1, **shared)),
    ]  # fmt: skip
    budgets = options.tokens_per_micro_batch
    ours: list[tuple[Layout, int]] = [("padded", min(budgets))]  # the least padding
    ours += [("packed", tokens) for tokens in budgets]
    contestants += [
        (
            train,
            Setting(
                layout=layout,
                tokens_per_micro_batch=tokens,
                learning_rate=LEARNING_RATE,
                **shared,
            ),
        )
        for layout, tokens in ours
    ]
    turns = take_turns(contestants, turns=options.runs, threads=options.threads)
    return {peer: mine for (_, peer), mine in zip(contestants, turns, strict=True)}


def speed(turns: Sequence[Figures]) -> float:
    """Return the median pairs per second."""
    return statistics.median(pairs_per_second(turns))


def fastest_packed(results: dict[Peer | Setting, list[Figures]]) -> Setting:
    """Return our fastest packed setting."""
    packed = [p for p in results if isinstance(p, Setting) and p.layout == "packed"]
    return max(packed, key=lambda setting: speed(results[setting]))


def row(
    peer: Peer | Setting, turns: Sequence[Figures], ours: Sequence[Figures], top: float
) -> list[str]:
    """Return the cells of one trainer."""
    return [
        title_of(peer),
        Spread.of(pairs_per_second(turns)).cell(),
        ratio(ours, turns).cell(),
        f"{speed(turns) / top:.2f}",
        f"{turns[-1]['peak_memory'] / 1e9:.2f}",
        f"{turns[-1]['loss']:.6f}",
    ]


def title_of(peer: Peer | Setting) -> str:
    """Return what a trainer is called in the table."""
    return f"ours, {peer.title}" if isinstance(peer, Setting) else peer.title


def goals(
    options: argparse.Namespace, results: dict[Peer | Setting, list[Figures]], top: float
) -> list[str]:
    """Return how ours compares, and, on the real pairs, whether it is as was to be reached."""
    ours = results[fastest_packed(results)]
    peers = [peer for peer in results if isinstance(peer, Peer)]
    padded = [p for p in results if isinstance(p, Peer) or p.layout == "padded"]
    best = max(padded, key=lambda peer: speed(results[peer]))
    compared = {
        "packed over TRL's defaults": (peers[0], OVER_TRL_DEFAULT),
        f"packed over the best padded setting of anyone ({title_of(best)})": (
            best,
            OVER_BEST_PADDED,
        ),
    }
    lines = [goal("packed, of the limit", speed(ours) / top, LIMIT_GOALS["cpu"])]
    for title, (peer, least) in compared.items():
        times = ratio(ours, results[peer]).median
        lines.append(
            goal(title, times, least) if options.pairs == "real" else f"{title}: {times:.2f}"
        )
    losses = np.array(
        [
            [turn["loss"] for turn in turns]
            for peer, turns in results.items()
            if isinstance(peer, Setting) or not peer.grouped
        ]
    )
    differ = float((losses.max(axis=0) - losses.min(axis=0)).max())
    title = "most that a step's loss differs between trainers of the same pairs"
    return [*lines, limit(title, differ, SAME_LOSS, ".1e")]


if __name__ == "__main__":
    main()
