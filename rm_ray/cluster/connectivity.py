"""Connectivity and bandwidth checks between the ranks of a process group; depends only on torch.

Bandwidths are bus bandwidths in bytes per second per rank: the load on its link, independent of the
number of ranks (github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rm_ray.cluster.timeouts import COMPANY_S, EXCHANGE_S
from rm_ray.errors import LostError

logger = logging.getLogger(__name__)

T = TypeVar("T")

SIZES = {"cuda": 256 * 2**20, "cpu": 2**20}
"""Size in bytes of the larger test message, by device: large enough to saturate a GPU network."""

_REPEATS = {"cuda": 3, "cpu": 1}

LOW_BANDWIDTH = 50e9
"""Bytes per second of one 400 Gb/s port; below it, multi-machine GPU training is network-bound."""

REMEDIES = {
    "nccl": "Set NCCL_SOCKET_IFNAME on every machine to an interface that all machines can reach, "
    "and open the firewall between them; try NCCL_IB_DISABLE=1 to rule out InfiniBand. "
    "NCCL's messages are in the workers' logs on Ray's dashboard",
    "gloo": "Set GLOO_SOCKET_IFNAME on every machine to an interface that all machines can reach, "
    "and open the firewall between them",
}
"""What to do if ranks cannot reach one another, by backend."""

ALONE = (
    "GPUs on one machine communicate peer-to-peer or through /dev/shm: give the container more "
    "shared memory, or set NCCL_P2P_DISABLE=1"
)
"""What to do if GPUs on one machine cannot reach one another."""

PARTNER_LOST = ("gloo/transport", "ncclRemoteError")
"""Substrings of the error that a rank raises if its peer dies or closes the connection."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The machines of all ranks, and the bandwidth between them."""

    hosts: tuple[str, ...]
    """Each rank's machine, by rank."""
    bandwidth: float
    """Bus bandwidth of an all-reduce over all ranks."""

    def describe(self) -> str:
        """Return a one-line summary."""
        ranks, machines = len(self.hosts), len(set(self.hosts))
        where = "1 machine" if machines == 1 else f"{machines} machines"
        return f"{ranks} ranks on {where} exchange {self.bandwidth / 1e9:.3g} GB/s"


def connect(
    device: torch.device,
    host: str,
    *,
    on_progress: Callable[[], None] = lambda: None,
    company_s: float = COMPANY_S,
    exchange_s: float = EXCHANGE_S,
) -> Exchange | None:
    """Test the network between all ranks; return None if there is only one rank.

    Every rank must call this.

    Raises:
        LostError: ranks did not arrive in time, or cannot reach one another.
    """
    if dist.get_world_size() == 1:
        return None
    hosts = meet(host, limit_s=company_s)
    size = SIZES[device.type]
    bandwidth = 0.0
    for what, action in (
        ("4 bytes", lambda: _time(_all_reducing(torch.ones(1, device=device)))),
        (_megabytes(size), lambda: _all_reduce_bandwidth(size, device)),
    ):
        on_progress()
        try:
            bandwidth = within(exchange_s, action, device)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TimeoutError) as error:
            raise explain_unreachable(hosts, what, error, dist.get_backend()) from error
    on_progress()
    found = Exchange(hosts=tuple(hosts), bandwidth=bandwidth)
    logger.info("%s", found.describe())
    if device.type == "cuda" and len(set(hosts)) > 1 and bandwidth < LOW_BANDWIDTH:
        logger.warning(
            "less than %.0f GB/s between machines with GPUs: is NCCL using TCP? See "
            "cluster/README.md for what InfiniBand and EFA need",
            LOW_BANDWIDTH / 1e9,
        )
    return found


def introduce(host: str) -> None:
    """Publish this rank's machine, so that others can name it even if it never calls ``meet``."""
    meeting_store().set(f"host-{dist.get_rank()}", host)


def meet(host: str, *, limit_s: float) -> list[str]:
    """Wait for all ranks; return every rank's machine, by rank.

    Raises:
        LostError: some ranks did not arrive within ``limit_s``.
    """
    store, ranks = meeting_store(), range(dist.get_world_size())
    introduce(host)
    store.set(f"here-{dist.get_rank()}", "")
    here = [f"here-{rank}" for rank in ranks]
    try:
        store.wait(here, timedelta(seconds=limit_s))
    except RuntimeError as error:
        missing = [rank for rank in ranks if not store.check([here[rank]])]
        there = {rank: _read_host(store, rank) for rank in missing}
        raise LostError(
            f"rank {', '.join(f'{rank} on {host}' for rank, host in there.items())} did not join "
            f"the others within {limit_s:.0f} s; check whether that machine is slow or hung",
            signature="connecting: ranks did not come",
        ) from error
    return [_read_host(store, rank) for rank in ranks]


def _read_host(store: Any, rank: int) -> str:
    key = f"host-{rank}"
    known: str = store.get(key).decode() if store.check([key]) else "an unknown machine"
    return known


def meeting_store() -> Any:
    """Return the process group's store, with a prefix that keeps our keys apart from torch's."""
    c10d: Any = dist.distributed_c10d
    return c10d.PrefixStore("rm_ray", c10d._get_default_store())


