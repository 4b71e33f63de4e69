"""The variable-length call beside the grouped one, alone and in models of every family."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import families
import torch
from torch import Tensor

from gpu.bench import Bench
from gpu.finding import Finding, Values, attempt
from rm_ray.batches.attention_index import Kernel
from rm_ray.batches.collate import Collator, unlabelled
from rm_ray.batches.packing import PackedGroups, pack_groups
from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.cache.group_tokens import GroupTokens
from rm_ray.model.attention import attend
from rm_ray.model.build import build_reward_model

MOST_ERROR = 2.0
"""How many times the rounding error of PyTorch's own bfloat16 attention ours may be."""

FLOOR = 4e-3
"""Errors below it, a bfloat16's spacing over the largest number, are no errors."""

FLOOR_OF_MODELS = 2e-2
"""The same where layers have rounded again and again."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape of attention; ``rows`` are all queries or only those of the last tokens."""

    heads: int = 8
    shared: int = 1
    """Query heads to a head of keys."""
    size: int = 128
    window: int | None = None
    ends: bool = False
    """Only the last token of each branch asks: one query to many keys."""
    longest: int = 300
    """Most tokens of a prefix, and of each tail: queries and keys of a branch differ by one."""
    pairs: int = 40

    @property
    def labels(self) -> Values:
        """What it is called in the table."""
        return {
            "heads": self.heads,
            "keys shared by": self.shared,
            "size": self.size,
            "window": self.window or "none",
            "queries": "1 each" if self.ends else "all",
            "longest": self.longest,
            "pairs": self.pairs,
        }


def cases() -> list[Case]:
    """Return what is tried, a kind of each first."""
    return [
        Case(size=64, shared=4, window=5),
        Case(size=128, shared=4, ends=True),
        *(Case(size=size, shared=shared) for size in (64, 128, 256) for shared in (1, 4, 8)),
        *(Case(shared=4, window=window) for window in (1, 128, 5_000)),
        *(Case(size=64, shared=shared, ends=True) for shared in (1, 8)),
        Case(size=96, shared=2),
        Case(heads=32, shared=4, longest=2_000, pairs=8),
        Case(heads=32, shared=4, pairs=200),
        Case(pairs=1),
    ]


def measure(bench: Bench) -> Iterator[Finding]:
    """Yield a row for each shape and each family."""
    for case in bench.some(cases(), 2):
        yield attempt(ALONE, case.labels, functools.partial(compare_alone, bench, case))
    for name in bench.some(list(families.FAMILIES), 2):
        for weights in ("autocast", "bf16 weights"):
            labels = {"family": name, "arithmetic": weights}
            yield attempt(MODELS, labels, functools.partial(compare_models, bench, name, weights))


ALONE = (
    "Attention alone: largest errors over the largest number, of the variable-length call in "
    "bfloat16 against float64; in brackets of PyTorch's grouped one, whose error ours may be twice"
)
MODELS = (
    "Models of 4 layers: the same of rewards against float32; of all gradients together, and of "
    "the one furthest off, the length of the difference over their own"
)


def compare_alone(bench: Bench, case: Case) -> tuple[Values, bool | None]:
    """Compare outputs and three gradients; then call it twice."""
    pairs = some_pairs(bench.pick(case.longest, 20), bench.pick(case.pairs, 4))
    inputs = some_inputs(case, pairs, bench.device)
    queries = {name: arranged(pairs, name, bench.device) for name in ("varlen", "grouped")}
    run = functools.partial(gradients_of_attention, case, inputs)
    expected = run(queries["grouped"], torch.float64)
    errors = errors_of(run(queries["varlen"], torch.bfloat16), expected)
    theirs = errors_of(run(queries["grouped"], torch.bfloat16), expected)
    values: Values = {
        name: f"{mine:.1e} ({other:.1e})"
        for name, mine, other in zip(("output", "dq", "dk", "dv"), errors, theirs, strict=True)
    }
    exact = {}
    for mode, context in (("", plain()), ("deterministic: ", deterministic())):
        with context:
            first, second = (run(queries["varlen"], torch.bfloat16) for _ in range(2))
        exact[f"{mode}forward"] = torch.equal(first[0], second[0])
        backward = zip(first[1:], second[1:], strict=True)
        exact[f"{mode}backward"] = all(torch.equal(a, b) for a, b in backward)
    values |= {f"{name} twice the same": same for name, same in exact.items()}
    pairwise = zip(errors, theirs, strict=True)
    close = all(mine <= max(MOST_ERROR * other, FLOOR) for mine, other in pairwise)
    return values, close and exact["deterministic: forward"] and exact["deterministic: backward"]


