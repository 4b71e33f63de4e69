import gzip
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.data.sources.discovery import discover
from rm_ray.data.sources.fragments import Fragment
from rm_ray.data.sources.mixture import Selection, mixture_fingerprint, select
from rm_ray.data.sources.readers import count_rows, read_rows
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.data.sources.stored_datasets import load_dataset
from rm_ray.data.sources.synthetic import SPLITS, generate_pairs
from rm_ray.errors import InputError

Row = dict[str, Any]


def rows_of(count: int, name: str = "") -> list[Row]:
    return [{"chosen": f"{name} so {i} é", "rejected": f"{name} no {i}"} for i in range(count)]


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_parquet(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def save_dataset(path: Path, **splits: Sequence[Row]) -> Path:
    parts = {name: datasets.Dataset.from_list(list(rows)) for name, rows in splits.items()}
    (parts[""] if "" in parts else datasets.DatasetDict(parts)).save_to_disk(str(path))
    return path


def fragments_of(text: str | Path) -> list[Fragment]:
    return discover(SourceSpec.parse(str(text)))


def read(text: str | Path) -> list[Row]:
    return [json.loads(row) for f in fragments_of(text) for _, row in read_rows(f)]


def selected(*texts: str | Path, seed: int = 0) -> list[Selection]:
    return select([SourceSpec.parse(str(text)) for text in texts], seed)


def ordinals(selections: Sequence[Selection]) -> list[list[int]]:
    return [[] if s.rows is None else s.rows.tolist() for s in selections]


def message_of_wrong(*texts: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        for selection in selected(*texts):
            list(read_rows(selection.fragment))
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "location", "split", "fraction", "count"),
    [
        ("pairs.jsonl", "pairs.jsonl", None, None, None),
        ("pairs.jsonl=0.5", "pairs.jsonl", None, 0.5, None),
        ("pairs.jsonl=400", "pairs.jsonl", None, None, 400),
        ("pairs.jsonl=1.0", "pairs.jsonl", None, 1.0, None),
        ("pairs.jsonl=1", "pairs.jsonl", None, None, 1),
        ("pairs.jsonl=.25", "pairs.jsonl", None, 0.25, None),
        ("org/name", "org/name", None, None, None),
        ("org/name:test", "org/name", "test", None, None),
        ("org/name:test=0.5", "org/name", "test", 0.5, None),
        ("org/name:train_prefs=400", "org/name", "train_prefs", None, 400),
        (" builtin:train ", "builtin", "train", None, None),
        ("s3://bucket/pairs/*.parquet=7", "s3://bucket/pairs/*.parquet", None, None, 7),
        ("hdfs://host:9000/pairs.jsonl", "hdfs://host:9000/pairs.jsonl", None, None, None),
        ("/data/day=3/pairs.jsonl", "/data/day=3/pairs.jsonl", None, None, None),
        ("/data/day=3/pairs.jsonl=5", "/data/day=3/pairs.jsonl", None, None, 5),
    ],
)
def test_a_source_is_a_location_with_a_split_and_a_share(
    text: str, location: str, split: str | None, fraction: float | None, count: int | None
):
    assert SourceSpec.parse(text) == SourceSpec(
        text=text, location=location, split=split, fraction=fraction, count=count
    )


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "must look like path-or-dataset[:split][=share]"),
        ("a.jsonl=0", "a number of rows must be at least 1"),
        ("a.jsonl=0.0", "a fraction must be above 0 and at most 1.0"),
        ("a.jsonl=1.5", "a fraction must be above 0 and at most 1.0"),
    ],
)
def test_a_share_out_of_range_is_refused_with_the_rule(text: str, rule: str):
    with pytest.raises(InputError) as caught:
        SourceSpec.parse(text)

    assert f"data source '{text}'" in str(caught.value)
    assert rule in str(caught.value)


@pytest.mark.parametrize("share", ["1.2.3", ".", "0.5.", "half", "-5", "50%", "1e3", ""])
def test_a_share_that_is_no_number_is_refused_and_not_looked_for_on_the_hub(share: str):
    with pytest.raises(InputError, match=r"data source 'a\.jsonl="):
        fragments_of(f"a.jsonl={share}")


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


def test_the_kind_of_a_file_is_told_by_its_ending(tmp_path: Path):
    assert [f.kind for f in fragments_of(write_lines(tmp_path / "a.jsonl", rows_of(1)))] == [
        "jsonl"
    ]
    assert [f.kind for f in fragments_of(write_lines(tmp_path / "a.jsonl.gz", rows_of(1)))] == [
        "jsonl"
    ]
    assert [f.kind for f in fragments_of(write_parquet(tmp_path / "a.parquet", rows_of(1)))] == [
        "parquet"
    ]


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


