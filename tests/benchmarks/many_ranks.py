"""Plan, stream, collectives and reports on many ranks of a cluster of 8 logical nodes of 8 slots.

Nothing is trained: each rank reads its micro-batches of every step from its own stream, meets the
others at Ray Train's barrier, beats its heart to the run's board, and reports to Ray now and then.
It loads no torch, so that 64 fit into 24 GB. On one machine all ranks share its cores, so that a
step costs the work of all of them; the processor time of one rank is what a real host would pay.

    python tests/benchmarks/many_ranks.py [--ranks 1 4 16 64] [--steps 60] [--pairs 20000]

``--whole N`` runs jobs/train.py on N ranks of such a cluster instead, with the built-in model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
os.environ["PYTHONPATH"] = str(ROOT)
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "1800"  # all start on this machine's cores

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import ray  # noqa: E402
import ray.train  # noqa: E402
from machine import describe_machine  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer  # noqa: E402
from report import markdown_table, print_report  # noqa: E402

import rm_ray.batches.stream  # noqa: E402
from rm_ray.batches.plan import PlanSettings, Steps  # noqa: E402
from rm_ray.batches.stream import PlannedGroups  # noqa: E402
from rm_ray.config.sections.data import DataConfig  # noqa: E402
from rm_ray.data.cache.cache_build import build_token_cache  # noqa: E402
from rm_ray.data.tokens.tokenizer import load_tokenizer  # noqa: E402
from rm_ray.storage import Storage  # noqa: E402
from rm_ray.tracking.channel import open_channel  # noqa: E402
from rm_ray.tracking.heartbeat import Heartbeat  # noqa: E402
from rm_ray.worker.data_config import PerRankStreams  # noqa: E402

NODES, SLOTS = 8, 8

REPORT_EVERY = 10
"""Steps between reports to Ray, which its controller takes every 2 s."""

AT_ONCE = 4
"""Ranks that begin to read at the same time, so that later ones find workers of earlier ones."""

PULSES = 50
"""Pulses that all ranks send one after another at the end, to see how many the board takes."""

BATCH = 256


def main() -> None:
    """Grow the ranks and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--whole", type=int, metavar="N")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="rm_ray-ranks-") as name,
        cluster(3 if options.whole else 2) as address,
    ):
        if options.whole:
            print(json.dumps(train_whole(Path(name), options.whole, options.steps, address)))
            return
        measured = []
        for ranks in options.ranks:
            measured.append(measure(Path(name), ranks, options.steps, options.pairs))
            print(measured[-1], file=sys.stderr, flush=True)
    rows = [
        (
            f"{one['ranks']}",
            f"{one['first_step_s']:.0f}",
            f"{1000 * one['read_s']:.1f}",
            f"{1000 * one['cpu_s']:.1f}",
            f"{1000 * one['barrier_s']:.0f}",
            f"{one['reports_per_s']:.0f}",
            f"{one['pulses_per_s']:.0f}",
            f"{one['memory_gb']:.1f}",
        )
        for one in measured
    ]
    header = (
        "ranks", "s to the first step", "ms to read a step", "of these a rank's CPU",
        "ms to meet", "reports/s", "pulses/s", "GB at the peak",
    )  # fmt: skip
    print_report(
        f"{describe_machine()}; {NODES} logical nodes of {SLOTS} slots; {options.steps} steps of "
        f"{BATCH} pairs; every pair once and all ranks in step at each size",
        markdown_table(header, rows),
        figures=measured,
    )


class cluster:  # noqa: N801  (it reads as one)
    """Eight Ray nodes on this machine, each with eight slots for ranks and CPUs of its own."""

    def __init__(self, num_cpus: int) -> None:
        """A node keeps as many idle workers as it has CPUs; a rank that trains takes one."""
        self._num_cpus = num_cpus

    def __enter__(self) -> str:
        """Start them; return the address."""
        num_cpus = self._num_cpus
        node = {"num_cpus": num_cpus, "resources": {"slot": SLOTS}, "object_store_memory": 10**8}
        self._cluster = Cluster(
            initialize_head=True, head_node_args=node | {"include_dashboard": False}
        )
        for _ in range(NODES - 1):
            self._cluster.add_node(**node)
        ray.init(address=self._cluster.address, logging_level="ERROR", log_to_driver=False)
        return str(self._cluster.address)

    def __exit__(self, *_: object) -> None:
        """Stop them."""
        ray.shutdown()
        self._cluster.shutdown()


