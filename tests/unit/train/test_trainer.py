from pathlib import Path

import pytest
import ray.train

from rm_ray.errors import LostError
from rm_ray.storage import Storage
from rm_ray.train.files import RUN
from rm_ray.train.trainer import explain

MISSING = FileNotFoundError(2, "No such file or directory", "kernels.cu")


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    storage = Storage.open(str(tmp_path))
    storage.write_json(RUN, {})
    return storage


def lost(error: Exception, run: Storage) -> LostError:
    failed = ray.train.WorkerGroupError("a worker failed", {0: error})
    found = explain(failed, None, run)
    assert isinstance(found, LostError)
    return found


def test_a_file_that_is_missing_while_the_storage_works_is_an_error(run: Storage):
    found = lost(MISSING, run)

    assert not found.is_outage
    assert found.signature == "FileNotFoundError: [Errno N] No such file or directory: 'kernels.cu'"


def test_a_file_that_is_missing_with_the_storage_is_an_outage(run: Storage):
    run.delete_file(RUN)

    found = lost(MISSING, run)

    assert found.is_outage
    assert found.signature == ""


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), OSError(5, "I/O error")])
def test_a_system_that_does_not_answer_is_an_outage(error: OSError, run: Storage):
    assert lost(error, run).is_outage


def test_any_other_error_is_told_by_its_kind_and_words_without_numbers(run: Storage):
    found = lost(ValueError("size 31 at 0x7f12"), run)

    assert not found.is_outage
    assert found.signature == "ValueError: size N at NxNfN"
