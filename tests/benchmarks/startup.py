"""The debug recipe's second run to its first step, beside the bare cost of starting up.

The bare cost is that of starting Ray and importing torch and transformers in one worker. An empty
``TorchTrainer`` has a function that imports them: one line says when it has, another when ``fit``
returns. All run in turn, each in a process of its own; the token cache is there already.

    python tests/benchmarks/startup.py [--runs 5]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import describe_machine
from ray_overhead import train_with_ray
from report import Spread, limit, markdown_table, print_report

BARE = """
import time
began = time.time()
import ray
ray.init(log_to_driver=False, logging_level="ERROR")
@ray.remote
class Worker:
    def load(self):
        import torch, transformers
        transformers.LlamaForSequenceClassification
ray.get(Worker.remote().load.remote())
print(time.time() - began, flush=True)
"""

EMPTY_TRAINER = """
import os, sys, time
began = time.time()
os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
ray.init(log_to_driver=False, logging_level="ERROR")
def load():
    import torch, transformers
    transformers.LlamaForSequenceClassification
    return time.time() - began
scaling, run = ScalingConfig(num_workers=1), RunConfig(storage_path=sys.argv[1])
fit = TorchTrainer(load, scaling_config=scaling, run_config=run).fit()
print(fit.return_value, time.time() - began, flush=True)
"""

OURS, BARE_TITLE = "debug recipe, second run", "bare Ray and imports"

LOADED_TITLE, EMPTY_TITLE = "empty TorchTrainer, imports done", "empty TorchTrainer"


def main() -> None:
    """Run all in turn and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {
        title: [] for title in (BARE_TITLE, LOADED_TITLE, EMPTY_TITLE, OURS)
    }
    phases: list[dict[str, float]] = []
    threads = max(1, (os.cpu_count() or 2) - 1)
    with tempfile.TemporaryDirectory(prefix="rm_ray-startup-") as name:
        train_with_ray(Path(name), "first", 2, threads)  # which makes the token cache
        for run in range(options.runs):
            seconds[BARE_TITLE] += seconds_of(BARE)
            loaded, returned = seconds_of(EMPTY_TRAINER, f"{name}/empty-{run}")
            seconds[LOADED_TITLE].append(loaded)
            seconds[EMPTY_TITLE].append(returned)
            phases.append(train_with_ray(Path(name), f"run-{run}", 2, threads)["startup"])
            seconds[OURS].append(sum(phases[-1].values()))
    rows = [
        (title, Spread.of(taken).cell(".1f"), f"{ratio(seconds, OURS, title):.2f}")
        for title, taken in seconds.items()
    ]
    parts = [
        f"{phase} {statistics.median(each[phase] for each in phases):.1f}" for phase in phases[0]
    ]
    of_empty = ratio(seconds, OURS, EMPTY_TITLE)
    print_report(
        f"{describe_machine()}; {options.runs} runs in turn",
        markdown_table(("", "seconds", "the debug recipe over it"), rows),
        f"of the debug recipe, medians: {', '.join(parts)}",
        f"- {limit('first step over an empty TorchTrainer', of_empty, 1.25)}",
        figures={"seconds": seconds, "phases": phases},
    )


def seconds_of(program: str, *arguments: str) -> list[float]:
    """Return the seconds that a program prints as its last line."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def ratio(seconds: dict[str, list[float]], title: str, other: str) -> float:
    """Return the median of the turns' ratios of two lines."""
    pairs = zip(seconds[title], seconds[other], strict=True)
    return statistics.median(one / two for one, two in pairs)


if __name__ == "__main__":
    main()