def test_a_saved_dataset_in_this_folder_is_found_from_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_dataset(tmp_path / "saved", **{"": rows_of(3)})
    monkeypatch.chdir(tmp_path)
    (fragment,) = fragments_of("saved")
    monkeypatch.chdir("/")

    assert len(list(read_rows(fragment))) == 3


def test_the_built_in_pairs_are_a_fragment_of_their_split():
    assert fragments_of("builtin") == fragments_of("builtin:train")
    assert fragments_of("builtin:test") == [
        Fragment(kind="builtin", location="builtin", split="test")
    ]
    assert read("builtin:test") == list(generate_pairs("test"))


def test_any_other_name_is_a_dataset_on_the_hub():
    assert fragments_of("org/name") == [Fragment(kind="hub", location="org/name", split="train")]
    assert fragments_of("org/name:test") == [
        Fragment(kind="hub", location="org/name", split="test")
    ]


def test_an_origin_names_the_location_and_the_split():
    assert Fragment(kind="jsonl", location="/a/b.jsonl").origin == "/a/b.jsonl"
    assert Fragment(kind="hub", location="org/name", split="test").origin == "org/name:test"


def test_all_kinds_of_source_give_the_same_rows(tmp_path: Path):
    rows = rows_of(5)

    for path in (
        write_lines(tmp_path / "a.jsonl", rows),
        write_lines(tmp_path / "a.jsonl.gz", rows),
        write_parquet(tmp_path / "a.parquet", rows),
        save_dataset(tmp_path / "saved", **{"": rows}),
    ):
        (fragment,) = fragments_of(path)
        assert [(i, json.loads(text)) for i, text in read_rows(fragment)] == list(enumerate(rows))
        assert count_rows(fragment) == 5


def test_messages_come_out_of_parquet_and_datasets_as_they_went_in(tmp_path: Path):
    rows = list(generate_pairs("test", 4))

    assert read(write_parquet(tmp_path / "a.parquet", rows)) == rows
    assert read(save_dataset(tmp_path / "saved", **{"": rows})) == rows


