"""What checkpoints, the mirror, an evaluator, and an MLflow or Hub that is away cost the steps.

Runs of the debug recipe's model on its pairs, in turn, on one worker: without checkpoints; with
one every few steps; with nothing at the address of MLflow; with an MLflow that takes connections
and never answers; with every checkpoint published; with a Hub that never answers; with every
checkpoint evaluated by the worker; with an evaluator beside it, on one core.

    python tests/benchmarks/interference.py [--runs 5] [--steps 200] [--every 20] [--threads 1]
"""

import argparse
import json
import os
import socket
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from machine import describe_machine
from ray_overhead import train_with_ray
from report import Spread, limit, markdown_table, print_report
from servers import HubServer

CHECKPOINTS = "a checkpoint every {} steps"
AWAY, FROZEN = "nothing where MLflow should be", "an MLflow that never answers"
MIRRORED, HUB_FROZEN = "the same, each published", "the same, and a Hub that never answers"
WITHIN, BESIDE = "each evaluated by the worker", "each evaluated beside it"
PLAIN = "no checkpoints, MLflow in a file"
PUBLISHED = (
    "--hub.repo_id", "someone/rewards", "--hub.every", "checkpoint", "--hub.patience_s", "1",
)  # fmt: skip
"""The end of a run is not waited for: the steps are what is measured."""
NEVER = ("--checkpoint.every_steps", "0")