def within(limit_s: float, action: Callable[[], T], device: torch.device) -> T:
    """Run an action in a thread with a time limit; return its result.

    An action that hangs inside NCCL cannot be interrupted from Python.

    Raises:
        TimeoutError: the action took too long; its daemon thread is abandoned.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def act() -> None:
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)  # the current device is per thread
            results.append(action())
        except BaseException as error:  # re-raised in the caller
            errors.append(error)

    thread = threading.Thread(target=act, name="exchange", daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"not within {limit_s:.0f} s")
    return results[0]


def explain_unreachable(
    hosts: Sequence[str], what: str, error: Exception, backend: str
) -> LostError:
    """Return the error for ranks that cannot exchange a message, including the remedy."""
    machines = list(dict.fromkeys(hosts))
    shown = ", ".join(machines[:8]) + (", ..." if len(machines) > 8 else "")
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
    is_accident = any(name in str(error) for name in PARTNER_LOST)
    remedy = ALONE if backend == "nccl" and len(machines) == 1 else REMEDIES[backend]
    passed = "" if what == "4 bytes" else "4 bytes go through: is the MTU the same everywhere? "
    return LostError(
        f"{len(hosts)} ranks on {shown} cannot exchange {what} ({reason}). {passed}{remedy}",
        signature="" if is_accident else f"connecting: no exchange of {what}",
    )


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def be_patient(limit_s: float) -> None:
    """Set the timeout of collectives, for this group and all groups created later.

    DeepSpeed creates groups without a timeout, so torch uses its module-level defaults.
    """
    limit = timedelta(seconds=limit_s)
    c10d: Any = dist.distributed_c10d
    c10d.default_pg_timeout = limit
    c10d.default_pg_nccl_timeout = limit
    c10d._set_pg_timeout(limit)
    c10d._get_default_store().set_timeout(limit)


@dataclass(frozen=True, kw_only=True)
class LinkSpeed:
    """Speed of the slowest link between ranks, with all links in use at once."""

    all_reduce: float
    """Bus bandwidth."""
    all_gather: float
    """Bus bandwidth."""
    latency_s: float
    """Seconds for an all-reduce of 4 bytes."""


def ranks_by_machine(hosts: Sequence[str]) -> list[list[int]]:
    """Return the ranks of each machine."""
    return [[i for i, one in enumerate(hosts) if one == host] for host in dict.fromkeys(hosts)]


def ranks_across_machines(hosts: Sequence[str]) -> list[list[int]]:
    """Return groups with one rank per machine: all first ranks, all second ranks, and so on."""
    machines = ranks_by_machine(hosts)
    longest = max(map(len, machines))
    return [[ranks[i] for ranks in machines if i < len(ranks)] for i in range(longest)]


def measure_links(
    groups: Sequence[Sequence[int]], device: torch.device, *, size: int | None = None
) -> LinkSpeed | None:
    """Measure all groups of two or more ranks concurrently; return None if there are none.

    Every rank must call this with the same disjoint groups; all get the same result. Messages are
    ``size`` bytes.
    """
    found = torch.full((3,), float("inf"), dtype=torch.float64, device=device)
    mine = None
    for ranks in groups:
        if len(ranks) > 1:
            group = dist.new_group(list(ranks))
            mine = group if dist.get_rank() in ranks else mine
    dist.all_reduce(torch.zeros(1, device=device))  # start all groups together
    if mine is not None:
        size = size or SIZES[device.type]
        ping = _all_reducing(torch.zeros(1, device=device), mine)
        ping()
        found[0] = _all_reduce_bandwidth(size, device, mine)
        found[1] = _all_gather_bandwidth(size, device, mine)
        found[2] = -_time(ping, repeats=10)
    dist.all_reduce(found, op=dist.ReduceOp.MIN)
    all_reduce, all_gather, negated = found.tolist()
    if all_reduce == float("inf"):
        return None
    return LinkSpeed(all_reduce=all_reduce, all_gather=all_gather, latency_s=-negated)


def _all_reducing(values: Tensor, group: dist.ProcessGroup | None = None) -> Callable[[], None]:
    def run() -> None:
        dist.all_reduce(values, group=group)
        if values.device.type == "cuda":
            torch.cuda.synchronize(values.device)

    return run


def _time(run: Callable[[], None], repeats: int = 1) -> float:
    """Return the average seconds per run."""
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - started) / repeats


def _all_reduce_bandwidth(
    size: int, device: torch.device, group: dist.ProcessGroup | None = None
) -> float:
    """Return the bus bandwidth of an all-reduce of ``size`` bytes."""
    num_ranks = dist.get_world_size(group)
    run = _all_reducing(torch.zeros(size // 4, device=device), group)
    run()  # opens the connections
    return 2 * (num_ranks - 1) / num_ranks * size / _time(run, _REPEATS[device.type])


def _all_gather_bandwidth(size: int, device: torch.device, group: dist.ProcessGroup) -> float:
    """Return the bus bandwidth of an all-gather of ``size`` bytes in total."""
    num_ranks = dist.get_world_size(group)
    part = torch.zeros(max(size // 4 // num_ranks, 1), device=device)
    whole = torch.zeros(num_ranks * len(part), device=device)

    def run() -> None:
        dist.all_gather_into_tensor(whole, part, group=group)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    run()
    gathered = whole.numel() * whole.element_size()
    return (num_ranks - 1) / num_ranks * gathered / _time(run, _REPEATS[device.type])
