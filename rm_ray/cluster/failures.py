"""Ray Train errors -> the error to report: wrong input, or a lost attempt and its cause."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import ray
import ray.train
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from rm_ray.cluster.connectivity import PARTNER_LOST, REMEDIES
from rm_ray.errors import LostError, find_final_error, find_lost_error


def explain(
    error: ray.train.TrainingFailedError,
    *,
    can_read: Callable[[], bool],
    hang: LostError | None = None,
) -> Exception:
    """Return the final error if the failure contains one, else a LostError naming the rank.

    ``hang``, if ranks were killed for hanging, takes precedence over the errors that followed. An
    OSError counts as an outage, except for errors such as a missing file on readable storage.
    """
    if hang is not None:
        return hang
    failures = error.worker_failures if isinstance(error, ray.train.WorkerGroupError) else {}
    causes = [*failures.values(), getattr(error, "controller_failure", None)]
    final = next((cause for cause in map(find_final_error, causes) if cause), None)
    if final is not None:
        return final
    dead = [rank for rank, failure in failures.items() if _is_death(failure)]
    if dead:
        return LostError(f"rank {', '.join(map(str, sorted(dead)))} died")
    lost = next((cause for cause in map(find_lost_error, causes) if cause), None)
    if lost is not None:
        return lost
    for rank, failure in sorted(failures.items()):
        error_there = getattr(failure, "_base_exc", failure)
        shown = f"{type(error_there).__name__}: {error_there}"
        if any(name in shown for name in _CONNECTIONS):
            continue
        traceback = getattr(failure, "_traceback_str", "")
        is_outage = isinstance(error_there, OSError) and not (
            isinstance(error_there, _ANSWERS) and can_read()
        )
        return LostError(
            f"rank {rank} failed: {shown}\n{traceback}",
            signature="" if is_outage else re.sub(r"\d+", "N", shown),  # addresses, sizes
            is_outage=is_outage,
        )
    if failures:
        return _explain_connections(failures)
    return _explain_start(getattr(error, "controller_failure", None) or error)


def _explain_connections(failures: Mapping[int, Exception]) -> LostError:
    """Return the error to report if every rank failed on the network.

    NCCL can also fail on its own, for example if /dev/shm is too small; such failures repeat.
    """
    for rank, failure in sorted(failures.items()):
        text = str(getattr(failure, "_base_exc", failure)).strip()
        kind = _NCCL.search(text)
        if kind and not any(name in text for name in PARTNER_LOST):
            last = text.splitlines()[-1].strip()
            return LostError(
                f"NCCL failed on rank {rank}: {kind[0]}, {last}. {REMEDIES['nccl']}\n{text}",
                signature=f"NCCL: {kind[0]}",
            )
    first = str(failures[min(failures)]).strip()
    return LostError(f"the ranks lost their connections to one another\n{first}")


def _explain_start(error: Exception) -> LostError:
    """Return the error to report if the workers did not start training, or Ray Train failed."""
    text = str(error).strip()
    last = text.splitlines()[-1]
    kind = _RENDEZVOUS.search(text)
    if kind is None:
        return LostError(f"Ray Train failed: {last}\n{text}")
    return LostError(
        f"the workers' process group did not form: {last}. Ranks connect to rank 0 at the address "
        f"that Ray uses for its machine. {REMEDIES['gloo']}\n{text}",
        signature=f"connecting: {kind[0]}",
    )


_ANSWERS = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""Errors from a working system, unless its storage has just become unavailable."""


_CONNECTIONS = ("gloo/transport", "NCCL")
"""Substrings of errors on ranks whose peer died, and of some errors of NCCL itself."""

_NCCL = re.compile(r"nccl\w+(?:Error|Argument|Usage)")

_RENDEZVOUS = re.compile("DistNetworkError|DistStoreError|connectFullMesh failed")
"""Substrings of the errors that torch raises if ranks cannot connect."""


def _is_death(failure: Exception) -> bool:
    if isinstance(failure, WorkerHealthCheckFailedError):
        failure = failure.health_check_failure
    return isinstance(failure, ray.exceptions.RayActorError)
