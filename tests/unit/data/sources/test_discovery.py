import socket
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import (
    as_arrow,
    as_csv,
    as_parquet,
    chosen_in,
    error_of,
    fragments_of,
    message_of_wrong,
    pairs,
    read,
    rows_of,
    write,
    write_lines,
    write_parquet,
)

from rm_ray.data.sources.discovery import discover, locate
from rm_ray.data.sources.fragments import Fragment
from rm_ray.data.sources.planted import generate_rows
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.data.sources.synthetic import generate_pairs
from rm_ray.errors import InputError

NAMES = st.text("ab:=[]*?%#!& '\"~+,;@éß漢-.0123", min_size=1, max_size=12).filter(
    lambda name: name.strip(".") and not name.endswith("/")
)


@settings(max_examples=60, deadline=None)
@given(name=NAMES, other=NAMES)
def test_an_existing_file_or_folder_is_found_by_its_exact_name(
    name: str, other: str, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("names")
    file = write(folder / f"{name}.jsonl", pairs("file"))
    inside = write(folder / f"d{other}" / "a" / "pairs.jsonl", pairs("folder")).parents[1]

    assert chosen_in(file) == ["file"]
    assert chosen_in(inside) == ["folder"]
    spec = SourceSpec.parse(f"{file}=0.5")
    assert (spec.location, spec.fraction) == (str(file), 0.5)


def test_a_file_uri_may_be_percent_encoded(tmp_path: Path):
    path = write(tmp_path / "a b%20c" / "é.jsonl", pairs("file"))

    assert chosen_in(path.as_uri()) == ["file"]
    assert chosen_in(f"file://{path}") == ["file"]


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints/a.jsonl", ".Trash-1000/files/a.jsonl", ".trash/a.jsonl", "_tmp/a.jsonl",
        "__MACOSX/._a.jsonl", "deep/.hidden.jsonl", "._a.jsonl", "_a.jsonl", "~$a.jsonl",
        "$RECYCLE.BIN/a.jsonl", ".git/a.jsonl",
    ],
)  # fmt: skip
def test_hidden_files_below_a_folder_are_left_out_and_reported(name: str, tmp_path: Path):
    base = tmp_path / ".cache" / "_data"  # hidden folders above are the user's choice
    write(base / "sub" / "pairs.jsonl", pairs("shown"))
    hidden = write(base / name, pairs("hidden"))

    for place in (base, base / "**"):
        assert chosen_in(place) == ["shown"]
        read_as = locate(SourceSpec.parse(str(place))).read_as
        assert f"hidden, and left out: {name}" in read_as
    assert chosen_in(hidden) == ["hidden"]


def test_a_glob_that_names_hidden_files_finds_them(tmp_path: Path):
    write(tmp_path / "_parts" / "a.jsonl", pairs("a"))

    assert chosen_in(tmp_path / "_p*" / "a.jsonl") == ["a"]


@pytest.mark.parametrize(
    "files",
    [
        ("train-00000-of-00001.jsonl", "test-00000-of-00001.jsonl"),
        ("train.jsonl", "test.jsonl"),
        ("data/train/x.jsonl", "data/test/x.jsonl"),
        ("my-train_v2.jsonl", "my-test_v2.jsonl"),
        ("en/train.jsonl", "en/test.jsonl"),
        ("x.parquet/split=train/part-0.jsonl", "x.parquet/split=test/part-0.jsonl"),
    ],
)
def test_a_folder_of_files_named_by_split_asks_for_one(files: tuple[str, str], tmp_path: Path):
    for name, split in zip(files, ("train", "test"), strict=True):
        write(tmp_path / name, pairs(split))

    for place in (tmp_path, tmp_path / "**"):
        assert "has the splits test, train" in error_of(place)
        assert f"as in '{place}:test'" in error_of(place)
    for split in ("train", "test"):
        assert chosen_in(f"{tmp_path}:{split}") == [split]
    assert error_of(f"{tmp_path}:other").endswith("splits are test, train")


def test_a_split_is_found_by_its_aliases(tmp_path: Path):
    write(tmp_path / "training.jsonl", pairs("train"))
    write(tmp_path / "dev.jsonl", pairs("dev"))

    assert chosen_in(f"{tmp_path}:train") == chosen_in(f"{tmp_path}:training") == ["train"]
    assert chosen_in(f"{tmp_path}:dev") == chosen_in(f"{tmp_path}:validation") == ["dev"]


def test_shards_keep_the_whole_name_of_their_split(tmp_path: Path):
    for name in ("train_prefs", "test_prefs", "extra"):
        write(tmp_path / "data" / f"{name}-00000-of-00001.jsonl", pairs(name))

    assert "splits extra, test_prefs, train_prefs" in error_of(tmp_path)
    assert chosen_in(f"{tmp_path}:train_prefs") == ["train_prefs"]


