import pickle
from pathlib import Path

import pytest
import ray.train
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from rm_ray.driver.fit import explain
from rm_ray.driver.hang_detector import Hang
from rm_ray.errors import InputError, LostError
from rm_ray.runs.layout import RUN
from rm_ray.storage import Storage

MISSING = FileNotFoundError(2, "No such file or directory", "kernels.cu")


@pytest.fixture
def run_folder(tmp_path: Path) -> Storage:
    storage = Storage.open(str(tmp_path))
    storage.write_json(RUN, {})
    return storage


def lost(error: Exception, run_folder: Storage) -> LostError:
    failed = ray.train.WorkerGroupError("a worker failed", {0: error})
    found = explain(failed, None, run_folder)
    assert isinstance(found, LostError)
    return found


def test_a_file_that_is_missing_while_the_storage_works_is_an_error(run_folder: Storage):
    found = lost(MISSING, run_folder)

    assert not found.is_outage
    assert found.signature == "FileNotFoundError: [Errno N] No such file or directory: 'kernels.cu'"


def test_a_file_that_is_missing_with_the_storage_is_an_outage(run_folder: Storage):
    run_folder.delete_file(RUN)

    found = lost(MISSING, run_folder)

    assert found.is_outage
    assert found.signature == ""


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), OSError(5, "I/O error")])
def test_a_system_that_does_not_answer_is_an_outage(error: OSError, run_folder: Storage):
    assert lost(error, run_folder).is_outage


def test_any_other_error_is_told_by_its_kind_and_words_without_numbers(run_folder: Storage):
    found = lost(ValueError("size 31 at 0x7f12"), run_folder)

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


def test_an_error_of_nccl_itself_is_known_again(run_folder: Storage):
    failed = ray.train.WorkerGroupError("workers failed", connections(REMOTE, SHARED_MEMORY))
    found = explain(failed, None, run_folder)

    assert isinstance(found, LostError)
    assert found.cause.startswith("NCCL failed on rank 1: ncclSystemError, Error while creating")
    assert "NCCL_SOCKET_IFNAME" in found.cause
    assert found.signature == "NCCL: ncclSystemError"


@pytest.mark.parametrize("told", [(CLOSED, CLOSED), (REMOTE, REMOTE), (REMOTE, CLOSED)])
def test_ranks_that_lost_a_partner_are_no_error_of_the_network(told, run_folder: Storage):
    found = explain(ray.train.WorkerGroupError("failed", connections(*told)), None, run_folder)

    assert isinstance(found, LostError)
    assert found.cause.startswith("the ranks lost one another")
    assert found.signature == ""


def test_an_error_in_code_comes_before_those_of_its_partners(run_folder: Storage):
    failures = {**connections(CLOSED, SHARED_MEMORY), 2: ValueError("here")}
    found = explain(ray.train.WorkerGroupError("failed", failures), None, run_folder)

    assert isinstance(found, LostError)
    assert found.signature == "ValueError: here"


def test_what_a_worker_says_of_the_network_comes_back_in_its_words(run_folder: Storage):
    said = LostError("2 ranks cannot exchange 4 bytes", signature="connecting: no exchange")
    carried = pickle.loads(pickle.dumps(said))
    wrapped = UserExceptionWithTraceback(carried, "Traceback ...")
    failures = {**connections(CLOSED, CLOSED), 2: wrapped}
    found = explain(ray.train.WorkerGroupError("failed", failures), None, run_folder)

    assert isinstance(found, LostError)
    assert (found.cause, found.signature) == (said.cause, said.signature)


def test_ranks_that_hang_as_they_connect_are_known_again(run_folder: Storage):
    hang = Hang(ranks=(), reason="no rank went on for 180 s", signature="connecting")
    found = explain(ray.train.WorkerGroupError("failed", {}), hang, run_folder)

    assert isinstance(found, LostError)
    assert (found.cause, found.signature) == (hang.reason, "connecting")


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
def test_a_process_group_that_does_not_form_is_told_with_the_remedy(
    told, signature, run_folder: Storage
):
    found = explain(ControllerError(RuntimeError(f"Traceback ...\n{told}")), None, run_folder)

    assert isinstance(found, LostError)
    assert found.signature == signature
    assert told in found.cause.splitlines()[0]
    assert ("GLOO_SOCKET_IFNAME" in found.cause) == bool(signature)


def test_a_worker_that_is_refused_before_it_begins_is_refused(run_folder: Storage):
    refused = ControllerError(InputError("a worker on node-1 is to train on a GPU, but ..."))
    found = explain(refused, None, run_folder)

    assert isinstance(found, InputError)
    assert str(found).startswith("a worker on node-1")
