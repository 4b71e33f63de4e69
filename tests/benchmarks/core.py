"""Speed and memory of the core (plan, pack, forward, backward, step), packed and padded.

The settings take turns, each in a process of its own with the same pairs, start weights and
optimizer. Pairs per second stand beside their limit: what the device's matrix products would allow
if it computed what the pairs need (rm_ray.model.flops) and nothing else.

    python tests/benchmarks/core.py [--runs 5] [--hidden 256] [--pairs real] [--shares 0.1 0.5 0.9]

Needs torch and transformers alone when the pairs come from a file or are generated, transformers
5.23 for --gradient-checkpointing, and liger-kernel on a GPU unless --liger is off: training uses it
there. On a GPU, whose memory the settings cannot share, each takes all its turns before the next
one starts:

    python tests/benchmarks/pair_set.py real pairs.npz
    python tests/benchmarks/core.py --device cuda --dtype bfloat16 --pairs pairs.npz \\
        --hidden 4096 --layers 4 --heads 32 --key-value-heads 8 --intermediate 14336 \\
        --tokens-per-micro-batch 16384 --pairs-per-step 128 --steps 4
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

from machine import ROOT, describe_machine
from needs import find_lacking
from report import Spread, goal, markdown_table, print_report

sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402
from pair_set import PairSet, pairs_that_share, read_pairs  # noqa: E402
from plain_engine import PlainEngine  # noqa: E402
from turns import Figures, Turn, resident_bytes, take_turns  # noqa: E402

from rm_ray.batches.collate import Collator  # noqa: E402
from rm_ray.batches.loading import load_step  # noqa: E402
from rm_ray.batches.plan import Plan, PlanSettings  # noqa: E402
from rm_ray.batches.read_ahead import read_ahead  # noqa: E402
from rm_ray.config.sections.batch import Layout  # noqa: E402
from rm_ray.config.sections.model import ModelConfig  # noqa: E402
from rm_ray.config.sections.objective import ObjectiveConfig  # noqa: E402
from rm_ray.config.sections.optimizer import OptimizerConfig  # noqa: E402
from rm_ray.model.architecture import attention_weight  # noqa: E402
from rm_ray.model.attention import choose_kernel, head_size  # noqa: E402
from rm_ray.model.build import build_reward_model  # noqa: E402
from rm_ray.model.flops import ModelFlops  # noqa: E402
from rm_ray.model.liger import apply_liger  # noqa: E402
from rm_ray.objectives.build import build_objective  # noqa: E402
from rm_ray.train.step import train_step  # noqa: E402
from rm_ray.train.throughput import measure_matrix_peak  # noqa: E402

LIMIT_GOALS = {"cpu": 0.55, "cuda": 0.45}
"""Least share of the limit that packed pairs are to reach, by device."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How one contestant trains; ``model`` is a config.json or a folder with weights."""

    model: str
    pairs: str
    layout: Layout
    tokens_per_micro_batch: int
    pairs_per_step: int
    steps: int = 1
    """Optimizer steps of a turn."""
    dtype: str = "float32"
    device: str = "cpu"
    gradient_checkpointing: bool = False
    liger: str = "auto"
    learning_rate: float = 1e-5

    @property
    def title(self) -> str:
        """What it is called in a table."""
        return f"{self.layout}, {self.tokens_per_micro_batch:,} tokens"


def train(setting: Setting, turn: Turn) -> None:
    """Take turns of so many steps, over the pairs in their order."""
    device, dtype = torch.device(setting.device), getattr(torch, setting.dtype)
    pairs: Any = PairSet.load(Path(setting.pairs))
    model = build_reward_model(
        ModelConfig(
            name_or_path=setting.model, gradient_checkpointing=setting.gradient_checkpointing
        ),
        pairs.vocabulary,
        seed=0,
        layout=setting.layout,
    )
    settings = PlanSettings(
        global_batch_size=setting.pairs_per_step,
        tokens_per_micro_batch=setting.tokens_per_micro_batch,
        layout=setting.layout,
        attention_weight=attention_weight(model.classifier),
        shuffle=False,
    )
    apply_liger(model, setting.liger, on_gpu=device.type == "cuda")
    plan = Plan(lengths=pairs.lengths, settings=settings)
    optimizer = OptimizerConfig(learning_rate=setting.learning_rate)
    engine: Any = PlainEngine(model, optimizer, device=device, dtype=dtype)
    collator = Collator(
        layout=setting.layout,
        kernel=choose_kernel(device, dtype, head_size=head_size(model.classifier.config)),
        pad_token_id=pairs.vocabulary.pad_token_id,
        device=device,
    )
    objective = build_objective(ObjectiveConfig())
    flops = ModelFlops.of(model.classifier)
    memory_before = memory_held(device)
    for first in range(0, plan.steps.total, setting.steps):
        matrix_peak = measure_matrix_peak(device, dtype)
        steps = range(first, first + setting.steps)
        started = time.perf_counter()
        loaded = (load_step(pairs, plan, step, rank=0, world_size=1) for step in steps)
        ready = map(collator.move, read_ahead(map(collator.lay_out, loaded)))
        measured = [
            train_step(
                engine,
                objective,
                micro_batches,
                num_groups=setting.pairs_per_step,
                learning_rate=setting.learning_rate,
            )
            for micro_batches in ready
        ]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
        tokens = [step.groups.tokens for step in measured]
        taken = [plan.groups_of_step(step) for step in steps]
        memory = peak_memory(device)
        turn.over(
            seconds=seconds,
            pairs=sum(step.groups.count for step in measured),
            distinct=sum(counts.distinct for counts in tokens),
            computed=sum(counts.computed for counts in tokens),
            loss=statistics.mean(step.groups.means("rm")["rm/loss"] for step in measured),
            flops=float(sum(flops.training(pairs.lengths[of]).sum() for of in taken)),
            matrix_peak=matrix_peak,
            peak_memory=memory,
            step_memory=memory - memory_before,
        )


