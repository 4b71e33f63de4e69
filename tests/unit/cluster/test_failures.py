import pickle
from collections.abc import Callable

import pytest
import ray.train
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from rm_ray.cluster.failures import explain
from rm_ray.errors import InputError, LostError

MISSING = FileNotFoundError(2, "No such file or directory", "kernels.cu")


def works() -> bool:
    """Return that the storage can be read."""
    return True


def lost(error: Exception, can_read: Callable[[], bool] = works) -> LostError:
    failed = ray.train.WorkerGroupError("a worker failed", {0: error})
    found = explain(failed, can_read=can_read)
    assert isinstance(found, LostError)
    return found


def test_a_missing_file_on_readable_storage_is_an_error():
    found = lost(MISSING)

    assert not found.is_outage
    assert found.signature == "FileNotFoundError: [Errno N] No such file or directory: 'kernels.cu'"


def test_a_missing_file_on_unreadable_storage_is_an_outage():
    found = lost(MISSING, can_read=lambda: False)

    assert found.is_outage
    assert found.signature == ""


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), OSError(5, "I/O error")])
def test_a_system_that_does_not_answer_is_an_outage(error: OSError):
    assert lost(error).is_outage


def test_the_signature_of_any_other_error_is_its_type_and_message_without_numbers():
    found = lost(ValueError("size 31 at 0x7f12"))

    assert not found.is_outage
    assert found.signature == "ValueError: size N at NxNfN"


def connections(*told: str) -> dict[int, Exception]:
    return {rank: RuntimeError(text) for rank, text in enumerate(told)}


CLOSED = "[../gloo/transport/tcp/pair.cc:538] Connection closed by peer [10.0.0.7]:31"
NCCL = "NCCL error in: ProcessGroupNCCL.cpp:94, {}, NCCL version 2.29.7\n{}\nLast error:\n{}"
SHARED_MEMORY = NCCL.format(
    "unhandled system error",
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed",
    "Error while creating shared memory segment /dev/shm/nccl-x1 (size 9637888)",
)
REMOTE = NCCL.format(
    "remote process exited or there was a network error",
    "ncclRemoteError: A call failed possibly due to a network error",
    "socketProgress: Connection closed by remote peer 10.0.0.7<4711>",
)


def test_nccl_errors_have_a_signature():
    failed = ray.train.WorkerGroupError("workers failed", connections(REMOTE, SHARED_MEMORY))
    found = explain(failed, can_read=works)

    assert isinstance(found, LostError)
    assert found.cause.startswith("NCCL failed on rank 1: ncclSystemError, Error while creating")
    assert "NCCL_SOCKET_IFNAME" in found.cause
    assert found.signature == "NCCL: ncclSystemError"


@pytest.mark.parametrize("told", [(CLOSED, CLOSED), (REMOTE, REMOTE), (REMOTE, CLOSED)])
def test_losing_a_peer_is_not_a_network_error(told):
    found = explain(ray.train.WorkerGroupError("failed", connections(*told)), can_read=works)

    assert isinstance(found, LostError)
    assert found.cause.startswith("the ranks lost their connections")
    assert found.signature == ""


def test_a_code_error_takes_precedence_over_the_errors_of_its_peers():
    failures = {**connections(CLOSED, SHARED_MEMORY), 2: ValueError("here")}
    found = explain(ray.train.WorkerGroupError("failed", failures), can_read=works)

    assert isinstance(found, LostError)
    assert found.signature == "ValueError: here"


def test_a_workers_own_network_diagnosis_is_kept():
    said = LostError("2 ranks cannot exchange 4 bytes", signature="connecting: no exchange")
    carried = pickle.loads(pickle.dumps(said))
    wrapped = UserExceptionWithTraceback(carried, "Traceback ...")
    failures = {**connections(CLOSED, CLOSED), 2: wrapped}
    found = explain(ray.train.WorkerGroupError("failed", failures), can_read=works)

    assert isinstance(found, LostError)
    assert (found.cause, found.signature) == (said.cause, said.signature)


def test_a_hang_takes_precedence_over_the_errors_that_follow():
    hang = LostError("no rank made progress for 180 s", signature="connecting")
    failed = ray.train.WorkerGroupError("failed", connections(CLOSED))

    assert explain(failed, can_read=works, hang=hang) is hang


@pytest.mark.parametrize(
    ("told", "signature"),
    [
        (
            "DistNetworkError: The client socket has timed out after 300000ms while trying to "
            "connect to (10.0.0.4, 29500).",
            "connecting: DistNetworkError",
        ),
        (
            "RuntimeError: Gloo connectFullMesh failed with [pair.cc:144] no error",
            "connecting: connectFullMesh failed",
        ),
        ("ValueError: another fault of the controller", ""),
    ],
)
def test_a_process_group_that_does_not_form_is_reported_with_a_remedy(told, signature):
    found = explain(ControllerError(RuntimeError(f"Traceback ...\n{told}")), can_read=works)

    assert isinstance(found, LostError)
    assert found.signature == signature
    assert told in found.cause.splitlines()[0]
    assert ("GLOO_SOCKET_IFNAME" in found.cause) == bool(signature)


def test_wrong_input_found_before_workers_start_is_reported_as_such():
    refused = ControllerError(InputError("a worker on node-1 needs a GPU, but ..."))
    found = explain(refused, can_read=works)

    assert isinstance(found, InputError)
    assert str(found).startswith("a worker on node-1")