def measure(folder: Path, ranks: int, steps: int, pairs: int) -> dict[str, Any]:
    """Stream an epoch's first steps to so many ranks."""
    storage = Storage.open(str(folder / "storage"))
    source = [f"builtin:train={min(pairs, 6_000)}"]
    cache = build_token_cache(
        source, DataConfig(max_length=256), load_tokenizer("builtin"), seed=0, storage=storage
    )
    settings = PlanSettings(
        global_batch_size=BATCH, tokens_per_micro_batch=2_048, epochs=1 + pairs // cache.num_groups
    )
    plan = Steps(num_groups=cache.num_groups, settings=settings)
    total = min(steps, plan.total)
    answers, begun = folder / f"answers-{ranks}", folder / f"begun-{ranks}"
    answers.mkdir()
    begun.mkdir()
    channel = open_channel(f"board-{ranks}")
    began = time.time()
    trainer = DataParallelTrainer(
        read_in_step,
        train_loop_config={
            "steps": total, "answers": str(answers), "begun": str(begun), "board": channel,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=ranks, resources_per_worker={"slot": 1, "CPU": 0}
        ),
        run_config=ray.train.RunConfig(name=f"ranks-{ranks}", storage_path=str(folder / "train")),
        datasets={"train": PlannedGroups(cache=cache.parts, settings=settings)},
        dataset_config=PerRankStreams(),
    )  # fmt: skip
    with PeakMemory() as memory:
        trainer.fit()
    ray.kill(channel)
    told = [np.load(path) for path in sorted(answers.iterdir())]
    assert len(told) == ranks, f"{len(told)} of {ranks} ranks have answered"
    counts = np.bincount(np.concatenate([one["pairs"] for one in told]), minlength=cache.num_groups)
    expected = sum(plan.size(step) for step in range(total))  # an epoch's last one may be short
    assert counts.sum() == expected, "a pair is missing or twice"
    assert counts.max() - counts.min() <= 1, "an epoch does not hold each pair once"
    micro_batches = np.stack([one["num_micro_batches"] for one in told])  # (ranks, steps)
    assert (micro_batches == micro_batches[0]).all(), "ranks are not in step"
    return {
        "ranks": ranks,
        "first_step_s": max(float(one["first_step_at"]) for one in told) - began,
        "read_s": median_of(told, "read_s"),
        "cpu_s": median_of(told, "cpu_s"),
        "barrier_s": median_of(told, "barrier_s"),
        "reports_per_s": ranks / median_of(told, "report_s"),
        "pulses_per_s": ranks / median_of(told, "pulse_s"),
        "memory_gb": memory.peak_gb,
    }


def median_of(told: list[Any], name: str) -> float:
    """Return the median over ranks and steps, the first step left out."""
    return float(np.median(np.stack([one[name][1:] for one in told])))


def read_in_step(settings: dict[str, Any]) -> None:
    """Read every step, in step with the other ranks; leave what was read and how long it took."""
    from ray.train.collective import barrier

    # A rank's second task of Ray Data would hold another 0.14 GB, of which 64 do not fit.
    rm_ray.batches.stream.CONCURRENT_TASKS = 1
    rank, channel = ray.train.get_context().get_world_rank(), settings["board"]
    stream = ray.train.get_dataset_shard("train")
    pairs, told = [], defaultdict(list)
    first_step_at = 0.0

    def timed(name: str, what: Callable[[], Any]) -> Any:
        before = time.monotonic()
        result = what()
        told[name].append(time.monotonic() - before)
        return result

    begun = Path(settings["begun"])
    while len(list(begun.iterdir())) <= rank - AT_ONCE:
        time.sleep(0.5)
    with Heartbeat(channel, rank) as heartbeat:
        steps = stream.steps(0, settings["steps"])
        for step in range(settings["steps"]):
            before = time.process_time()
            micro_batches = timed("read_s", lambda: next(steps))
            told["cpu_s"].append(time.process_time() - before)
            heartbeat.enter("training", step)
            if step == 0:
                (begun / f"{rank}").touch()
            told["num_micro_batches"].append(len(micro_batches))
            pairs += [m.plan.groups[m.plan.weights > 0] for m in micro_batches]
            timed("barrier_s", barrier)
            first_step_at = first_step_at or time.time()
            if (step + 1) % REPORT_EVERY == 0:
                timed("report_s", lambda: ray.train.report({"step": step}))  # noqa: B023
        for _ in range(PULSES):
            timed("pulse_s", heartbeat._send)
        barrier()
    np.savez(
        Path(settings["answers"]) / f"{rank:03d}.npz",
        pairs=np.concatenate(pairs), first_step_at=first_step_at, **told,
    )  # fmt: skip


class PeakMemory(threading.Thread):
    """Adds up the memory of this process and all below it, shared pages once, now and then."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_gb = 0.0
        self._ended = threading.Event()

    def __enter__(self) -> "PeakMemory":
        """Begin."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Look every other second."""
        while not self._ended.wait(2.0):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.peak_gb = max(self.peak_gb, total / 1e9)


def train_whole(folder: Path, ranks: int, steps: int, address: str) -> dict[str, Any]:
    """Run the debug recipe's model on so many ranks of the cluster; return what it came to."""
    episodes = steps * BATCH
    command = [
        sys.executable, str(ROOT / "jobs" / "train.py"),
        "--run.name", "whole", "--run.storage_path", str(folder), "--data.max_length", "256",
        "--batch.global_batch_size", str(BATCH), "--batch.tokens_per_micro_batch", "1024",
        "--optimizer.max_episodes", str(episodes), "--optimizer.epochs", "20",
        "--cluster.num_workers", str(ranks), "--checkpoint.every_steps", str(max(steps // 2, 1)),
        "--data.eval", "builtin:test=100",
    ]  # fmt: skip
    with PeakMemory() as memory:
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"RAY_ADDRESS": address}
        )
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr[-3_000:]
    result = json.loads((folder / "whole" / "result.json").read_text())
    return {
        "machine": describe_machine(),
        "ranks": ranks,
        "memory_gb": memory.peak_gb,
        **{name: result[name] for name in ("steps", "episodes", "startup", "pairs_per_second")},
        "times_each_pair_was_trained_on": result["times_each_pair_was_trained_on"],
        "metrics": result["metrics"],
    }


if __name__ == "__main__":
    main()
