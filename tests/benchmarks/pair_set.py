"""Pairs to measure with, real, built-in or generated, and a file of them to carry along.

    python tests/benchmarks/pair_set.py real pairs.npz [--max-length 1024]

writes one, so that ``core.py --pairs pairs.npz`` needs neither the tokenizer nor Ray.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from machine import ROOT

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from rm_ray.data.cache.group_columns import GroupColumns  # noqa: E402
from rm_ray.data.cache.group_tokens import (  # noqa: E402
    GroupLengths,
    GroupTokens,
    ragged_arange,
    starts_of,
)

SHARED_DATA = ROOT.parent / "shared" / "data"
TOKENIZERS = {"real": str(SHARED_DATA / "tokenizer_bpe4k"), "builtin": "builtin"}
"""Where pairs come from by name, and the tokenizer they are read with."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What building a model asks of a tokenizer."""

    size: int
    pad_token_id: int
    bos_token_id: None = None
    eos_token_id: None = None

    def __len__(self) -> int:
        """Return how many tokens there are."""
        return self.size


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """N pairs in memory, with what ``load_step`` asks of a token table."""

    name: str
    pairs: GroupTokens
    vocabulary: Vocabulary

    @property
    def lengths(self) -> GroupLengths:
        """Tokens of every pair."""
        return self.pairs.lengths

    @cached_property
    def columns(self) -> GroupColumns:
        """The pairs' columns, without margins."""
        return GroupColumns.of_pairs(self.lengths)

    @property
    def chosen(self) -> np.ndarray:
        """Tokens of every chosen conversation."""
        return self.lengths.conversations[0::2]

    @property
    def rejected(self) -> np.ndarray:
        """Tokens of every rejected conversation."""
        return self.lengths.conversations[1::2]

    @property
    def distinct_per_pair(self) -> float:
        """Tokens of a pair with the shared prefix counted once, on average."""
        return float(self.lengths.distinct.mean())

    @property
    def both_over_distinct(self) -> float:
        """How many times the distinct tokens both conversations have."""
        return float(self.lengths.all.sum() / self.lengths.distinct.sum())

    def gather(self, pairs: np.ndarray) -> GroupTokens:
        """Return the token ids of some pairs, in the order asked for."""
        return self.read(pairs, self.lengths[pairs])

    def read(self, pairs: np.ndarray, lengths: GroupLengths) -> GroupTokens:
        """Return the token ids of some pairs, whose lengths are known."""
        places = ragged_arange(self._starts[pairs], lengths.distinct)
        return GroupTokens(tokens=self.pairs.tokens[places], lengths=lengths)

    @cached_property
    def _starts(self) -> np.ndarray:
        return starts_of(self.lengths.distinct)

    def select(self, pairs: np.ndarray) -> PairSet:
        """Return some of the pairs, in the order asked for."""
        return replace(self, pairs=self.gather(pairs))

    def deal(self, *, steps: int, size: int, seed: int = 0) -> PairSet:
        """Return ``steps`` times ``size`` pairs, as long as all, and alike from step to step."""
        count = steps * size
        if len(self.pairs) < count:
            raise SystemExit(
                f"{steps} steps of {size} pairs need {count} pairs, and '{self.name}' has "
                f"{len(self.pairs)}; ask for fewer steps, runs or pairs per step"
            )
        rng = np.random.default_rng(seed)
        by_length = np.argsort(self.lengths.longest, kind="stable")
        spacing = len(by_length) / count
        places = (np.arange(count) * spacing).astype(np.int64)
        chosen = by_length[places + rng.integers(0, int(spacing), size=count)]
        order = deal_alike(self.lengths.longest[chosen], steps=steps, block=1, rng=rng)
        return self.select(chosen[order])

    def unshared(self) -> PairSet:
        """Return the same pairs with nothing shared: both conversations of a pair in full.

        Packed, that is what trainers compute that take the padding out but share no prefix, such
        as OpenRLHF with ``--ds.packing_samples``.
        """
        pairs = self.gather(np.arange(len(self.pairs)))
        tokens = [pairs.conversation(i, side) for i in range(len(pairs)) for side in (0, 1)]
        lengths = GroupLengths.of_pairs(
            chosen=self.chosen, rejected=self.rejected, prefix=np.zeros_like(self.lengths.prefix)
        )
        return replace(self, pairs=GroupTokens(tokens=np.concatenate(tokens), lengths=lengths))

    def save(self, path: Path) -> Path:
        """Write a file that ``load`` reads."""
        np.savez(
            path,
            tokens=self.pairs.tokens,
            chosen=self.chosen,
            rejected=self.rejected,
            prefix=self.lengths.prefix,
            name=self.name,
            vocabulary=[self.vocabulary.size, self.vocabulary.pad_token_id],
        )
        return path

    @classmethod
    def load(cls, path: Path) -> PairSet:
        """Read a file that ``save`` wrote."""
        with np.load(path) as file:
            lengths = GroupLengths.of_pairs(
                chosen=file["chosen"], rejected=file["rejected"], prefix=file["prefix"]
            )
            size, pad_token_id = file["vocabulary"].tolist()
            return cls(
                name=str(file["name"]),
                pairs=GroupTokens(tokens=file["tokens"], lengths=lengths),
                vocabulary=Vocabulary(size=size, pad_token_id=pad_token_id),
            )