def memory_held(device: torch.device) -> int:
    """Return the bytes held now: of the device, or of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return resident_bytes("VmRSS")


def peak_memory(device: torch.device) -> int:
    """Return the most bytes held since."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident_bytes("VmHWM")


def pairs_per_second(turns: Sequence[Figures]) -> list[float]:
    """Return the speed of each turn."""
    return [turn["pairs"] / turn["seconds"] for turn in turns]


def limit_of(turns: Sequence[Figures]) -> float:
    """Return the pairs per second that the matrix products they need would allow.

    The matrix peak is the best of those measured just before each turn.
    """
    flops = sum(turn["flops"] for turn in turns) / sum(turn["pairs"] for turn in turns)
    return float(max(turn["matrix_peak"] for turn in turns) / flops)


def ratio(ours: Sequence[Figures], theirs: Sequence[Figures]) -> Spread:
    """Return how many times the other's pairs per second ours are, turn by turn."""
    both = zip(pairs_per_second(ours), pairs_per_second(theirs), strict=True)
    return Spread.of(a / b for a, b in both)


def fastest(results: dict[Setting, list[Figures]], layout: Layout) -> Setting:
    """Return the setting of a layout with the most pairs per second."""
    mine = [setting for setting in results if setting.layout == layout]
    return max(mine, key=lambda setting: statistics.median(pairs_per_second(results[setting])))


def main() -> None:
    """Run the settings and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", default="real", help="'real', 'builtin', or a file of pairs")
    parser.add_argument("--shares", nargs="+", type=float, default=[], help="generate pairs with")
    parser.add_argument("--generated-tokens", type=int, default=512, help="of a conversation")
    add_model_options(parser)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--liger", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("--layouts", nargs="+", default=["packed", "padded"])
    parser.add_argument("--tokens-per-micro-batch", nargs="+", type=int, default=[2_048, 16_384])
    parser.add_argument("--pairs-per-step", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1, help="optimizer steps of a turn")
    add_turn_options(parser)
    options = parser.parse_args()
    if lacking := find_lacking(
        recomputes=options.gradient_checkpointing, liger=options.liger, device=options.device
    ):
        parser.error(lacking)
    num_steps = (options.runs + 1) * options.steps  # the first turn is the warm-up
    size = options.pairs_per_step
    sets = [
        pairs_that_share(
            share,
            count=num_steps * size,
            tokens=options.generated_tokens,
            vocabulary=options.vocab or 4_098,
        )
        for share in options.shares
    ] or [read_pairs(options.pairs)]
    with tempfile.TemporaryDirectory(prefix="rm_ray-core-") as name:
        measured = [
            measure(options, pairs.deal(steps=num_steps, size=size), Path(name)) for pairs in sets
        ]
    order = "one setting after another" if options.device == "cuda" else "in turn"
    header = [
        "pairs", "setting", "pairs/s", "distinct tokens/s", "of the limit",
        "computed / distinct tokens", "peak GB", "of it for the steps",
    ]  # fmt: skip
    rows = [row for group in measured for row in group["rows"]]
    goals = [line for group in measured for line in group["goals"]]
    print_report(
        f"{describe_machine()}; {describe(options)}; {options.runs} turns of {options.steps} steps "
        f"of {size} pairs, {order}, medians (least to most)",
        markdown_table(header, rows),
        "\n".join(f"- {line}" for line in goals),
        figures=[group["figures"] for group in measured],
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the shape of a Llama; its feed-forward is gated, of three matrices."""
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--key-value-heads", type=int, help="as many as heads")
    parser.add_argument("--intermediate", type=int, default=1_024)
    parser.add_argument("--vocab", type=int, help="rows of the embedding; those of the tokenizer")


def add_turn_options(parser: argparse.ArgumentParser) -> None:
    """Add how often and on how many threads is measured."""
    parser.add_argument("--runs", type=int, default=5, help="turns of each setting")
    parser.add_argument("--threads", type=int, default=os.cpu_count())


def describe(options: argparse.Namespace) -> str:
    """Return the model and the arithmetic in words."""
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    checkpointing = ", activations recomputed" if options.gradient_checkpointing else ""
    checkpointing += f", Liger {options.liger}" if options.device == "cuda" else ""
    return (
        f"{describe_model(options)}, {options.dtype} on {device}{checkpointing}, "
        f"{options.threads} threads"
    )


