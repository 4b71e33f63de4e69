import json
import uuid
from pathlib import Path

import fsspec
import pytest
from pyarrow import fs as pafs

from rm_ray.errors import InputError
from rm_ray.storage import Storage, below


@pytest.fixture(params=["folder", "file URI", "fsspec URI"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    uris = {
        "folder": str(tmp_path / "runs"),
        "file URI": (tmp_path / "runs").as_uri(),
        "fsspec URI": f"memory://{uuid.uuid4().hex}/runs",
    }
    return Storage.open(uris[request.param])


def names(storage: Storage, folder: str = "") -> list[str]:
    return [entry.name for entry in storage.list(folder)]


def test_a_local_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    assert Storage.open("runs/../here").path == str(tmp_path / "here")
    assert Storage.open("~/runs").path == str(tmp_path / "home" / "runs")


def test_only_a_folder_of_this_machine_is_local(tmp_path: Path):
    assert Storage.open(str(tmp_path)).is_local
    assert Storage.open(tmp_path.as_uri()).is_local
    assert not Storage.open("memory://anywhere").is_local


def test_a_file_uri_and_its_path_are_the_same_folder(tmp_path: Path):
    Storage.open(tmp_path.as_uri()).write_text("a/b.txt", "text")

    assert Storage.open(str(tmp_path)).read_text("a/b.txt") == "text"
    assert (tmp_path / "a" / "b.txt").read_text() == "text"


def test_an_fsspec_uri_writes_where_fsspec_reads():
    bucket = uuid.uuid4().hex

    Storage.open(f"memory://{bucket}/runs").write_text("a/b.txt", "text")

    filesystem = fsspec.filesystem("memory")
    assert filesystem.cat(f"/{bucket}/runs/a/b.txt") == b"text"


def test_an_unknown_scheme_is_refused_by_name():
    with pytest.raises(InputError) as caught:
        Storage.open("nosuchscheme://bucket/runs")

    assert "run.storage_path 'nosuchscheme://bucket/runs' cannot be opened" in str(caught.value)


def test_text_reads_back_as_written(storage: Storage):
    storage.write_text("deep/down/a.txt", "für 好\n")

    assert storage.read_text("deep/down/a.txt") == "für 好\n"


def test_writing_again_replaces_the_text(storage: Storage):
    storage.write_text("a.txt", "a longer text than the next")
    storage.write_text("a.txt", "short")

    assert storage.read_text("a.txt") == "short"
    assert names(storage) == ["a.txt"]


def test_a_reader_of_the_old_text_is_not_disturbed_by_a_write(tmp_path: Path):
    storage = Storage.open(str(tmp_path))
    storage.write_text("a.txt", "old")

    with (tmp_path / "a.txt").open() as reader:
        storage.write_text("a.txt", "new")
        assert reader.read() == "old"

    assert storage.read_text("a.txt") == "new"


def test_json_reads_back_and_is_none_if_the_file_is_missing(storage: Storage):
    value = {"a": [1, 2.5, None], "ü": {"b": True}}

    storage.write_json("x/value.json", value)

    assert storage.read_json("x/value.json") == value
    assert json.loads(storage.read_text("x/value.json")) == value
    assert storage.read_json("x/other.json") is None


def test_exists_finds_files_and_folders(storage: Storage):
    storage.write_text("folder/file.txt", "")

    assert storage.exists("folder/file.txt")
    assert storage.exists("folder")
    assert not storage.exists("folder/other.txt")
    assert not storage.exists("other")


def test_list_is_sorted_by_name_and_empty_if_the_folder_is_missing(storage: Storage):
    for name in ("b.txt", "a.txt", "c/d.txt"):
        storage.write_text(name, name)

    assert names(storage) == ["a.txt", "b.txt", "c"]
    assert [entry.is_file for entry in storage.list()] == [True, True, False]
    assert [entry.is_folder for entry in storage.list()] == [False, False, True]
    assert names(storage, "c") == ["d.txt"]
    assert names(storage, "missing") == []


def test_a_nested_folder_sees_the_same_files(storage: Storage):
    storage.folder("run").folder("one").write_text("a.txt", "text")

    assert storage.read_text("run/one/a.txt") == "text"
    assert storage.folder("run/one").path == storage.join("run/one")


def test_join_has_one_slash_between_folder_and_name():
    assert Storage(pafs.LocalFileSystem(), "/a/b/").join("c") == "/a/b/c"
    assert Storage(pafs.LocalFileSystem(), "/a/b").join("c") == "/a/b/c"
    assert Storage(pafs.LocalFileSystem(), "/").join("c") == "/c"


def test_delete_removes_a_folder_with_its_contents_and_nothing_else(storage: Storage):
    storage.write_text("gone/deep/a.txt", "a")
    storage.write_text("stays/b.txt", "b")

    storage.delete("gone")

    assert names(storage) == ["stays"]
    assert storage.read_text("stays/b.txt") == "b"


def test_upload_copies_nested_folders(storage: Storage, tmp_path: Path):
    local = tmp_path / "local"
    (local / "deep").mkdir(parents=True)
    (local / "a.bin").write_bytes(b"\x00\x01\xff")
    (local / "deep" / "b.txt").write_text("b")

    storage.upload(local, "copies/first")

    assert names(storage, "copies/first") == ["a.bin", "deep"]
    with storage.filesystem.open_input_stream(storage.join("copies/first/a.bin")) as stream:
        assert stream.read() == b"\x00\x01\xff"
    assert storage.read_text("copies/first/deep/b.txt") == "b"


def test_a_check_leaves_nothing_behind(storage: Storage):
    storage.write_text("a.txt", "a")

    storage.check_writable()

    assert names(storage) == ["a.txt"]


def test_a_check_creates_a_missing_folder(tmp_path: Path):
    Storage.open(str(tmp_path / "new" / "runs")).check_writable()

    assert (tmp_path / "new" / "runs").is_dir()


def test_an_unwritable_path_is_refused_with_what_to_do(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(InputError) as caught:
        Storage.open(str(tmp_path / "file" / "runs")).check_writable()

    assert f"run.storage_path '{tmp_path / 'file' / 'runs'}' cannot be written" in str(caught.value)
    assert "--run.storage_path" in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_storage_that_does_not_read_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Storage, "read_text", lambda self, name: "something else")

    with pytest.raises(InputError, match="does not read back"):
        Storage.open(str(tmp_path)).check_writable()


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("~/rm_ray/", "~/rm_ray/run"),
        ("s3://bucket/rm_ray", "s3://bucket/rm_ray/run"),
        ("s3://b/rm_ray/?region=x&scheme=http", "s3://b/rm_ray/run?region=x&scheme=http"),
        ("/a?b", "/a?b/run"),
    ],
)
def test_a_name_below_a_uri_keeps_the_query_at_the_end(place: str, expected: str):
    assert below(place, "run") == expected


