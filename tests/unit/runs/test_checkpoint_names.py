from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.runs.checkpoint_names import attempt_of, checkpoint_name, list_checkpoints, step_of
from rm_ray.storage import Storage


def test_only_folders_with_a_checkpoint_name_are_checkpoints(tmp_path):
    run_folder = Storage.open(str(tmp_path))
    for name in ("checkpoint_00000100_0001", "checkpoint_00000200_0002", "checkpoint_before",
                 "checkpoint_00000300_0001.old", "export"):  # fmt: skip
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint_00000400_0001").write_text("a file")
    assert list_checkpoints(run_folder) == ["checkpoint_00000200_0002", "checkpoint_00000100_0001"]


def test_checkpoints_are_listed_by_step_and_attempt(tmp_path: Path):
    for step, attempt in [(100, 1), (5, 3), (20, 2), (20, 10)]:
        (tmp_path / checkpoint_name(step, attempt)).mkdir()
    assert list_checkpoints(Storage.open(str(tmp_path))) == [
        "checkpoint_00000100_0001",
        "checkpoint_00000020_0010",
        "checkpoint_00000020_0002",
        "checkpoint_00000005_0003",
    ]


@given(step=st.integers(0, 10**9), attempt=st.integers(0, 10**5))
def test_a_name_has_the_step_and_the_attempt(step: int, attempt: int):
    name = checkpoint_name(step, attempt)
    assert (step_of(name), attempt_of(name)) == (step, attempt)


@pytest.mark.parametrize("name", ["", "export", "checkpoint_before", "checkpoint_"])
def test_another_folder_has_step_and_attempt_0(name: str):
    assert (step_of(name), attempt_of(name)) == (0, 0)
