"""Peak memory of what streams rows, on N and on 10 N of them: it should not grow with them.

That is the build of the token cache, or an audit. Each runs in a process and a local Ray of its
own, in turn. Memory is the unique set size of the driver and all Ray processes together, beside the
object store, whose size is fixed.

    python tests/benchmarks/streaming_memory.py [--work audit] [--rows 20000] [--runs 3]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from machine import ROOT, describe_machine

sys.path.insert(0, str(ROOT))

OBJECT_STORE_BYTES = 256 * 2**20


def main() -> None:
    """Run the builds in turn and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", choices=[*WORKS], default="cache")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(WORKS[options.work], options.one)))
        return
    counts = (options.rows, 10 * options.rows)
    measured: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory(prefix="rm_ray-memory-") as folder:
        files = {count: write_rows(Path(folder) / f"{count}.jsonl", count) for count in counts}
        for _ in range(options.runs):
            for count in counts:
                command = [sys.executable, __file__, "--work", options.work]
                command += ["--one", str(files[count])]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                measured[count].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{describe_machine()}; {options.work}, medians of {options.runs} runs\n")
    print(
        "| rows | file MB | peak MB, driver | peak MB, all processes | object store MB | rows/s |"
    )
    print("|---|---|---|---|---|---|")
    for count, runs in measured.items():
        names = ("file_mb", "driver_mb", "all_mb", "store_mb", "rows_per_second")
        cells = [f"{statistics.median(run[name] for run in runs):.0f}" for name in names]
        print(f"| {count:,} | {' | '.join(cells)} |")
    small, large = (statistics.median(r["all_mb"] for r in runs) for runs in measured.values())
    print(f"\n10 times the rows: {large / small:.2f} times the peak")
    print(f"\n{json.dumps(measured)}")


def write_rows(path: Path, count: int) -> Path:
    """Write generated pairs as JSON Lines."""
    from rm_ray.data.sources.synthetic import generate_pairs

    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in generate_pairs("train", count))
    return path


def build_cache(source: Path, folder: Path) -> int:
    """Build one token cache; return the rows."""
    from rm_ray.config.sections.data import DataConfig
    from rm_ray.data.cache.cache_build import build_token_cache
    from rm_ray.data.tokens.tokenizer import load_tokenizer
    from rm_ray.storage import Storage

    cache = build_token_cache(
        [str(source)], DataConfig(), load_tokenizer("builtin"), seed=0,
        storage=Storage.open(str(folder)),
    )  # fmt: skip
    return cache.num_groups + cache.num_refused


def audit(source: Path, folder: Path) -> int:
    """Audit the rows against an evaluation set; return how many there are."""
    from rm_ray.audit.audit import audit_data
    from rm_ray.audit.audit_sources import open_sources
    from rm_ray.config.sections.data import DataConfig
    from rm_ray.storage import Storage

    output = Storage.open(str(folder))
    against = {"bench": ["builtin:test"]}
    opened = open_sources([str(source)], against, DataConfig(), output, seed=0)
    return audit_data(opened, output, similarity=0.8).tally.rows


WORKS: dict[str, Callable[[Path, Path], int]] = {"cache": build_cache, "audit": audit}


def measure(work: Callable[[Path, Path], int], source: Path) -> dict[str, float]:
    """Do the work and return what it took."""
    import ray

    from rm_ray.cluster.ray_cluster import ray_cluster
    from rm_ray.config.sections.cluster import ClusterConfig

    ray.init(
        address="local",
        num_cpus=os.cpu_count(),
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level="ERROR",
        log_to_driver=False,
    )
    peak = {"driver_mb": 0.0, "all_mb": 0.0, "store_mb": 0.0}
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(peak, done))
    with ray_cluster(ClusterConfig()), tempfile.TemporaryDirectory() as folder:
        watcher.start()
        started = time.monotonic()
        rows = work(source, Path(folder))
        seconds = time.monotonic() - started
        done.set()
        watcher.join()
    ray.shutdown()
    return {"file_mb": source.stat().st_size / 1e6, "rows_per_second": rows / seconds, **peak}


def watch(peak: dict[str, float], done: threading.Event) -> None:
    """Sample the memory of this process and its descendants until told to stop."""
    this = psutil.Process()
    while not done.wait(0.2):
        sizes = []
        for process in [this, *this.children(recursive=True)]:
            try:
                sizes.append(process.memory_full_info())
            except psutil.NoSuchProcess:
                continue
        peak["driver_mb"] = max(peak["driver_mb"], sizes[0].uss / 1e6)
        peak["all_mb"] = max(peak["all_mb"], sum(size.uss for size in sizes) / 1e6)
        peak["store_mb"] = max(peak["store_mb"], max(size.shared for size in sizes) / 1e6)


if __name__ == "__main__":
    main()
