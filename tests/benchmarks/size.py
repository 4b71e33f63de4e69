"""Pairs per second of whole Ray runs as the pairs grow, and as the workers do.

Runs of the debug recipe's model on generated pairs, in turn, as a user would start them, so many
steps each; the speed is the steady state, the first step left out. Each worker has one thread.

    python tests/benchmarks/size.py [--pairs 1000 10000 100000] [--workers 1 2] [--runs 5]

The model is small, so that what grows with the pairs or the workers would show. Workers beyond the
cores share them with each other and with Ray's own processes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import ROOT, describe_machine
from ray_overhead import train_with_ray, wait_share
from report import Spread, goal, markdown_table, print_report
from streaming_memory import write_rows

sys.path.insert(0, str(ROOT))

FLAT = 0.9
"""Least pairs per second on the most pairs over those on the fewest, to call it flat."""


def main() -> None:
    """Run all in turn and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    middle, fewest = sorted(options.pairs)[len(options.pairs) // 2], min(options.workers)
    sizes = [(count, fewest) for count in options.pairs]
    sizes += [(middle, workers) for workers in options.workers if workers != fewest]
    results: dict[tuple[int, int], list[dict[str, Any]]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory(prefix="rm_ray-size-") as name:
        folder = Path(name)
        files = {c: write_rows(folder / f"{c}.jsonl", c) for c in options.pairs}
        for run in range(options.runs):
            for pairs, workers in sizes:
                results[pairs, workers].append(
                    train_on(folder, files[pairs], f"{pairs}-{workers}-{run}", options, workers)
                )
    speeds = {
        size: Spread.of(result["pairs_per_second"] for result in mine)
        for size, mine in results.items()
    }
    small, large = (
        speeds[count, fewest].median for count in (min(options.pairs), max(options.pairs))
    )
    one, all_of_them = (speeds[middle, w].median for w in (fewest, max(options.workers)))
    print_report(
        f"{describe_machine()}; {options.runs} runs of {options.steps} steps each, in turn, "
        "medians (least to most)",
        markdown_table(
            ["pairs", "workers", "pairs/s", "of a step waiting for data"],
            [
                [f"{pairs:,}", str(workers), speeds[pairs, workers].cell(".0f"),
                 f"{statistics.median(r['wait_share'] for r in mine):.4f}"]
                for (pairs, workers), mine in results.items()
            ],
        ),
        f"- {goal('pairs/s on the most pairs over the fewest', large / small, FLAT)}\n"
        f"- pairs/s on {max(options.workers)} workers over {fewest}: {all_of_them / one:.2f}",
        figures=[
            {"pairs": pairs, "workers": workers, "runs": mine}
            for (pairs, workers), mine in results.items()
        ],
    )  # fmt: skip


def train_on(
    folder: Path, file: Path, name: str, options: argparse.Namespace, workers: int
) -> dict[str, float]:
    """Train on a file of pairs; return the speed and the share of a step spent waiting."""
    settings = ("--data.train", str(file), "--cluster.num_workers", str(workers))
    result = train_with_ray(folder, name, options.steps, 1, *settings)
    return {
        "pairs_per_second": result["pairs_per_second"],
        "wait_share": wait_share(Path(result["folder"])),
        "seconds": result["seconds"],
    }


if __name__ == "__main__":
    main()
