"""Speed on lists of responses beside the same lists exploded into pairs, and TRL on those.

    python tests/benchmarks/exploded.py [--responses 2 4 9] [--runs 5] [--peers none]

A list is a prompt with K responses, of which all K (K - 1) / 2 pairs are compared. As groups of K
the lists compute each prompt and response once; exploded, a pair at a time. All contestants start
from the same weights and make the same comparisons in each optimizer step, at the same weights:
the steps' losses say whether they really do. They take turns of one step each, in processes of
their own, and a step of lists fills one micro-batch.

Lists beat pairs by at most about the ratio of distinct tokens, exploded over lists. The ratio of
FLOPs is lower where attention counts: more of a list's tokens are responses, which see the prompt.

Prompts are those of real pairs, with both their responses and others', which are cut to the length
of the longest conversation. Where the real pairs are missing, they are generated.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from machine import ROOT, describe_machine
from report import Spread, goal, limit, markdown_table, print_report

sys.path[:0] = [str(ROOT)]
os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed, where it is imported, says so on stdout

import numpy as np  # noqa: E402
import torch  # noqa: E402
from core import (  # noqa: E402
    add_model_options,
    add_turn_options,
    describe_model,
    pairs_per_second,
    ratio,
)
from pair_set import (  # noqa: E402
    SHARED_DATA,
    TOKENIZERS,
    PairSet,
    Vocabulary,
    deal_alike,
    pairs_that_share,
    read_pairs,
)
from peers import LEARNING_RATE, SAME_LOSS, Peer, train_with_trl, write_start  # noqa: E402
from plain_engine import PlainEngine  # noqa: E402
from turns import Figures, Turn, resident_bytes, take_turns  # noqa: E402

from rm_ray.batches.collate import Collator  # noqa: E402
from rm_ray.batches.loading import load_step  # noqa: E402
from rm_ray.batches.plan import Plan, PlanSettings  # noqa: E402
from rm_ray.config.sections.model import ModelConfig  # noqa: E402
from rm_ray.config.sections.objective import ObjectiveConfig  # noqa: E402
from rm_ray.config.sections.optimizer import OptimizerConfig  # noqa: E402
from rm_ray.data.cache.group_columns import GroupColumns  # noqa: E402
from rm_ray.data.cache.group_tokens import (  # noqa: E402
    GroupLengths,
    GroupTokens,
    join_groups,
    ragged_arange,
    starts_of,
)
from rm_ray.data.tokens.tokenizer import load_tokenizer  # noqa: E402
from rm_ray.model.architecture import attention_weight  # noqa: E402
from rm_ray.model.build import build_reward_model  # noqa: E402
from rm_ray.model.flops import ModelFlops  # noqa: E402
from rm_ray.objectives.build import build_objective  # noqa: E402
from rm_ray.train.step import train_step  # noqa: E402
from rm_ray.train.throughput import measure_matrix_peak  # noqa: E402

OF_TOKEN_RATIO = 0.9
"""Least share of the ratio of distinct tokens by which lists of more than two are to be faster."""

FILL = 0.95
"""Share of a micro-batch that a step of lists takes, on average; steps differ a little."""

GENERATED_SHARE = 0.55
"""Share of a generated conversation that is its prompt."""

Conversations = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class GroupSet:
    """N groups in memory, with what ``load_step`` asks of a token table."""

    groups: GroupTokens
    columns: GroupColumns
    vocabulary: Vocabulary

    @classmethod
    def of(cls, lists: Sequence[Conversations], vocabulary: Vocabulary) -> GroupSet:
        """Return groups in which earlier responses are better than later ones."""
        groups = join_groups(lists)
        lengths = groups.lengths
        compared = [list(itertools.combinations(range(len(each)), 2)) for each in lists]
        counts = np.array([len(each) for each in compared])
        better, worse = np.array([pair for each in compared for pair in each]).T
        columns = {
            "num_responses": lengths.num_responses,
            "num_comparisons": counts,
            "prefix_length": lengths.prefix,
            "prompt_length": lengths.prefix,
            "length": lengths.conversations,
            "score": np.full(len(lengths.conversations), np.nan),
            "better": better,
            "worse": worse,
            "weight": np.repeat(1 / counts, counts),
            "margin": np.zeros(len(better)),
            "probability": np.ones(len(better)),
        }
        return cls(groups=groups, columns=GroupColumns.of(columns), vocabulary=vocabulary)

    @property
    def lengths(self) -> GroupLengths:
        """Tokens of every group."""
        return self.groups.lengths

    @property
    def as_pairs(self) -> PairSet:
        """The same groups, all of two, as other trainers' benchmarks take them."""
        return PairSet(name="exploded", pairs=self.groups, vocabulary=self.vocabulary)

    def read(self, groups: np.ndarray, lengths: GroupLengths) -> GroupTokens:
        """Return the token ids of some groups, whose lengths are known."""
        places = ragged_arange(self._starts[groups], lengths.distinct)
        return GroupTokens(tokens=self.groups.tokens[places], lengths=lengths)

    @cached_property
    def _starts(self) -> np.ndarray:
        return starts_of(self.lengths.distinct)