def deal_alike(
    lengths: np.ndarray, *, steps: int, block: int, rng: np.random.Generator
) -> np.ndarray:
    """Return an order of pairs in which all steps hold short and long ones alike.

    ``lengths`` ``[N]`` are cut, from the shortest to the longest, into blocks of neighbours; of
    each ``steps`` blocks in a row every step gets one, and has them in any order.
    """
    blocks = np.argsort(lengths, kind="stable").reshape(-1, steps, block)
    for neighbours in blocks:
        rng.shuffle(neighbours)
    by_step = blocks.transpose(1, 0, 2).copy()
    for mine in by_step:
        rng.shuffle(mine)
    order: np.ndarray = by_step.reshape(-1)
    return order


def read_pairs(source: str, *, max_length: int = 1024) -> PairSet:
    """Return the real pairs, the built-in ones, or those of a file."""
    if source not in TOKENIZERS:
        return PairSet.load(Path(source))
    from tables import make_table  # needs Ray's companions, which a bare machine lacks

    from rm_ray.data.sources.fragments import Fragment
    from rm_ray.data.sources.readers import read_rows
    from rm_ray.data.sources.synthetic import generate_pairs
    from rm_ray.data.tokens.tokenizer import load_tokenizer

    tokenizer: Any = load_tokenizer(TOKENIZERS[source])
    rows = generate_pairs("train")
    if source == "real":
        fragment = Fragment(kind="jsonl", location=str(SHARED_DATA / "train.jsonl.gz"))
        rows = map(json.loads, (text for _, text in read_rows(fragment)))
    with tempfile.TemporaryDirectory(prefix="rm_ray-pairs-") as folder:
        table = make_table(Path(folder, "table"), rows, tokenizer, max_length=max_length)
        everything = table.gather(np.arange(len(table)))
    return PairSet(
        name=source,
        pairs=everything,
        vocabulary=Vocabulary(size=len(tokenizer), pad_token_id=tokenizer.pad_token_id),
    )


def pairs_that_share(
    share: float, *, count: int, tokens: int = 512, vocabulary: int = 4_098, seed: int = 0
) -> PairSet:
    """Return pairs of random tokens whose conversations have a share of their length in common.

    A conversation has ``tokens`` on average, from three quarters to five quarters of that.
    """
    rng = np.random.default_rng(seed)
    sides = rng.integers(tokens * 3 // 4, tokens * 5 // 4, size=(2, count), endpoint=True)
    lengths = GroupLengths.of_pairs(
        chosen=sides[0].astype(np.int32),
        rejected=sides[1].astype(np.int32),
        prefix=np.rint(share * sides.mean(axis=0)).clip(0, sides.min(axis=0) - 1).astype(np.int32),
    )
    ids = rng.integers(0, vocabulary - 1, size=int(lengths.distinct.sum()), dtype=np.int32)
    return PairSet(
        name=f"shared {share:g}",
        pairs=GroupTokens(tokens=ids, lengths=lengths),
        vocabulary=Vocabulary(size=vocabulary, pad_token_id=vocabulary - 1),
    )


def main() -> None:
    """Write a file of pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", choices=sorted(TOKENIZERS))
    parser.add_argument("file", type=Path)
    parser.add_argument("--max-length", type=int, default=1024)
    options = parser.parse_args()
    pairs = read_pairs(options.source, max_length=options.max_length)
    pairs.save(options.file)
    print(f"{len(pairs.pairs):,} pairs of {pairs.distinct_per_pair:.0f} distinct tokens")


if __name__ == "__main__":
    main()