def test_a_row_of_json_lines_is_its_line_and_blank_lines_are_no_rows(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    first, second = (json.dumps(row) for row in rows_of(2))
    path.write_text(f"\n{first}\r\n  \n{second}")
    (fragment,) = fragments_of(path)

    assert [(i, json.loads(text)) for i, text in read_rows(fragment)] == [
        (1, rows_of(2)[0]),
        (3, rows_of(2)[1]),
    ]
    assert count_rows(fragment) == 2


def test_the_built_in_counts_are_known_without_reading():
    for split, count in SPLITS.items():
        assert count_rows(Fragment(kind="builtin", location="builtin", split=split)) == count


def test_without_a_share_all_rows_are_taken_in_order(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", rows_of(5))

    for text in (path, f"{path}=1.0"):
        assert selected(text) == [Selection(fragment=fragments_of(path)[0], rows=None)]


@pytest.fixture(scope="module")
def file_of_40(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("pairs") / "a.jsonl", rows_of(40))


@given(count=st.integers(1, 40), seed=st.integers(0, 2**40))
def test_a_count_takes_exactly_so_many_different_rows(file_of_40: Path, count: int, seed: int):
    (rows,) = ordinals(selected(f"{file_of_40}={count}", seed=seed))

    assert len(rows) == count
    assert rows == sorted(set(rows))
    assert set(rows) <= set(range(40))


@given(percent=st.integers(3, 99), seed=st.integers(0, 2**40))
def test_a_fraction_takes_the_nearest_number_of_rows(file_of_40: Path, percent: int, seed: int):
    (rows,) = ordinals(selected(f"{file_of_40}={percent / 100}", seed=seed))

    assert abs(len(rows) - 40 * percent / 100) <= 0.5
    assert rows == sorted(set(rows))
    assert set(rows) <= set(range(40))


def test_a_fraction_that_comes_to_no_row_is_refused(file_of_40: Path):
    with pytest.raises(InputError, match=r"a\.jsonl=0\.01'"):
        selected(f"{file_of_40}=0.01")


def test_the_same_seed_takes_the_same_rows_and_another_others(file_of_40: Path):
    by_seed = [ordinals(selected(f"{file_of_40}=20", seed=seed)) for seed in range(5)]

    assert by_seed == [ordinals(selected(f"{file_of_40}=20", seed=seed)) for seed in range(5)]
    assert len({tuple(rows) for (rows,) in by_seed}) == 5


def test_a_larger_share_of_the_same_source_holds_the_smaller(file_of_40: Path):
    small, large = (ordinals(selected(f"{file_of_40}={count}"))[0] for count in (10, 25))

    assert set(small) < set(large)


def test_a_share_is_taken_of_all_the_files_of_a_folder_together(tmp_path: Path):
    for name, count in (("a", 30), ("b", 1), ("c", 20)):
        write_lines(tmp_path / f"{name}.jsonl", rows_of(count))

    selections = selected(f"{tmp_path}=40")

    assert [Path(s.fragment.location).name for s in selections] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    taken = ordinals(selections)
    assert sum(map(len, taken)) == 40
    assert len(taken[0]) >= 40 - 1 - 20
    assert len(taken[2]) >= 40 - 1 - 30
    for rows, count in zip(taken, (30, 1, 20), strict=True):
        assert set(rows) <= set(range(count))
        assert len(set(rows)) == len(rows)


def test_every_row_of_a_folder_is_taken_by_a_count_of_all(tmp_path: Path):
    for name, count in (("a", 3), ("b", 2)):
        write_lines(tmp_path / f"{name}.jsonl", rows_of(count))

    assert ordinals(selected(f"{tmp_path}=5")) == [[0, 1, 2], [0, 1]]


def test_a_mixture_is_its_sources_one_after_another(tmp_path: Path, file_of_40: Path):
    other = write_parquet(tmp_path / "b.parquet", rows_of(10))

    mixture = selected(other, f"{file_of_40}=7", "builtin:test=0.5")

    assert [s.fragment.kind for s in mixture] == ["parquet", "jsonl", "builtin"]
    assert mixture[0].rows is None
    assert [len(rows) for rows in ordinals(mixture)] == [0, 7, 250]
    assert ordinals(mixture)[1] == ordinals(selected(f"{file_of_40}=7"))[0]


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


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_file_without_rows_is_empty(name: str, tmp_path: Path):
    if name.endswith(".parquet"):
        columns = {"chosen": pa.array([], pa.string()), "rejected": pa.array([], pa.string())}
        pq.write_table(pa.table(columns), tmp_path / name)
    else:
        write_lines(tmp_path / name, [])

    message = message_of_wrong(tmp_path / name)

    assert message == f"data source '{tmp_path / name}' is empty: it has no rows"


def test_one_empty_file_among_others_is_no_error(tmp_path: Path):
    write_lines(tmp_path / "a.jsonl", [])
    write_lines(tmp_path / "b.jsonl", rows_of(3))

    assert len(selected(tmp_path)) == 2


def test_a_file_of_no_bytes_is_not_a_parquet_file(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"")

    assert f"{tmp_path / 'a.parquet'} is not a Parquet file" in message_of_wrong(
        tmp_path / "a.parquet"
    )


def test_a_damaged_parquet_file_is_named(tmp_path: Path):
    path = write_parquet(tmp_path / "a.parquet", rows_of(3_000))
    damaged = bytearray(path.read_bytes())
    middle = len(damaged) // 2
    damaged[10:middle] = bytes(byte ^ 0x5A for byte in damaged[10:middle])
    path.write_bytes(damaged)

    assert str(path) in message_of_wrong(path)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ('{"chosen": "a", "rejected": }', "not valid JSON (Expecting value at character 29)"),
        ("chosen,rejected", "not valid JSON"),
        ('{"chosen": "a"', "not valid JSON"),
    ],
)
@pytest.mark.parametrize("line", [1, 3])
def test_broken_json_is_named_by_file_and_line(broken: str, told: str, line: int, tmp_path: Path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(row) for row in rows_of(3)]
    lines[line - 1] = broken
    path.write_text("\n".join(lines))

    message = message_of_wrong(path)

    assert message.startswith(f"{path}, line {line}: {told}")
    assert "'chosen' and 'rejected'" in message


def test_broken_json_in_a_compressed_file_is_named_by_line_too(tmp_path: Path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"chosen": "a", "rejected": "b"}\n\n{]\n'))

    assert message_of_wrong(path).startswith(f"{path}, line 3: not valid JSON")


def test_text_that_is_not_utf8_is_named_by_line(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(rows_of(1)[0]).encode() + b"\n" + '{"a": "é"}'.encode("latin-1"))

    assert message_of_wrong(path).startswith(f"{path}, line 2: not UTF-8 text")