def describe_model(options: argparse.Namespace) -> str:
    """Return the shape of the model in words."""
    return (
        f"Llama of {options.layers} layers x {options.hidden}, {options.heads} heads "
        f"({options.key_value_heads or options.heads} of keys and values), feed-forward "
        f"{options.intermediate}"
    )


def write_model(options: argparse.Namespace, vocab_size: int, folder: Path) -> str:
    """Write the config.json of the model and return its path."""
    config = {
        "model_type": "llama",
        "hidden_size": options.hidden,
        "intermediate_size": options.intermediate,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.key_value_heads or options.heads,
        "vocab_size": max(vocab_size, options.vocab or 0),
        "max_position_embeddings": 8_192,
    }
    path = folder / "model.json"
    path.write_text(json.dumps(config))
    return str(path)


def measure(options: argparse.Namespace, pairs: PairSet, folder: Path) -> dict[str, Any]:
    """Let all settings train on one set of pairs; return rows, goals and figures."""
    base = Setting(
        model=write_model(options, pairs.vocabulary.size, folder),
        pairs=str(pairs.save(folder / "pairs.npz")),
        layout="packed",
        tokens_per_micro_batch=0,
        pairs_per_step=options.pairs_per_step,
        steps=options.steps,
        dtype=options.dtype,
        device=options.device,
        gradient_checkpointing=options.gradient_checkpointing,
        liger=options.liger,
    )
    settings = [
        replace(base, layout=layout, tokens_per_micro_batch=tokens)
        for layout in options.layouts
        for tokens in options.tokens_per_micro_batch
    ]
    turns = take_turns(
        [(train, setting) for setting in settings],
        turns=options.runs,
        threads=options.threads,
        together=options.device == "cpu",
    )
    results = dict(zip(settings, turns, strict=True))
    top = limit_of([figures for mine in turns for figures in mine])
    summaries = {setting: summarise(mine, top) for setting, mine in results.items()}
    goals = [
        f"{pairs.name}: {pairs.distinct_per_pair:.0f} distinct tokens a pair, "
        f"{pairs.both_over_distinct:.2f} times as many in both conversations; "
        f"limit {top:.2f} pairs/s"
    ]
    comparison = {}
    if "packed" in options.layouts and not options.shares:
        best = summaries[fastest(results, "packed")]["of_limit"].median
        goals.append(goal(f"{pairs.name}: of the limit", best, LIMIT_GOALS[options.device]))
    if {"packed", "padded"} <= set(options.layouts):
        comparison = compare(results)
        title = f"{pairs.name}: packed over padded (goal: the token ratio)"
        speed_up = comparison["packed_over_padded"].median
        goals.append(goal(title, speed_up, pairs.both_over_distinct))
        goals += [
            f"{pairs.name}: memory of a packed step over a padded one, {tokens:,} tokens a "
            f"micro-batch: {share:.2f}"
            for tokens, share in comparison["step_memory"].items()
        ]
    return {
        "rows": [[pairs.name, *row(setting, mine)] for setting, mine in summaries.items()],
        "goals": goals,
        "figures": {
            "pairs": pairs.name,
            "distinct_per_pair": pairs.distinct_per_pair,
            "both_over_distinct": pairs.both_over_distinct,
            "limit": top,
            **comparison,
            "settings": [{**asdict(setting), **mine} for setting, mine in summaries.items()],
            "turns": turns,
        },
    }


def summarise(turns: Sequence[Figures], top: float) -> dict[str, Any]:
    """Return the figures of one setting over its turns."""
    speeds = pairs_per_second(turns)
    return {
        "pairs_per_second": Spread.of(speeds),
        "distinct_per_second": Spread.of(turn["distinct"] / turn["seconds"] for turn in turns),
        "of_limit": Spread.of(speed / top for speed in speeds),
        "computed_over_distinct": statistics.median(t["computed"] / t["distinct"] for t in turns),
        "peak_memory": turns[-1]["peak_memory"],
        "step_memory": turns[-1]["step_memory"],
    }


def row(setting: Setting, summary: dict[str, Any]) -> list[str]:
    """Return the cells of one setting."""
    return [
        setting.title,
        summary["pairs_per_second"].cell(),
        f"{summary['distinct_per_second'].median:,.0f}",
        summary["of_limit"].cell(),
        f"{summary['computed_over_distinct']:.2f}",
        f"{summary['peak_memory'] / 1e9:.2f}",
        f"{summary['step_memory'] / 1e9:.2f}",
    ]


def compare(results: dict[Setting, list[Figures]]) -> dict[str, Any]:
    """Return packed over padded: the fastest of each, and the memory at the same budget."""
    packed, padded = fastest(results, "packed"), fastest(results, "padded")
    memory = {
        setting.tokens_per_micro_batch: mine[-1]["step_memory"]
        / results[replace(setting, layout="padded")][-1]["step_memory"]
        for setting, mine in results.items()
        if setting.layout == "packed"
    }
    return {
        "packed_over_padded": ratio(results[packed], results[padded]),
        "step_memory": memory,
    }


if __name__ == "__main__":
    main()
