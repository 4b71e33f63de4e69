from collections.abc import Iterable
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from rm_ray.data.sources.folders import HELD_OUT, Files, is_hidden, list_folder, list_glob


def files_of(folder: Path, names: Iterable[str]) -> Files:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return list_folder(LocalFileSystem(), str(folder))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("tests/a.jsonl", "tests"),
        ("my_evals.jsonl", "evals"),
        ("holdout.jsonl", "holdout"),
        ("heldout-v2.jsonl", "heldout"),
        ("held_out.jsonl", "held"),
        ("benchmark/a.jsonl", "benchmark"),
        ("testSet.jsonl", "test"),
        ("TESTSet.jsonl", "test"),
        ("testSet-00000-of-00001.jsonl", "test"),
    ],
)
def test_held_out_files_are_a_split_of_their_own(name: str, split: str, tmp_path: Path):
    files = files_of(
        tmp_path, [name, "trainSet.jsonl", "latest.jsonl", "upheld.jsonl", "DevOps.jsonl"]
    )

    assert set(files.splits) == {split, "train"}
    assert split in HELD_OUT
    assert files.by_split["train"] == [str(tmp_path / "trainSet.jsonl")]
    assert files.by_split[""] == [
        str(tmp_path / n) for n in ("DevOps.jsonl", "latest.jsonl", "upheld.jsonl")
    ]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("held_out.jsonl", "held_out"), ("heldout.jsonl", "holdout"), ("tests.jsonl", "test")],
)
def test_a_held_out_split_is_found_by_its_other_names(name: str, wanted: str, tmp_path: Path):
    files = files_of(tmp_path, [name, "train.jsonl"])

    assert files.find_split(wanted) == [str(tmp_path / name)]


@pytest.mark.parametrize("folder", ["Trash", "#recycle", "old~"])
def test_deleted_files_are_hidden_unless_a_pattern_names_them(folder: str, tmp_path: Path):
    files = files_of(tmp_path, ["sub/a.jsonl", f"sub/{folder}/b.jsonl"])

    assert files.by_split == {"": [str(tmp_path / "sub/a.jsonl")]}
    assert files.hidden == (f"sub/{folder}/b.jsonl",)
    assert not is_hidden(["Trashed", "a.jsonl"])
    named = list_glob(LocalFileSystem(), f"{tmp_path}/*/{folder}/*.jsonl")
    assert named.by_split == {"": [str(tmp_path / f"sub/{folder}/b.jsonl")]}