def test_a_single_split_is_taken_unless_it_is_held_out(tmp_path: Path):
    write(tmp_path / "a" / "train.jsonl", pairs("train"))
    write(tmp_path / "a" / "more.jsonl", pairs("more"))
    write(tmp_path / "b" / "test.jsonl", pairs("test"))
    write(tmp_path / "c" / "latest.jsonl", pairs("latest"))
    write(tmp_path / "d" / "part-00000-of-00001.jsonl", pairs("part"))

    assert chosen_in(tmp_path / "a") == ["more", "train"]
    assert "has the splits test" in error_of(tmp_path / "b")
    assert chosen_in(tmp_path / "c") == ["latest"]
    assert chosen_in(tmp_path / "d") == ["part"]


CARD = """\
---
license: mit
configs:
- config_name: helpful
  default: true
  data_files:
  - split: train
    path: helpful/*.jsonl
  - split: test
    path: [apart/h.jsonl]
- config_name: harmless
  data_files: harmless/**
---
# Pairs
"""


def card_folder(folder: Path, card: str = CARD) -> Path:
    write(folder / "README.md", card.encode())
    for name in ("helpful/a", "apart/h", "harmless/x/b", "unlisted"):
        write(folder / f"{name}.jsonl", pairs(name))
    return folder


def test_a_dataset_card_defines_the_splits(tmp_path: Path):
    folder = card_folder(tmp_path / "ds[1]")

    assert "has the splits train, test" in error_of(folder)
    assert chosen_in(f"{folder}:train") == ["helpful/a"]
    assert chosen_in(f"{folder}:helpful:test") == ["apart/h"]
    assert chosen_in(f"{folder}:harmless:train") == ["harmless/x/b"]
    assert chosen_in(f"{folder}:harmless") == ["harmless/x/b"]


def test_several_configurations_without_a_default_must_be_named(tmp_path: Path):
    folder = card_folder(tmp_path / "ds", CARD.replace("  default: true\n", ""))

    message = error_of(folder)

    assert f"'{folder}:CONFIG:SPLIT' (helpful: train, test; harmless: train)" in message


def test_a_card_whose_files_are_missing_or_that_is_broken_is_refused(tmp_path: Path):
    missing = card_folder(tmp_path / "a", CARD.replace("helpful/*", "gone/*"))
    broken = card_folder(tmp_path / "b", "---\nconfigs: [\n---\n")
    plain = card_folder(tmp_path / "c", "# No front matter\n")

    assert "the split 'train' is in gone/*.jsonl" in error_of(f"{missing}:train")
    assert "cannot read its 'configs'" in error_of(broken)
    assert len(chosen_in(plain)) == 4


def test_the_cache_of_datasets_is_a_folder_with_splits(tmp_path: Path):
    write(tmp_path / "org___name-train.arrow", as_arrow([{"chosen": "train"}], stream=True))
    write(tmp_path / "org___name-test.arrow", as_arrow([{"chosen": "test"}], stream=True))
    write(tmp_path / "cache-0123abc.arrow", as_arrow([{"chosen": "cache"}], stream=True))
    write(tmp_path / "dataset_info.json", b"{}")

    assert chosen_in(f"{tmp_path}:train") == ["train"]


def test_a_saved_dataset_needs_a_split_unless_it_has_only_one(tmp_path: Path):
    part = datasets.Dataset.from_list([{"chosen": "a", "rejected": "b"}])
    both, one = tmp_path / "both", tmp_path / "one"
    datasets.DatasetDict(train=part, test=part).save_to_disk(str(both))
    datasets.DatasetDict(prefs=part).save_to_disk(str(one))

    assert "has the splits train, test" in error_of(both)
    assert chosen_in(f"{both}:test") == chosen_in(one) == ["a"]


def test_formats_may_be_mixed_and_equal_names_are_reported(tmp_path: Path):
    write(tmp_path / "a.csv", as_csv([{"chosen": "csv", "rejected": "x"}]))
    write(tmp_path / "b.json", b'[{"chosen": "json"}]')
    write(tmp_path / "b.parquet", as_parquet([{"chosen": "parquet"}]))
    write(tmp_path / "dataset_infos.json", b"{}")
    write(tmp_path / "empty.jsonl", b"")

    assert chosen_in(tmp_path) == ["csv", "json", "parquet"]
    read_as = locate(SourceSpec.parse(str(tmp_path))).read_as
    assert "4 files of csv, json, jsonl, parquet" in read_as
    assert "perhaps the same pairs twice: b.json, b.parquet" in read_as


def test_a_folder_without_data_is_refused_with_its_contents(tmp_path: Path):
    write(tmp_path / "notes.txt", b"")
    write(tmp_path / "pairs.xlsx", b"")

    assert f"{tmp_path} contains: notes.txt, pairs.xlsx" in error_of(tmp_path)
    hidden = write(tmp_path / "e" / "_x.jsonl", pairs("x"))
    for place in (hidden.parent, hidden.parent / "*.jsonl"):
        assert "hidden, and left out: _x.jsonl" in error_of(place)