@pytest.mark.parametrize("share", ["", "=5", "=0.5"])
@pytest.mark.parametrize("part", ["cut in the middle", "not compressed"])
def test_a_broken_gzip_file_is_named(part: str, share: str, tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl.gz", rows_of(4_000))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if part == "cut in the middle" else b"plain text\n")

    assert message_of_wrong(f"{path}{share}").startswith(f"{path} is not a whole gzip file")


def test_wrong_columns_are_refused_with_those_found(tmp_path: Path):
    rows = [{"prompt": "Why?", "chosen": "So.", "response_b": "No."}]

    for path in (
        write_lines(tmp_path / "a.jsonl", rows),
        write_parquet(tmp_path / "a.parquet", rows),
        save_dataset(tmp_path / "saved", **{"": rows}),
    ):
        assert message_of_wrong(path) == (
            f"data source '{path}' must have the columns 'chosen' and 'rejected'; it has: "
            "prompt, chosen, response_b. Where they have other names, say which with data.columns, "
            "as in chosen=COLUMN"
        )


def test_lines_that_are_no_objects_are_refused_with_what_they_are(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", [["So.", "No."]])

    assert "it has: list. " in message_of_wrong(path)


@pytest.mark.parametrize("count", [41, 1_000_000])
def test_more_rows_than_there_are_are_refused_with_how_many_there_are(count: int, file_of_40: Path):
    text = f"{file_of_40}={count}"

    assert message_of_wrong(text) == f"data source '{text}' asks for {count} rows of 40"
    assert [len(rows) for rows in ordinals(selected(f"{file_of_40}=40"))] == [40]


def test_an_unknown_split_is_refused_with_those_there_are(tmp_path: Path, file_of_40: Path):
    with_splits = save_dataset(tmp_path / "with", train=rows_of(1), test=rows_of(1))
    without = save_dataset(tmp_path / "without", **{"": rows_of(1)})

    assert message_of_wrong("builtin:eval") == "data source 'builtin:eval': splits are train, test"
    assert message_of_wrong(f"{with_splits}:eval").endswith("splits are train, test")
    assert message_of_wrong(f"{without}:eval").endswith("this dataset has no splits")
    assert message_of_wrong(f"{file_of_40}:eval").endswith("files have no split ':eval'")


def test_a_folder_that_is_half_a_saved_dataset_is_refused(tmp_path: Path):
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

    assert message.startswith("data source 'org/name:test' is no file or folder here")
    assert "HF_TOKEN" in message
    assert "HF_ENDPOINT" in message
    assert message.endswith(str(failure).splitlines()[0])


def test_a_hub_dataset_of_several_configurations_is_refused_with_them_and_their_splits(
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


def test_a_moved_file_keeps_its_fingerprint(tmp_path: Path):
    before = mixture_fingerprint(selected(write_lines(tmp_path / "a.jsonl", rows_of(4))))
    moved = (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")

    assert mixture_fingerprint(selected(moved)) == before


def test_whatever_changes_the_rows_changes_the_fingerprint(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", rows_of(40))
    other = write_lines(tmp_path / "b.jsonl", rows_of(40, "other"))
    texts: list[list[str | Path]] = [
        [path],
        [other],
        [path, other],
        [other, path],
        [path, path],
        [f"{path}=20"],
        [f"{path}=21"],
        ["builtin:test"],
        ["builtin:train"],
    ]

    prints = [mixture_fingerprint(selected(*several)) for several in texts]
    prints.append(mixture_fingerprint(selected(f"{path}=20", seed=1)))

    assert len(set(prints)) == len(prints)
    assert prints == [
        *(mixture_fingerprint(selected(*several)) for several in texts),
        mixture_fingerprint(selected(f"{path}=20", seed=1)),
    ]


def test_a_saved_dataset_has_the_fingerprint_of_its_contents(tmp_path: Path):
    one = save_dataset(tmp_path / "one", train=rows_of(3), test=rows_of(2))

    splits = [mixture_fingerprint(selected(f"{one}:{split}")) for split in ("train", "test")]

    assert splits[0] != splits[1]
    assert splits == [
        mixture_fingerprint(selected(f"{one}:{split}")) for split in ("train", "test")
    ]


def test_a_dataset_whose_files_do_not_agree_is_refused(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n')
    (tmp_path / "b.jsonl").write_text('{"other": 1}\n')
    fragment = Fragment(kind="hub", location=str(tmp_path), split="train")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_dataset(fragment)


def test_an_address_that_does_not_answer_is_refused():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{bound.getsockname()[1]}/pairs.jsonl"
        with pytest.raises(InputError, match="cannot be opened"):
            discover(SourceSpec.parse(address))


@pytest.mark.parametrize(("kind", "around"), [("jsonl", "{}"), ("json", "[{}]")])
def test_a_key_that_a_row_has_twice_is_named(tmp_path: Path, kind: Any, around: str):
    path = tmp_path / f"pairs.{kind}"
    row = '{"prompt": "Why?", "chosen": "So.", "rejected": "No.", "prompt": "What?"}'
    path.write_text(around.replace("{}", row))
    with pytest.raises(InputError, match="the key 'prompt' stands twice in one object"):
        list(read_rows(Fragment(kind=kind, location=str(path))))