def test_truncated_json_is_reported_with_its_path(storage: Storage):
    storage.write_text("half.json", '{"a": ')
    with pytest.raises(InputError, match=r"half.json is not valid JSON"):
        storage.read_json("half.json")


def test_a_missing_name_is_looked_up_as_neither_file_nor_folder(storage: Storage):
    storage.write_text("run/a.txt", "four")

    file, folder, missing = storage.look_up(["run/a.txt", "run", "run/b.txt"])

    assert (file.name, file.size, file.is_file, file.is_folder) == ("run/a.txt", 4, True, False)
    assert (folder.is_file, folder.is_folder) == (False, True)
    assert (missing.is_file, missing.is_folder, missing.modified) == (False, False, None)


def test_a_recursive_list_includes_nested_entries(storage: Storage):
    for name in ("b/c/d.txt", "a.txt"):
        storage.write_text(name, name)

    assert [entry.name for entry in storage.list(recursive=True)] == ["a.txt", "b", "c", "d.txt"]


def test_a_file_is_read_in_blocks_of_up_to_a_mebibyte(storage: Storage):
    text = "".join(map(str, range(400_000)))
    storage.write_text("long.txt", text)

    blocks = list(storage.read_blocks("long.txt"))

    assert b"".join(blocks) == text.encode()
    assert [len(block) for block in blocks[:2]] == [2**20, 2**20]


def test_files_and_folders_have_local_copies(storage: Storage):
    for name in ("run/a.txt", "run/b/c.txt"):
        storage.write_text(name, name)

    assert [path.read_text() for path in storage.local_copies(["run/a.txt", "run/b/c.txt"])] == [
        "run/a.txt",
        "run/b/c.txt",
    ]
    with storage.folder("run").local_folder() as folder:
        assert (folder / "b" / "c.txt").read_text() == "run/b/c.txt"
    assert folder.exists() == storage.is_local  # a copy is deleted afterwards
