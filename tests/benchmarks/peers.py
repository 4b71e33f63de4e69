"""Speed beside other trainers: TRL, open-instruct's loop and, if asked for, LLaMA-Factory.

All train the same model from the same weights on the same pairs, so many to an optimizer step,
with AdamW, in float32 on the CPU, and take turns of one step each, in processes of their own. The
steps' losses say whether they really do the same.

    python tests/benchmarks/peers.py [--pairs real] [--runs 5] [--llamafactory]
        [--figures FILE]

With ``--figures tests/benchmarks/peers.json`` it also writes what ``peers_table.py`` makes the
table of peers from. Trainers that do not run here are named there, with the reason;
``--llamafactory`` installs that one's packages from PyPI, into a folder of their own.

TRL's best setting is the fastest of a sweep over its batch size and its grouping by length,
without recomputing activations, which its defaults do. Grouping changes which pairs a step holds;
here it is over the pairs of all turns, dealt so that the turns are alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from machine import ROOT, commit, describe_machine
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
from llama_factory import install, train_with_llamafactory, write_value_head  # noqa: E402
from pair_set import TOKENIZERS, PairSet, deal_alike, read_pairs  # noqa: E402
from transformers import AutoModelForSequenceClassification  # noqa: E402
from turns import (  # noqa: E402
    Figures,
    Play,
    Turn,
    resident_bytes,
    steps_as_turns,
    take_turns,
)

from rm_ray.batches.collate import unlabelled  # noqa: E402
from rm_ray.batches.padding import pad_groups  # noqa: E402
from rm_ray.config.sections.batch import Layout  # noqa: E402
from rm_ray.config.sections.model import ModelConfig  # noqa: E402
from rm_ray.data.tokens.tokenizer import load_tokenizer  # noqa: E402
from rm_ray.model.build import build_reward_model  # noqa: E402
from rm_ray.model.export import export_model  # noqa: E402

LEARNING_RATE, MAX_GRAD_NORM = 1e-5, 1.0
OVER_TRL, OVER_BEST_PADDED = 5.0, 2.0
"""How many times the pairs per second of others packed pairs are to reach, on the real pairs."""
SAME_LOSS = 1e-4
"""Most that the loss of a step may differ between trainers of the same pairs."""
SIDES = ("chosen", "rejected")


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
    learning_rate: float = LEARNING_RATE
    max_grad_norm: float = MAX_GRAD_NORM
    packages: str = ""
    """Folder of the packages that this trainer alone needs."""


@dataclass(frozen=True)
class Entrant:
    """One setting of one trainer in the race."""

    trainer: str
    """Its name in ``peer_claims.TRAINERS``, or 'unshared'."""
    title: str
    play: Play
    setting: Peer | Setting
    by_default: bool = False
    """Whether this is how the trainer trains if nothing is said."""

    @property
    def is_padded(self) -> bool:
        """Whether its batches are."""
        return isinstance(self.setting, Peer) or self.setting.layout == "padded"

    @property
    def is_grouped(self) -> bool:
        """Whether its steps hold other pairs than the steps of the rest."""
        return isinstance(self.setting, Peer) and self.setting.grouped


def train_with_trl(peer: Peer, turn: Turn) -> None:
    """Take turns of one step of TRL's trainer; what is not named here is as TRL has it."""
    from datasets import Dataset
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
        {f"{side}_ids": tokens.conversation(i, k).tolist() for k, side in enumerate(SIDES)}
        for i in range(len(tokens))
    ]

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
                learning_rate=peer.learning_rate,
                lr_scheduler_type="constant",
                weight_decay=0.0,
                max_grad_norm=peer.max_grad_norm,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                bf16=False,
                disable_tqdm=True,
                model_init_kwargs={"dtype": "float32"},
            ),
            train_dataset=Dataset.from_list(rows),
            callbacks=[steps_as_turns(turn, pairs=peer.pairs_per_step)],
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
    started = time.perf_counter()
    for first in range(0, len(pairs.pairs), peer.pairs_per_step):
        loss_of_step = 0.0
        for begin in range(first, first + peer.pairs_per_step, peer.batch):
            some = pairs.gather(np.arange(begin, begin + peer.batch))
            batch = pad_groups(some, unlabelled(some), pad_token_id=pairs.vocabulary.pad_token_id)
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
    parser.add_argument(
        "--llamafactory", action="store_true", help="too; installs it from PyPI, into a folder"
    )
    parser.add_argument("--figures", type=Path, help="also write what peers_table.py reads")
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
        pairs.unshared().save(folder / "unshared.npz")
        best = max(sweep, key=lambda peer: sweep[peer])
        results = race(options, best, model, folder)
    mine = [figures for turns in results.values() for figures in turns]
    top = limit_of([figures for figures in mine if "matrix_peak" in figures])
    ours = results[fastest_packed(results)]
    header = [
        "trainer", "pairs/s", "ours over it", "of the limit", "peak GB", "loss of the last step",
    ]  # fmt: skip
    if options.figures:
        written = figures_of(options, pairs, results)
        if written["loss_difference"] > SAME_LOSS:
            parser.exit(1, f"losses differ by {written['loss_difference']:.1e}: no figures written")
        options.figures.write_text(json.dumps(written, indent=1) + "\n")
    print_report(
        f"{describe_machine()}; {describe_model(options)}, float32 on CPU, {options.threads} "
        f"threads; {options.runs} turns of one step of {options.pairs_per_step} {options.pairs} "
        f"pairs ({pairs.distinct_per_pair:.0f} distinct tokens each, {pairs.both_over_distinct:.2f}"
        " times as many in both conversations), medians (least to most)",
        markdown_table(header, [row(one, turns, ours, top) for one, turns in results.items()]),
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
                    **asdict(one.setting),
                    "title": one.title,
                    "pairs_per_second": Spread.of(pairs_per_second(turns)),
                    "ours_over_it": ratio(ours, turns),
                    "turns": turns,
                }
                for one, turns in results.items()
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
            title=f"batch {batch}, {'grouped by length' if grouped else 'in order'}",
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
    options: argparse.Namespace, best: Peer, model: str, folder: Path
) -> dict[Entrant, list[Figures]]:
    """Let all take their turns; return what each measured."""
    shared: dict[str, Any] = {
        "model": model,
        "pairs": str(folder / "pairs.npz"),
        "pairs_per_step": options.pairs_per_step,
    }

    def trl(title: str, **how: Any) -> Entrant:
        return Entrant("trl", title, train_with_trl, Peer(title=title, **shared, **how))

    def packed(title: str, tokens: int, layout: Layout = "packed", **how: Any) -> Entrant:
        setting = Setting(
            layout=layout,
            tokens_per_micro_batch=tokens,
            learning_rate=LEARNING_RATE,
            **{**shared, **how},
        )
        return Entrant("rm_ray", f"{title}, {tokens:,} tokens", train, setting)

    budgets = options.tokens_per_micro_batch
    twice = {"pairs": str(folder / "unshared.npz")}
    entrants = [
        replace(trl("its defaults: batch 8, activations recomputed", batch=8, recomputes=True),
                by_default=True),
        trl("batch 8", batch=8),
        Entrant("trl", best.title, train_with_trl, replace(best, **shared)),
        Entrant("open-instruct", "its loop, batch 1", train_like_origin,
                Peer(title="", batch=1, **shared), by_default=True),
        *[replace(packed("packed, each prefix twice", tokens, **twice), trainer="unshared")
          for tokens in budgets],
        *([enter_llamafactory(best.batch, shared, folder)] if options.llamafactory else []),
        packed("padded", min(budgets), "padded"),  # the least padding
        *[packed("packed", tokens) for tokens in budgets],
    ]  # fmt: skip
    turns = take_turns(
        [(one.play, one.setting) for one in entrants], turns=options.runs, threads=options.threads
    )
    return dict(zip(entrants, turns, strict=True))


