"""Ranks connecting over gloo, and the errors if they cannot."""

import json
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.cluster import connectivity
from rm_ray.cluster.connectivity import (
    Exchange,
    be_patient,
    connect,
    introduce,
    measure_links,
    ranks_across_machines,
    ranks_by_machine,
    within,
)
from rm_ray.errors import LostError

CPU = torch.device("cpu")

LATE_S = 0.5
"""How long one rank keeps the other waiting, in seconds."""


def join(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    limit = timedelta(seconds=60)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=limit
    )
    host = f"node-{rank}"
    found: dict[str, Any] = {}
    introduce(host)
    dist.barrier()
    found["never comes"] = tell(lambda: connect(CPU, host, company_s=0.3)) if rank == 0 else None
    dist.barrier()
    met = connect(CPU, host)
    assert met is not None
    found["line"], found["bandwidth"] = met.describe(), met.bandwidth
    for name, groups in {
        "between": ranks_across_machines(met.hosts),
        "within": ranks_by_machine(met.hosts),
        "within one": ranks_by_machine(["node"] * 2),
    }.items():
        speed = measure_links(groups, CPU)
        found[name] = None if speed is None else vars(speed)
    found["late"] = wait_for_a_late_rank(rank)
    if rank == 0:
        found["hangs"] = tell(lambda: connect(CPU, host, exchange_s=0.3))
    else:
        connectivity.meet(host, limit_s=5)
        time.sleep(1.0)  # never takes part in the exchange
    (folder / f"{rank}.json").write_text(json.dumps(found))
    connectivity.meeting_store().set(f"written-{rank}", "")
    connectivity.meeting_store().wait([f"written-{other}" for other in range(2)])
    os._exit(0)  # a thread still hangs in gloo, which would abort at a normal exit


def tell(action: Any) -> tuple[str, str]:
    with pytest.raises(LostError) as caught:
        action()
    return caught.value.cause, caught.value.signature


def wait_for_a_late_rank(rank: int) -> list[float]:
    """Reduce in a group whose timeout was too short, and in a later one as DeepSpeed creates it."""
    limits = []
    for limit in (LATE_S / 2, 60.0):  # the first limit is too short for the late rank
        be_patient(limit)
        limits.append(dist.group.WORLD._get_backend(CPU).options._timeout.total_seconds())
    later = dist.new_group([0, 1])
    limits.append(later._get_backend(CPU).options._timeout.total_seconds())
    value = torch.ones(1)
    for group in (None, later):
        time.sleep(LATE_S * rank)
        dist.all_reduce(value, group=group)
    return [*limits, value.item()]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("exchange")
    mp.spawn(join, (folder,), nprocs=2)
    yield [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_connected_ranks_report_their_bandwidth(found: list[dict[str, Any]]):
    for one in found:
        shown = f"{one['bandwidth'] / 1e9:.3g}"
        assert one["line"] == f"2 ranks on 2 machines exchange {shown} GB/s"
        assert 1e6 < one["bandwidth"] < 1e12


def test_a_missing_rank_is_named_with_its_machine(found: list[dict[str, Any]]):
    cause, signature = found[0]["never comes"]

    assert cause.startswith("rank 1 on node-1 did not join the others within 0 s; ")
    assert signature == "connecting: ranks did not come"


def test_a_dead_network_is_reported_with_a_remedy(found: list[dict[str, Any]]):
    cause, signature = found[0]["hangs"]

    assert cause.startswith("2 ranks on node-0, node-1 cannot exchange 4 bytes (not within 0 s).")
    assert "Set GLOO_SOCKET_IFNAME on every machine" in cause
    assert signature == "connecting: no exchange of 4 bytes"


def test_links_are_measured_within_and_between_machines(found: list[dict[str, Any]]):
    for one in found:
        assert one["within"] is None  # one rank per machine
        for name in ("between", "within one"):
            assert 1e6 < one[name]["all_reduce"] < 1e12
            assert 1e6 < one[name]["all_gather"] < 1e12
            assert 0 < one[name]["latency_s"] < 1
    assert found[0]["between"] == found[1]["between"]  # all get the slowest rank's


def test_the_collective_timeout_applies_to_all_groups(found: list[dict[str, Any]]):
    assert [one["late"] for one in found] == [[LATE_S / 2, 60.0, 60.0, 4.0]] * 2


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12))
def test_every_rank_is_in_exactly_one_group_of_each_kind(hosts: list[str]):
    for groups in (ranks_by_machine(hosts), ranks_across_machines(hosts)):
        assert sorted(rank for ranks in groups for rank in ranks) == list(range(len(hosts)))
    assert all(len({hosts[rank] for rank in ranks}) == 1 for ranks in ranks_by_machine(hosts))
    for ranks in ranks_across_machines(hosts):
        assert len({hosts[rank] for rank in ranks}) == len(ranks)


def test_eight_machines_of_eight_ranks_have_eight_groups_of_each_kind():
    hosts = [f"node-{rank // 8}" for rank in range(64)]

    assert ranks_by_machine(hosts)[1] == list(range(8, 16))
    assert ranks_across_machines(hosts)[1] == list(range(1, 64, 8))
    told = Exchange(hosts=tuple(hosts), bandwidth=212e9).describe()
    assert told == "64 ranks on 8 machines exchange 212 GB/s"


def test_errors_of_an_action_propagate_and_hangs_are_abandoned():
    def fail() -> None:
        raise RuntimeError("socket")

    assert within(5.0, lambda: 7, CPU) == 7
    with pytest.raises(RuntimeError, match="socket"):
        within(5.0, fail, CPU)
    with pytest.raises(TimeoutError, match="not within 0 s"):
        within(0.05, lambda: time.sleep(0.5), CPU)


@pytest.mark.parametrize(
    ("hosts", "what", "error", "told", "signature"),
    [
        ("ab", "4 bytes", "ncclSystemError: socket", "NCCL_SOCKET_IFNAME", "no exchange of 4"),
        ("aa", "4 bytes", "ncclSystemError: /dev/shm", "more shared memory", "no exchange of 4"),
        ("ab", "256 MiB", "not within 120 s", "is the MTU the same", "no exchange of 256"),
        ("ab", "4 bytes", "ncclRemoteError: closed", "NCCL_SOCKET_IFNAME", ""),
    ],
)
def test_nccl_errors_lead_to_a_remedy(hosts, what, error, told, signature):
    lost = connectivity.explain_unreachable(list(hosts), what, RuntimeError(error), "nccl")

    assert told in lost.cause
    assert error in lost.cause
    assert lost.signature.startswith(f"connecting: {signature}" if signature else "")
    assert bool(lost.signature) == bool(signature)