def main() -> None:
    """Run all in turn and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    options = parser.parse_args()
    saving = CHECKPOINTS.format(options.every)
    titles = (PLAIN, saving, AWAY, FROZEN, MIRRORED, HUB_FROZEN, WITHIN, BESIDE)
    runs: dict[str, list[dict[str, Any]]] = {title: [] for title in titles}
    with (
        tempfile.TemporaryDirectory(prefix="rm_ray-cost-") as name,
        ports() as (free, frozen),
        HubServer(Path(name) / "hub").running() as hub,
    ):
        settings = {
            PLAIN: NEVER,
            saving: ("--checkpoint.every_steps", str(options.every)),
            AWAY: (*NEVER, "--mlflow.tracking_uri", f"http://127.0.0.1:{free}"),
            FROZEN: (*NEVER, "--mlflow.tracking_uri", f"http://127.0.0.1:{frozen}"),
            MIRRORED: ("--checkpoint.every_steps", str(options.every), *PUBLISHED),
            HUB_FROZEN: ("--checkpoint.every_steps", str(options.every), *PUBLISHED),
            WITHIN: (
                "--checkpoint.every_steps", str(options.every),
                "--evaluation.every_steps", str(options.every),
            ),
            BESIDE: (
                "--checkpoint.every_steps", str(options.every), "--evaluation.where", "beside",
            ),
        }  # fmt: skip
        environments = {
            MIRRORED: hub.environment,
            HUB_FROZEN: hub.environment | {"HF_ENDPOINT": f"http://127.0.0.1:{frozen}"},
        }
        for turn in range(options.runs):
            for i, (title, own) in enumerate(settings.items()):
                run = f"run-{i}-{turn}"
                own = ("--checkpoint.keep_best_by", "None", *own)  # which would evaluate at each
                if title in environments:
                    own = (*own, "--hub.revision_prefix", f"{run}-")
                result = train_with_ray(
                    Path(name), run, options.steps, options.threads, *own,
                    **environments.get(title, {}),
                )  # fmt: skip
                runs[title].append(measure(Path(name) / run, result))
    print_report(
        f"{describe_machine()}; {options.runs} runs of {options.steps} steps each, in turn; "
        f"{options.threads} threads of arithmetic",
        table(runs),
        judge(runs, saving, num_saved=len(range(options.every, options.steps + 1, options.every))),
        figures=runs,
    )


@contextmanager
def ports() -> Iterator[tuple[int, int]]:
    """Give a port where nothing listens, and one that takes connections and never answers."""
    with socket.socket() as bound, socket.socket() as listening:
        for each in (bound, listening):
            each.bind(("127.0.0.1", 0))
        listening.listen(128)
        yield bound.getsockname()[1], listening.getsockname()[1]


def measure(run: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Return what a run says of its steps, the first left out, and of its checkpoints."""
    lines = (run / "history.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    speeds = [r["metrics"]["perf/pairs_per_second"] for r in steps if r["kind"] == "train"]
    return {
        "pairs_per_second": result["pairs_per_second"],
        "pairs_per_second_median": statistics.median(speeds[1:]),
        "step_seconds": result["time"]["steps"],
        "evaluation_seconds": result["time"].get("evaluation", 0.0),
        "checkpoint_seconds": result["time"].get("checkpoints", 0.0),
        "checkpoint_wait_seconds": steps[-1]["metrics"].get("perf/checkpoint_wait_seconds", 0.0),
        "mlflow_run_id": result["mlflow_run_id"],
    }


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Return the speeds, and the seconds that steps stood still for checkpoints."""
    rows = []
    for title, measured in runs.items():
        speeds = [one["pairs_per_second"] for one in measured]
        ratios = [a / b["pairs_per_second"] for a, b in zip(speeds, runs[PLAIN], strict=True)]
        still = [one["checkpoint_seconds"] for one in measured]
        cells = (Spread.of(speeds).cell(".1f"), Spread.of(ratios).cell(".3f"))
        rows.append((title, *cells, Spread.of(still).cell(".2f")))
    header = ("", "pairs/s of the steps", "over the first", "seconds stood still for checkpoints")
    return markdown_table(header, rows)


def judge(runs: dict[str, list[dict[str, Any]]], saving: str, *, num_saved: int) -> str:
    """Return what a checkpoint costs, and whether an MLflow that is away slows the steps."""
    seconds = [one["checkpoint_seconds"] / num_saved for one in runs[saving]]
    waits = [one["checkpoint_wait_seconds"] / num_saved for one in runs[saving]]
    lines = [
        f"{num_saved} checkpoints a run; for each the steps stood still for "
        f"{Spread.of(seconds).cell('.3f')} s, of which {Spread.of(waits).cell('.3f')} s was the "
        "wait for the one before"
    ]
    for title in (AWAY, FROZEN):
        assert all(one["mlflow_run_id"] is None for one in runs[title])
        slower = [
            plain["pairs_per_second"] / one["pairs_per_second"]
            for one, plain in zip(runs[title], runs[PLAIN], strict=True)
        ]
        lines.append(limit(f"slower with {title}", statistics.median(slower), 1.02, ".3f"))
    for title in (MIRRORED, HUB_FROZEN):
        pairs = list(zip(runs[title], runs[saving], strict=True))
        slower = [alone["pairs_per_second"] / one["pairs_per_second"] for one, alone in pairs]
        lines.append(limit(f"slower with {title}", statistics.median(slower), 1.02, ".3f"))
        added = [(one["step_seconds"] - alone["step_seconds"]) / num_saved for one, alone in pairs]
        lines.append(f"{title}: {Spread.of(added).cell('.2f')} s of steps for each checkpoint")
    cores = os.cpu_count() or 1
    for title in (WITHIN, BESIDE):
        pairs = list(zip(runs[title], runs[saving], strict=True))
        slower = [alone["pairs_per_second"] / one["pairs_per_second"] for one, alone in pairs]
        lines.append(limit(f"steps slower, {title}", statistics.median(slower), most(title), ".3f"))
        waited = Spread.of([one["evaluation_seconds"] for one, _ in pairs]).cell(".1f")
        lines.append(f"{title}: {waited} s in which training stood still, on {cores} cores")
    return "\n".join(f"- {line}" for line in lines)


def most(title: str) -> float:
    """Return how much slower steps may be: an evaluator on one core may take its share."""
    cores = os.cpu_count() or 2
    return 1.02 if title == WITHIN or cores < 2 else cores / (cores - 1)


if __name__ == "__main__":
    main()