def test_a_folder_named_like_a_file_is_a_folder(tmp_path: Path):
    write(tmp_path / "pairs.parquet" / "_SUCCESS", b"")
    write(tmp_path / "pairs.parquet" / "part-0.parquet", as_parquet([{"chosen": "a"}]))

    assert chosen_in(tmp_path / "pairs.parquet") == ["a"]


def test_a_dangling_link_is_refused(tmp_path: Path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "gone.jsonl")

    assert "no such file" in error_of(tmp_path / "a.jsonl")


def test_a_file_is_one_fragment_with_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write_lines(tmp_path / "pairs.jsonl", rows_of(1))

    expected = [Fragment(kind="jsonl", location=str(path))]

    for text in (path, "pairs.jsonl", "./pairs.jsonl", "~/pairs.jsonl", path.as_uri()):
        found = fragments_of(text)
        assert [f.location.removeprefix("file://") for f in found] == [expected[0].location]
        assert [f.kind for f in found] == ["jsonl"]
    assert fragments_of(path) == expected


def test_a_folder_is_all_the_pair_files_in_it_by_name(tmp_path: Path):
    write_parquet(tmp_path / "pairs" / "b.parquet", rows_of(1))
    write_lines(tmp_path / "pairs" / "c.jsonl.gz", rows_of(1))
    write_lines(tmp_path / "pairs" / "a" / "deep.jsonl", rows_of(1))
    (tmp_path / "pairs" / "README.md").write_text("not pairs")

    found = fragments_of(tmp_path / "pairs")

    assert [(f.kind, Path(f.location).name) for f in found] == [
        ("jsonl", "deep.jsonl"),
        ("parquet", "b.parquet"),
        ("jsonl", "c.jsonl.gz"),
    ]


def test_a_glob_is_the_files_that_match_by_name(tmp_path: Path):
    for name in ("part-2.jsonl", "part-1.jsonl", "part-1.txt", "other.jsonl"):
        write_lines(tmp_path / name, rows_of(1))

    names = [Path(f.location).name for f in fragments_of(tmp_path / "part-*")]

    assert names == ["part-1.jsonl", "part-2.jsonl"]
    assert [Path(f.location).name for f in fragments_of(tmp_path / "part-[2]*")] == ["part-2.jsonl"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path):
    path = write_lines(tmp_path / "pairs[1].jsonl", rows_of(2))

    assert fragments_of(path) == [Fragment(kind="jsonl", location=str(path))]


def test_the_built_in_pairs_are_a_fragment_of_their_split():
    assert fragments_of("builtin") == fragments_of("builtin:train")
    assert fragments_of("builtin:test") == [
        Fragment(kind="builtin", location="builtin", split="test")
    ]
    assert read("builtin:test") == list(generate_pairs("test"))


def test_planted_preferences_are_splits_of_the_built_in_data():
    assert fragments_of("builtin:lists") == [
        Fragment(kind="builtin", location="builtin", split="lists")
    ]
    assert read("builtin:lists") == list(generate_rows("lists"))
    assert locate(SourceSpec.parse("builtin:lists")).read_as == (
        "planted preferences, split 'lists'"
    )
    assert locate(SourceSpec.parse("builtin")).read_as == "built-in pairs, split 'train'"


def test_any_other_name_is_a_dataset_on_the_hub():
    assert fragments_of("org/name") == [Fragment(kind="hub", location="org/name", split="train")]
    assert fragments_of("org/name:test") == [
        Fragment(kind="hub", location="org/name", split="test")
    ]


def test_a_missing_file_is_named_with_the_endings_that_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for text in ("missing.jsonl", "./missing", "missing/*.parquet", f"{tmp_path}/missing.jsonl.gz"):
        message = message_of_wrong(text)
        assert f"data source '{text}': no such file" in message
        assert ".jsonl, .jsonl.gz, .parquet" in message
        assert f"relative paths start at {tmp_path}" in message


def test_a_folder_without_pairs_and_a_file_of_another_kind_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "pairs.txt").write_text("chosen,rejected\n")

    assert "nothing in it that ends in .jsonl" in message_of_wrong(tmp_path / "empty")
    assert "must end in .jsonl, .jsonl.gz, .parquet" in message_of_wrong(tmp_path / "pairs.txt")


def test_an_unknown_filesystem_is_refused():
    for text in ("nosuchscheme://bucket/a.jsonl", "nosuchscheme://bucket/a.jsonl=5"):
        assert f"data source '{text}'" in message_of_wrong(text)


def test_an_unreachable_address_is_refused():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{bound.getsockname()[1]}/pairs.jsonl"
        with pytest.raises(InputError, match="cannot be opened"):
            discover(SourceSpec.parse(address))