@dataclass(frozen=True, kw_only=True)
class Ours:
    """How our core trains, packed, on groups of one size."""

    title: str
    model: str
    groups: GroupSet
    groups_per_step: int
    tokens_per_micro_batch: int


def train_on_groups(ours: Ours, turn: Turn) -> None:
    """Take turns of one optimizer step, over the groups in their order."""
    device, dtype = torch.device("cpu"), torch.float32
    table: Any = ours.groups
    vocabulary: Any = table.vocabulary
    model = build_reward_model(
        ModelConfig(name_or_path=ours.model), vocabulary, seed=0, layout="packed"
    )
    settings = PlanSettings(
        global_batch_size=ours.groups_per_step,
        tokens_per_micro_batch=ours.tokens_per_micro_batch,
        attention_weight=attention_weight(model.classifier),
        shuffle=False,
    )
    plan = Plan(lengths=table.lengths, settings=settings)
    optimizer = OptimizerConfig(learning_rate=LEARNING_RATE)
    engine: Any = PlainEngine(model, optimizer, device=device, dtype=dtype)
    collator = Collator(
        layout="packed", kernel="shared", pad_token_id=vocabulary.pad_token_id, device=device
    )
    objective, flops = build_objective(ObjectiveConfig()), ModelFlops.of(model.classifier)
    for step in range(plan.steps.total):
        matrix_peak = measure_matrix_peak(device, dtype)
        started = time.perf_counter()
        loaded = load_step(table, plan, step, rank=0, world_size=1)
        micro_batches = collator.move(collator.lay_out(loaded))
        prepared = time.perf_counter()
        metrics = train_step(
            engine,
            objective,
            micro_batches,
            num_groups=ours.groups_per_step,
            learning_rate=LEARNING_RATE,
        ).groups
        ended = time.perf_counter()
        taken = plan.groups_of_step(step)
        turn.over(
            seconds=ended - started,
            preparing=prepared - started,
            pairs=int(table.columns.num_comparisons[taken].sum()),
            distinct=metrics.tokens.distinct,
            computed=metrics.tokens.computed,
            micro_batches=len(micro_batches),
            loss=metrics.means("rm")["rm/loss"],
            flops=float(flops.training(table.lengths[taken]).sum()),
            matrix_peak=matrix_peak,
            peak_memory=resident_bytes("VmHWM"),
        )


def make_lists(
    pairs: PairSet, *, num_responses: int, count: int, seed: int = 0
) -> list[Conversations]:
    """Return prompts with different responses: those of the prompt's pair, and of other pairs."""
    rng = np.random.default_rng(seed)
    longest = int(pairs.lengths.longest.max())
    own = pairs.deal(steps=1, size=count, seed=seed)
    lists = []
    for i, prefix in enumerate(own.lengths.prefix.tolist()):
        conversations = [ids.tolist() for ids in own.pairs.conversations(i)]
        lists.append(conversations)
        while len(conversations) < num_responses:
            other, side = int(rng.integers(len(pairs.pairs))), int(rng.integers(2))
            response = pairs.pairs.conversation(other, side)[pairs.lengths.prefix[other] :]
            whole = [*conversations[0][:prefix], *response.tolist()][:longest]
            if whole not in conversations:
                conversations.append(whole)
    return lists


def explode(lists: Sequence[Conversations]) -> list[Conversations]:
    """Return every comparison as a pair, list by list."""
    return [list(pair) for each in lists for pair in itertools.combinations(each, 2)]


