from pathlib import Path

import datasets
import pytest
from source_files import (
    fragments_of,
    message_of_wrong,
    ordinals,
    read,
    rows_of,
    save_dataset,
    selected,
)

from rm_ray.data.sources.fragments import Fragment
from rm_ray.data.sources.readers import read_rows
from rm_ray.data.sources.stored_datasets import load_dataset
from rm_ray.errors import InputError


def test_a_saved_dataset_is_one_fragment_of_its_split(tmp_path: Path):
    path = save_dataset(tmp_path / "saved", train=rows_of(3, "a"), test=rows_of(2, "b"))

    assert fragments_of(f"{path}:test") == [
        Fragment(kind="saved", location=str(path), split="test")
    ]
    assert read(f"{path}:test") == rows_of(2, "b")
    assert read(f"{path}:train") == rows_of(3, "a")
    assert "has the splits train, test: name the one to read" in message_of_wrong(path)


def test_a_saved_dataset_without_splits_is_read_whole(tmp_path: Path):
    path = save_dataset(tmp_path / "saved", **{"": rows_of(3)})

    assert fragments_of(path) == [Fragment(kind="saved", location=str(path))]
    assert read(path) == rows_of(3)


def test_a_relative_saved_dataset_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_dataset(tmp_path / "saved", **{"": rows_of(3)})
    monkeypatch.chdir(tmp_path)
    (fragment,) = fragments_of("saved")
    monkeypatch.chdir("/")

    assert len(list(read_rows(fragment))) == 3


def test_an_incomplete_saved_dataset_is_refused(tmp_path: Path):
    folder = save_dataset(tmp_path / "saved", **{"": rows_of(1)})
    (folder / "state.json").unlink()

    assert f"data source '{folder}'" in message_of_wrong(folder)


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionError("cannot reach the Hub\nand a long trace"),
        FileNotFoundError("no such dataset"),
        ValueError("Unknown split"),
    ],
)
def test_a_hub_dataset_that_cannot_be_loaded_is_refused_with_what_helps(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(datasets, "get_dataset_config_names", fail)

    message = message_of_wrong("org/name:test=5")

    assert message.startswith("data source 'org/name:test' is not a local file or folder")
    assert "HF_TOKEN" in message
    assert "HF_ENDPOINT" in message
    assert message.endswith(str(failure).splitlines()[0])


def test_a_hub_dataset_with_several_configurations_is_refused_with_their_names_and_splits(
    monkeypatch: pytest.MonkeyPatch,
):
    def load(path: str, *, split: str, **config: str) -> datasets.Dataset:
        if config != {"name": "helpful"}:
            raise ValueError("Config name is missing.")
        return datasets.Dataset.from_list(rows_of(2))

    splits = {"helpful": ["train", "test"], "harmless": ["train"]}
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: list(splits))
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: splits[config])

    assert "'org/name:CONFIG:SPLIT' (helpful: train, test; harmless: train)" in message_of_wrong(
        "org/name:train"
    )
    assert read("org/name:helpful:test") == rows_of(2)
    (fragment,) = fragments_of("org/name:helpful:test=0.5")
    assert fragment.origin == "org/name:helpful:test"


def test_a_hub_dataset_is_read_by_name_and_split(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load(name: str, *, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return datasets.Dataset.from_list(rows_of(4))

    monkeypatch.setattr(datasets, "load_dataset", load)

    assert read("org/name:test") == rows_of(4)
    assert [len(rows) for rows in ordinals(selected("org/name=3"))] == [3]
    assert set(asked) == {("org/name", "test"), ("org/name", "train")}


def test_a_saved_split_is_loaded_as_a_dataset(tmp_path: Path):
    path = save_dataset(tmp_path / "saved", train=rows_of(3), test=rows_of(2))

    loaded = load_dataset(Fragment(kind="saved", location=str(path), split="test"))

    assert loaded.to_list() == rows_of(2)


def test_a_dataset_whose_files_disagree_is_refused(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n')
    (tmp_path / "b.jsonl").write_text('{"other": 1}\n')
    fragment = Fragment(kind="hub", location=str(tmp_path), split="train")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_dataset(fragment)
