"""All benchmarks, one after another, into one file of Markdown and one of JSON.

    python tests/benchmarks/run.py [--only peers core-512] [--out FOLDER] [--quick]

Each is a command of its own, which prints its tables and, as its last line, its figures. Leave the
machine alone meanwhile. The files are written anew after each, so that nothing is lost with those
that follow.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import ROOT, describe_machine

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is measured, the command that does it, and one that shows quickly that it works."""

    title: str
    command: tuple[str, ...]
    quick: tuple[str, ...]


ONE_RUN = ("--runs", "1")
SMALL = ("--hidden", "64", "--heads", "1", "--layers", "2", "--intermediate", "128")
WIDE = ("--hidden", "512", "--heads", "8", "--intermediate", "2048")

BENCHMARKS = {
    "peers-real": Benchmark(
        title="Beside other trainers, on real pairs",
        command=("peers.py", "--pairs", "real"),
        quick=(*ONE_RUN, *SMALL, "--pairs-per-step", "8"),
    ),
    "peers-builtin": Benchmark(
        title="Beside other trainers, on the built-in pairs",
        command=("peers.py", "--pairs", "builtin", "--pairs-per-step", "64"),
        quick=(*ONE_RUN, *SMALL, "--pairs-per-step", "8"),
    ),
    "core-512": Benchmark(
        title="Beside the limit, at hidden size 512",
        command=("core.py", *WIDE, "--pairs-per-step", "16", "--layouts", "packed"),
        quick=(*ONE_RUN, *SMALL, "--pairs-per-step", "4"),
    ),
    "shares": Benchmark(
        title="As more of a conversation is prompt",
        command=("core.py", "--shares", "0.1", "0.3", "0.5", "0.7", "0.9", "--pairs-per-step", "4",
                 "--tokens-per-micro-batch", "4096"),
        quick=(*ONE_RUN, *SMALL, "--shares", "0.5", "--pairs-per-step", "4"),
    ),
    "memory": Benchmark(
        title="Memory of a step of 8 pairs in one forward pass",
        command=("core.py", "--pairs-per-step", "8", "--tokens-per-micro-batch", "1000000"),
        quick=(*ONE_RUN, *SMALL),
    ),
    "estimate": Benchmark(
        title="Memory as it is estimated before a run, beside what processes take",
        command=("memory_estimate.py",),
        quick=(*SMALL, "--key-value-heads", "1", "--vocab", "500", "--only", "1 rank", "float32"),
    ),
    "planning": Benchmark(
        title="Planning an epoch of 10 million pairs for 64 ranks",
        command=("planning.py",),
        quick=(*ONE_RUN, "--pairs", "300000", "--steps", "100"),
    ),
    "size": Benchmark(
        title="As the pairs and the workers grow",
        command=("size.py",),
        quick=(*ONE_RUN, "--pairs", "1000", "2000", "--workers", "1", "--steps", "4"),
    ),
    "ray-overhead": Benchmark(
        title="Ray beside the loop without it",
        command=("ray_overhead.py",),
        quick=(*ONE_RUN, "--steps", "4"),
    ),
    "startup": Benchmark(
        title="From the command to the first step",
        command=("startup.py",),
        quick=ONE_RUN,
    ),
    "interference": Benchmark(
        title="Steps beside checkpoints, and beside an MLflow that is away",
        command=("interference.py",),
        quick=(*ONE_RUN, "--steps", "6", "--every", "2"),
    ),
    "tokenising": Benchmark(
        title="Tokenisation beside datasets.map",
        command=("tokenising.py",),
        quick=("--turns", "1", "--tokenizer", "builtin"),
    ),
    "token-cache-memory": Benchmark(
        title="Memory of the token cache build",
        command=("streaming_memory.py",),
        quick=(*ONE_RUN, "--rows", "500"),
    ),
    "audit-memory": Benchmark(
        title="Memory of an audit",
        command=("streaming_memory.py", "--work", "audit", "--runs", "1"),
        quick=("--rows", "500"),
    ),
    "mislabelled": Benchmark(
        title="Flipped labels among the most suspect",
        command=("mislabelled.py",),
        quick=("--seeds", "1", "--visits", "600", "--epochs", "3", "--sets", "builtin"),
    ),
    "long": Benchmark(
        title="Long conversations: attention over a pair, the plan of many",
        command=("long.py",),
        quick=(*ONE_RUN, *SMALL, "--lengths", "512", "1024", "--pairs", "5000", "--ranks", "8",
               "--budgets", "16384"),
    ),
    "exploded": Benchmark(
        title="Lists beside the same lists exploded into pairs",
        command=("exploded.py", "--runs", "3"),
        quick=(*ONE_RUN, *SMALL, "--responses", "4", "--tokens-per-micro-batch", "2048"),
    ),
    "planted": Benchmark(
        title="Objectives beside a known utility",
        command=("planted.py",),
        quick=("--seeds", "1", "--tokens", "20000", "--only", "pairs", "lists/plackett_luce"),
    ),
    "adapters": Benchmark(
        title="Adapters and parts of a model beside all of it",
        command=("adapters.py",),
        quick=(*ONE_RUN, "--steps", "4", "--pairs-per-step", "8"),
    ),
    "serving": Benchmark(
        title="The reward server beside plain ones",
        command=("serving.py",),
        quick=(*ONE_RUN, *SMALL, "--rewards", "32", "--clients", "4"),
    ),
}  # fmt: skip