def main() -> None:
    """Let the contestants take turns on lists of each size, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = "real" if SHARED_DATA.exists() else "generated"
    parser.add_argument("--pairs", choices=[*sorted(TOKENIZERS), "generated"], default=here)
    parser.add_argument("--responses", nargs="+", type=int, default=[2, 4, 9], help="of a list")
    parser.add_argument("--peers", choices=["trl", "none"], default="trl")
    parser.add_argument("--trl-batch", type=int, default=1, help="pairs; 1 is TRL's fastest")
    add_model_options(parser)
    parser.add_argument("--lists-per-step", type=int, help="as many as fill a micro-batch")
    parser.add_argument("--tokens-per-micro-batch", type=int, default=16_384)
    add_turn_options(parser)
    options = parser.parse_args()
    if min(options.responses) < 2:
        parser.error(f"--responses must be at least 2, got {min(options.responses)}")
    everything, tokenizer = read_source(options.pairs)
    with tempfile.TemporaryDirectory(prefix="rm_ray-exploded-") as name:
        start = argparse.Namespace(**{**vars(options), "pairs": tokenizer})
        model = write_start(start, everything, Path(name))
        sections = [
            measure(options, everything, num_responses, model, Path(name))
            for num_responses in options.responses
        ]
    header = [
        "responses", "trainer", "comparisons/s", "lists over it", "distinct tokens a step",
        "micro-batches", "of the matrix peak", "s to prepare a step", "peak GB",
    ]  # fmt: skip
    print_report(
        f"{describe_machine()}; {describe_model(options)}, float32 on CPU, {options.threads} "
        f"threads; {options.runs} turns of one step, {options.tokens_per_micro_batch:,} tokens a "
        f"micro-batch, prompts and responses of {options.pairs} pairs, medians (least to most)",
        markdown_table(header, [row for section in sections for row in section["rows"]]),
        "\n".join(f"- {line}" for section in sections for line in section["goals"]),
        figures=[section["figures"] for section in sections],
    )


def read_source(name: str) -> tuple[PairSet, str]:
    """Return pairs to make lists of, and the name of a tokenizer with their vocabulary."""
    if name != "generated":
        return read_pairs(name), name
    tokenizer: Any = load_tokenizer(TOKENIZERS["builtin"])
    pad = tokenizer.pad_token_id
    pairs = pairs_that_share(GENERATED_SHARE, count=1_000, vocabulary=len(tokenizer))
    tokens = np.where(pairs.pairs.tokens == pad, pad + 1, pairs.pairs.tokens)
    vocabulary = Vocabulary(size=len(tokenizer), pad_token_id=pad)
    groups = replace(pairs.pairs, tokens=tokens)
    return replace(pairs, pairs=groups, vocabulary=vocabulary), "builtin"


def measure(
    options: argparse.Namespace,
    everything: PairSet,
    num_responses: int,
    model: str,
    folder: Path,
) -> dict[str, Any]:
    """Let all take turns on lists of K responses; return rows, goals and figures."""
    size = options.lists_per_step or lists_that_fill(
        everything, num_responses=num_responses, tokens=options.tokens_per_micro_batch
    )
    steps = options.runs + 1  # the first turn is the warm-up
    lists = make_lists(everything, num_responses=num_responses, count=steps * size)
    lists = deal_lists(lists, steps=steps)
    num_pairs = size * math.comb(num_responses, 2)
    contestants: list[tuple[Any, Any]] = [
        (
            train_on_groups,
            Ours(
                title=title,
                model=model,
                groups=GroupSet.of(groups, everything.vocabulary),
                groups_per_step=groups_per_step,
                tokens_per_micro_batch=options.tokens_per_micro_batch,
            ),
        )
        for title, groups, groups_per_step in (
            ("ours, lists", lists, size),
            ("ours, exploded", explode(lists), num_pairs),
        )
    ]
    if options.peers == "trl":
        if num_pairs % options.trl_batch:
            raise SystemExit(
                f"--trl-batch {options.trl_batch} must divide the {num_pairs} pairs of a step of "
                f"{size} lists of {num_responses}; choose --lists-per-step too"
            )
        path = contestants[1][1].groups.as_pairs.save(folder / f"exploded-{num_responses}.npz")
        trl = Peer(
            title=f"TRL, exploded, batch {options.trl_batch}",
            model=model,
            pairs=str(path),
            pairs_per_step=num_pairs,
            batch=options.trl_batch,
        )
        contestants.append((train_with_trl, trl))
    turns = take_turns(contestants, turns=options.runs, threads=options.threads)
    results = {who.title: mine for (_, who), mine in zip(contestants, turns, strict=True)}
    return report(num_responses, size, results)


def lists_that_fill(pairs: PairSet, *, num_responses: int, tokens: int) -> int:
    """Return how many lists of K responses fill a micro-batch of so many tokens."""
    some = make_lists(pairs, num_responses=num_responses, count=64)
    return max(1, int(FILL * tokens / join_groups(some).lengths.distinct.mean()))


def deal_lists(lists: Sequence[Conversations], *, steps: int) -> list[Conversations]:
    """Return the lists in an order in which all steps hold short and long ones alike."""
    distinct = join_groups(lists).lengths.distinct
    order = deal_alike(distinct, steps=steps, block=1, rng=np.random.default_rng(0))
    return [lists[i] for i in order]


def report(num_responses: int, size: int, results: dict[str, list[Figures]]) -> dict[str, Any]:
    """Return the rows, goals and figures of lists of K responses."""
    lists, exploded, *_ = results.values()
    speeds = [a / b for a, b in zip(*map(pairs_per_second, (lists, exploded)), strict=True)]
    tokens, needed = (
        [b[of] / a[of] for a, b in zip(lists, exploded, strict=True)]
        for of in ("distinct", "flops")
    )
    share = Spread.of(s / t for s, t in zip(speeds, tokens, strict=True))
    of_needed = Spread.of(s / f for s, f in zip(speeds, needed, strict=True))
    title = (
        f"K = {num_responses}: lists over exploded pairs {statistics.median(speeds):.2f}, distinct "
        f"tokens of exploded pairs over lists {statistics.median(tokens):.2f} (FLOPs "
        f"{statistics.median(needed):.2f}); "
    )
    of_tokens, of_flops = "of the ratio of distinct tokens", "of the ratio of FLOPs"
    lines = [
        goal(f"{title}{of_tokens}", share.median, OF_TOKEN_RATIO)
        if num_responses > 2
        else f"{title}{of_tokens}: {share.median:.2f}",
        f"K = {num_responses}: {of_flops}: {of_needed.cell()}",
    ]
    losses = np.array([[turn["loss"] for turn in mine] for mine in results.values()])
    differ = float((losses.max(axis=0) - losses.min(axis=0)).max())
    lines.append(
        limit(f"K = {num_responses}: most that a step's loss differs", differ, SAME_LOSS, ".1e")
    )
    peak = max(turn["matrix_peak"] for turn in [*lists, *exploded])
    return {
        "rows": [row(num_responses, title, mine, lists, peak) for title, mine in results.items()],
        "goals": lines,
        "figures": {
            "responses": num_responses,
            "lists_per_step": size,
            "lists_over_exploded": Spread.of(speeds),
            "tokens_exploded_over_lists": statistics.median(tokens),
            "flops_exploded_over_lists": statistics.median(needed),
            "of_token_ratio": share,
            "of_flops_ratio": of_needed,
            "losses_differ": differ,
            "turns": results,
        },
    }


def row(
    num_responses: int,
    title: str,
    turns: Sequence[Figures],
    lists: Sequence[Figures],
    matrix_peak: float,
) -> list[str]:
    """Return the cells of one trainer."""
    cells = [
        str(num_responses),
        title,
        Spread.of(pairs_per_second(turns)).cell(),
        ratio(lists, turns).cell(),
    ]
    memory = f"{turns[-1]['peak_memory'] / 1e9:.2f}"
    if "flops" not in turns[-1]:  # another trainer, which does not say
        return [*cells, "", "", "", "", memory]
    reached = statistics.median(turn["flops"] / turn["seconds"] for turn in turns)
    return [
        *cells,
        f"{statistics.median(turn['distinct'] for turn in turns):,.0f}",
        f"{statistics.median(turn['micro_batches'] for turn in turns):.0f}",
        f"{reached / matrix_peak:.2f}",
        f"{statistics.median(turn['preparing'] for turn in turns):.2f}",
        memory,
    ]


if __name__ == "__main__":
    main()
