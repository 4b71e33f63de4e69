"""Killing hung workers on any machine, after logging the stack of every rank."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rm_ray.cluster.timeouts import SILENT_AFTER_S
from rm_ray.driver.hang_detector import Hang
from rm_ray.tracking.heartbeat import HeartbeatReading

logger = logging.getLogger(__name__)


def end_hung_workers(hang: Hang, heartbeats: Sequence[HeartbeatReading]) -> None:
    """Log every rank's stack, and kill the hung ones on their machines."""
    logger.warning("%s; restarting all ranks. Their stacks follow", hang.reason)
    for one in sorted(heartbeats, key=lambda one: one.beat.rank):
        beat = one.beat
        logger.warning(
            "rank %d, process %d, %s step %d, %.0f s ago:\n%s",
            beat.rank,
            beat.pid,
            beat.phase,
            beat.step,
            one.received,
            beat.stack.rstrip(),
        )
    kill = ray.remote(num_cpus=0, max_retries=0)(kill_worker)
    killed = []
    for one in hang.ranks:
        there = NodeAffinitySchedulingStrategy(one.beat.node_id, soft=False)
        killed.append(kill.options(scheduling_strategy=there).remote(one.beat.pid))
    done, _ = ray.wait(killed, num_returns=len(killed), timeout=SILENT_AFTER_S)
    if len(done) < len(killed):
        logger.warning("%d hung ranks are unreachable and not killed", len(killed) - len(done))


def kill_worker(pid: int) -> None:
    """Kill a Ray Train worker on this machine, even if it is stopped."""
    command = Path(f"/proc/{pid}/cmdline")
    if not command.exists() or b"RayTrainWorker" in command.read_bytes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