def enter_llamafactory(batch: int, shared: dict[str, Any], folder: Path) -> Entrant:
    """Install LLaMA-Factory and return it at the batch size that is fastest for TRL."""
    peer = Peer(title=f"batch {batch}, nothing recomputed", batch=batch, **shared)
    model = write_value_head(Path(peer.model), folder / "start-llamafactory")
    packages = install(folder / "llamafactory")
    peer = replace(peer, model=str(model), packages=str(packages))
    return Entrant("llamafactory", peer.title, train_with_llamafactory, peer)


def figures_of(
    options: argparse.Namespace, pairs: PairSet, results: dict[Entrant, list[Figures]]
) -> dict[str, Any]:
    """Return what the table of peers is made of."""
    ours = pairs_per_second(results[fastest_packed(results)])
    return {
        "machine": describe_machine(),
        "commit": commit(),
        "conditions": (
            f"Measured on {options.pairs} pairs of {pairs.distinct_per_pair:.0f} distinct tokens, "
            f"conversations up to 1,024 tokens, a Llama of {options.layers} layers x "
            f"{options.hidden}, float32, {options.threads} CPU cores, {options.pairs_per_step} "
            "pairs a step"
        ),
        "loss_difference": loss_difference(results),
        "speeds": [
            {
                "trainer": one.trainer,
                "title": one.title,
                "by_default": one.by_default,
                "pairs_per_second": pairs_per_second(turns),
                "ours_over_it": [a / b for a, b in zip(ours, pairs_per_second(turns), strict=True)],
            }
            for one, turns in results.items()
        ],
    }