def main() -> None:
    """Run what is asked for; exit with 1 where something failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[""], help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--out", type=Path, help="a temporary folder")
    parser.add_argument("--quick", action="store_true", help="see that all works; no figures")
    options = parser.parse_args()
    names = [name for name in BENCHMARKS if name.startswith(tuple(options.only))]
    if not names:
        parser.error(f"--only {' '.join(options.only)}: known are {', '.join(BENCHMARKS)}")
    out = options.out or Path(tempfile.mkdtemp(prefix="rm_ray-benchmarks-"))
    out.mkdir(parents=True, exist_ok=True)
    machine, sections = describe_machine(), []
    for name in names:
        sections.append(measure(name, quick=options.quick))
        write(out, machine, sections)
        print(f"{name}: {sections[-1]['status']} after {sections[-1]['seconds']:.0f} s", flush=True)
    print(f"{out / 'benchmarks.md'}, {out / 'benchmarks.json'}")
    sys.exit(any(section["status"] != "done" for section in sections))


def measure(name: str, *, quick: bool) -> dict[str, Any]:
    """Run one benchmark; return its report and its figures."""
    benchmark = BENCHMARKS[name]
    arguments = [*benchmark.command, *(benchmark.quick if quick else ())]
    started, load = time.monotonic(), os.getloadavg()[0]
    command = [sys.executable, str(HERE / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    section = {
        "name": name,
        "title": benchmark.title,
        "command": " ".join(["python", f"tests/benchmarks/{arguments[0]}", *arguments[1:]]),
        "seconds": time.monotonic() - started,
        "load_before": load,
        "status": "done",
    }
    if done.returncode:
        return {
            **section,
            "status": f"failed with {done.returncode}",
            "report": "",
            "figures": None,
        }
    report, _, figures = done.stdout.rstrip().rpartition("\n")
    return {**section, "report": report.strip(), "figures": json.loads(figures)}


def write(folder: Path, machine: str, sections: list[dict[str, Any]]) -> None:
    """Write both files."""
    pages = [
        f"## {section['title']}\n\n`{section['command']}` ({section['status']}, "
        f"{section['seconds']:.0f} s, load before it {section['load_before']:.1f})\n\n"
        f"{section['report']}"
        for section in sections
    ]
    (folder / "benchmarks.md").write_text("\n\n".join(["# Benchmarks", machine, *pages]) + "\n")
    figures = {"machine": machine, "benchmarks": sections}
    (folder / "benchmarks.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