def some_pairs(longest: int, count: int) -> GroupTokens:
    """Return pairs with prefixes from none to the longest."""
    return families.some_pairs(count, seed=count, longest=longest)


def arranged(pairs: GroupTokens, kernel: Any, device: torch.device) -> PackedGroups:
    """Return a row on the device."""
    row = pack_groups(pairs, unlabelled(pairs), kernel=kernel)
    moved = Collator(layout="packed", kernel=kernel, pad_token_id=0, device=device).to_device(row)
    assert isinstance(moved, PackedGroups)
    return moved


def some_inputs(case: Case, pairs: GroupTokens, device: torch.device) -> list[Tensor]:
    """Return queries, keys, values and the output's gradient, all numbers of bfloat16."""
    tokens = int(pairs.lengths.distinct.sum())
    queries = 2 * len(pairs) if case.ends else tokens
    keys = case.heads // case.shared
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(queries, case.heads), (tokens, keys), (tokens, keys), (queries, case.heads)]
    return [
        torch.randn(*rows, case.size, device=device, generator=generator).bfloat16()
        for rows in shapes
    ]


def gradients_of_attention(
    case: Case, inputs: list[Tensor], packed: PackedGroups, dtype: torch.dtype
) -> list[Tensor]:
    """Return the output and the gradients of queries, keys and values."""
    *leaves, grad = (tensor.to(dtype) for tensor in inputs)
    for leaf in leaves:
        leaf.requires_grad_()
    queries = packed.at_ends if case.ends else packed.everywhere
    output = attend(*leaves, queries, scaling=case.size**-0.5, window=case.window)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def errors_of(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Return the largest difference of each tensor over its largest number.

    One that is next to nothing throughout, as gradients are of queries that see one key, is held
    to a hundredth.
    """
    return [
        float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-2))
        for a, b in zip(found, expected, strict=True)
    ]


@contextmanager
def plain() -> Iterator[None]:
    """Change nothing."""
    yield


@contextmanager
def deterministic() -> Iterator[None]:
    """Have PyTorch add up in the same order every time."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def compare_models(bench: Bench, name: str, weights: str) -> tuple[Values, bool | None]:
    """Compare rewards and every gradient of a family's model."""
    pairs = some_pairs(bench.pick(200, 16), bench.pick(32, 4))
    results: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
    setups: list[tuple[str, Kernel, str]] = [
        ("exact", "grouped", "float32"),
        ("ours", "varlen", weights),
        ("theirs", "grouped", weights),
    ]
    for label, kernel, arithmetic in setups:
        row = arranged(pairs, kernel, bench.device)
        results[label] = gradients_of_model(bench, name, row, arithmetic)
    rewards, gradients = results["exact"]
    together = torch.cat([gradient.flatten() for gradient in gradients.values()])
    values: Values = {}
    close = True
    for name_of_error, errors in {
        "rewards": [errors_of([results[label][0]], [rewards])[0] for label in ("ours", "theirs")],
        "gradients": [
            distance(torch.cat([results[label][1][key].flatten() for key in gradients]), together)
            for label in ("ours", "theirs")
        ],
    }.items():
        mine, other = errors
        values[name_of_error] = f"{mine:.1e} ({other:.1e})"
        close = close and mine <= max(MOST_ERROR * other, FLOOR_OF_MODELS)
    far, key = max(
        (distance(results["ours"][1][key], exact), key) for key, exact in gradients.items()
    )
    their = distance(results["theirs"][1][key], gradients[key])
    values["furthest gradient"] = f"{far:.1e} ({their:.1e}) {key}"
    return values, close


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the length of the difference over that of what is expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def gradients_of_model(
    bench: Bench, name: str, row: PackedGroups, arithmetic: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return rewards and gradients of the same random model, whatever it computes in."""
    fields = {
        **families.describe(name), "hidden_size": bench.pick(256, 64),
        "num_attention_heads": bench.pick(4, 2), "head_dim": bench.pick(64, 32),
        "intermediate_size": 128, "num_hidden_layers": bench.pick(4, 2),
    }  # fmt: skip
    if "layer_types" in fields:
        fields["layer_types"] = fields["layer_types"] * (fields["num_hidden_layers"] // 2)
    path = bench.folder / f"{name}.json"
    path.write_text(json.dumps(fields))
    tokenizer: Any = families.FakeTokenizer()
    model = build_reward_model(ModelConfig(name_or_path=str(path)), tokenizer, seed=5)
    model = model.to(bench.device).train()
    if arithmetic == "bf16 weights":
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
    with torch.autocast(bench.device.type, torch.bfloat16, enabled=arithmetic == "autocast"):
        rewards = model(row)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(len(rewards), generator=generator).to(bench.device)
    torch.autograd.backward((rewards * weights).sum())
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    return rewards.detach(), gradients