def speed(turns: Sequence[Figures]) -> float:
    """Return the median pairs per second."""
    return statistics.median(pairs_per_second(turns))


def fastest_packed(results: dict[Entrant, list[Figures]]) -> Entrant:
    """Return our fastest packed setting."""
    packed = [one for one in results if one.trainer == "rm_ray" and not one.is_padded]
    return max(packed, key=lambda one: speed(results[one]))


def row(one: Entrant, turns: Sequence[Figures], ours: Sequence[Figures], top: float) -> list[str]:
    """Return the cells of one trainer."""
    return [
        f"{one.trainer}: {one.title}",
        Spread.of(pairs_per_second(turns)).cell(),
        ratio(ours, turns).cell(),
        f"{speed(turns) / top:.2f}",
        f"{turns[-1]['peak_memory'] / 1e9:.2f}",
        f"{turns[-1]['loss']:.6f}",
    ]


def goals(
    options: argparse.Namespace, results: dict[Entrant, list[Figures]], top: float
) -> list[str]:
    """Return how ours compares, and, on the real pairs, whether it is as was to be reached."""
    ours = results[fastest_packed(results)]
    padded = [one for one in results if one.is_padded]
    best = max(padded, key=lambda one: speed(results[one]))
    [default] = [one for one in padded if one.trainer == "trl" and one.by_default]
    [plain] = [one for one in padded if one.trainer == "trl" and one.title == "batch 8"]
    lines = [
        goal("packed, of the limit", speed(ours) / top, LIMIT_GOALS["cpu"]),
        f"packed over TRL's defaults: {ratio(ours, results[default]).median:.2f}",
    ]
    for one, title, least in (
        (plain, "packed over TRL without recomputation, batch 8", OVER_TRL),
        (best, f"packed over the best padded setting of anyone ({best.trainer}, {best.title})",
         OVER_BEST_PADDED),
    ):  # fmt: skip
        times = ratio(ours, results[one]).median
        lines.append(
            goal(title, times, least) if options.pairs == "real" else f"{title}: {times:.2f}"
        )
    title = "most that a step's loss differs between trainers of the same pairs"
    return [*lines, limit(title, loss_difference(results), SAME_LOSS, ".1e")]


def loss_difference(results: dict[Entrant, list[Figures]]) -> float:
    """Return the most that a step's loss differs between those that train on the same pairs."""
    losses = np.array(
        [[t["loss"] for t in turns] for one, turns in results.items() if not one.is_grouped]
    )
    return float((losses.max(axis=0) - losses.min(axis=0)).max())


if __name__ == "__main__":
    main()
