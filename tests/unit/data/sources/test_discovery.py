import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_ray.data.sources import json_rows
from rm_ray.data.sources.discovery import locate
from rm_ray.data.sources.readers import count_rows, read_rows
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.errors import InputError

Row = dict[str, Any]
SEPARATORS = "a\u2028b\x85c\u2029d\x0be\x1cf"
ROWS: list[Row] = [
    {"prompt": 'Say "so",\n;then\tgo', "chosen": f"é {SEPARATORS}", "rejected": " no "},
    {"prompt": None, "chosen": "[1, 2]", "rejected": "x" * 5_000},
] * 2


def json_lines(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: list[Row], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_arrow(rows: list[Row], *, stream: bool) -> bytes:
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def as_parquet(rows: list[Row]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


def as_zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


FILES = {
    ".jsonl": json_lines(ROWS),
    ".ndjson": json_lines(ROWS),
    ".json": json.dumps(ROWS, indent=2).encode(),
    ".csv": as_csv(ROWS),
    ".tsv": as_csv(ROWS, "\t"),
    ".parquet": as_parquet(ROWS),
    ".arrow": as_arrow(ROWS, stream=False),
}
CODECS = {"": bytes, ".gz": gzip.compress, ".zst": as_zstd, ".bz2": bz2.compress}
CODECS[".xz"] = lzma.compress


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def pairs(name: str, count: int = 2) -> bytes:
    return json_lines([{"chosen": f"{name} {i}", "rejected": "no"} for i in range(count)])


def read(text: str | Path) -> list[Row]:
    source = locate(SourceSpec.parse(str(text)))
    rows = [json.loads(row) for fragment in source.fragments for _, row in read_rows(fragment)]
    assert sum(map(count_rows, source.fragments)) == len(rows)
    return rows


def chosen_in(text: str | Path) -> list[str]:
    return sorted({row["chosen"].split()[0] for row in read(text)})


def error_of(text: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        read(text)
    return str(caught.value)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("ending", FILES)
def test_every_format_gives_the_same_rows_plain_and_compressed(
    ending: str, codec: str, tmp_path: Path
):
    path = write(tmp_path / f"a{ending}{codec}", CODECS[codec](FILES[ending]))

    assert read(path) == ROWS


@pytest.mark.parametrize("codec", [".gz", ".zst", ".bz2", ".xz"])
def test_a_compressed_file_that_is_cut_or_is_none_is_named(codec: str, tmp_path: Path):
    whole = CODECS[codec](FILES[".jsonl"] * 50)
    cut = write(tmp_path / f"cut.jsonl{codec}", whole[:-20])
    plain = write(tmp_path / f"plain.jsonl{codec}", FILES[".jsonl"])

    for path in (cut, plain):
        assert error_of(path).startswith(f"{path} is not a whole")


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_a_cut_table_is_named_without_a_trace(ending: str, tmp_path: Path):
    for size in (0, 4, len(FILES[ending]) // 2):
        path = write(tmp_path / f"a{ending}", FILES[ending][:size])
        assert error_of(path).startswith(f"{path} is not a")
        assert "\n" not in error_of(path)


def test_a_compressed_file_is_known_by_its_first_bytes_where_its_name_does_not_say(tmp_path: Path):
    assert read(write(tmp_path / "a.jsonl", gzip.compress(FILES[".jsonl"]))) == ROWS


def test_an_arrow_stream_is_read_as_a_file_is(tmp_path: Path):
    assert read(write(tmp_path / "a.arrow", as_arrow(ROWS, stream=True))) == ROWS


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        json.dumps({"version": 1, "data": ROWS, "note": {"by": "me"}}),
        json.dumps({"data": ROWS}, indent=1),
        FILES[".jsonl"].decode(),
        "\n \n" + FILES[".jsonl"].decode(),
    ],
    ids=["array", "indented", "one array of an object", "of an indented one", "lines", "blank"],
)
def test_a_json_file_is_an_array_or_lines_by_what_it_holds(text: str, tmp_path: Path):
    for name in ("a.json", "b.json.gz"):
        data = gzip.compress(text.encode()) if name.endswith("gz") else text.encode()
        assert read(write(tmp_path / name, data)) == ROWS
    if text.startswith("["):
        assert read(write(tmp_path / "c.jsonl", text.encode())) == ROWS


def test_a_json_array_is_read_with_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(json_rows, "_CHUNK", 7)  # every value is cut somewhere

    assert read(write(tmp_path / "a.json", FILES[".json"])) == ROWS

    monkeypatch.setattr(json_rows, "LARGEST_ELEMENT", 1_000)
    assert "row 1: not valid JSON" in error_of(write(tmp_path / "a.json", FILES[".json"]))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[{"chosen": "a"}, {"chosen": }]', "row 1: not valid JSON"),
        ('[{"chosen": "a"},\n', "row 1: not valid JSON"),
        ('[{"chosen": "a"}', "it is cut"),
        ('[{"chosen": "a"},]', "a comma after the last row"),
        ('[{"chosen": "a"}] []', "text after its end"),
        ('{"a": [{}],\n "b": [{}]}', "several arrays, 'a' and 'b'"),
        ('{\n"a": 1}', "an object without an array"),
    ],
)
def test_a_broken_json_file_is_named_with_the_place(text: str, told: str, tmp_path: Path):
    assert told in error_of(write(tmp_path / "a.json", text.encode()))


def test_a_csv_of_semicolons_or_with_spaces_is_read_by_its_header(tmp_path: Path):
    spaced = b'prompt, chosen, rejected\n"Hi, you", "a ""b""", c\n\n"x", y\n'

    assert read(write(tmp_path / "a.csv", as_csv(ROWS, ";"))) == ROWS
    assert read(write(tmp_path / "b.csv", spaced)) == [
        {"prompt": "Hi, you", "chosen": 'a "b"', "rejected": "c"},
        {"prompt": "x", "chosen": "y", "rejected": None},
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("chosen,rejected\na,b\nc,d,e\n", "line 3: 3 cells under a header of 2"),
        ('chosen,rejected\n"a"b,c\n', "line 2: not a CSV row"),
        ('chosen,rejected\n"a,c\n', "not a CSV row"),
        ("chosen,chosen\na,b\n", "the column 'chosen' twice"),
    ],
)
def test_a_broken_csv_is_named_by_line(text: str, told: str, tmp_path: Path):
    assert told in error_of(write(tmp_path / "a.csv", text.encode()))


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_wide_text_is_named_with_the_remedy(encoding: str, ending: str, tmp_path: Path):
    path = write(tmp_path / f"a{ending}", FILES[ending].decode().encode(encoding))

    name = encoding.upper()[:6]
    assert f"{path} is {name} text" in error_of(path)
    assert f"iconv -f {name} -t UTF-8" in error_of(path)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv"])
def test_other_encodings_are_refused_and_a_byte_order_mark_is_read(ending: str, tmp_path: Path):
    marked = write(tmp_path / f"marked{ending}", b"\xef\xbb\xbf" + FILES[ending])
    latin = FILES[ending].decode().encode("utf-8").replace("é".encode(), b"\xe9")
    latin = latin if ending != ".json" else '[{"chosen": "é"}]'.encode("latin-1")

    assert read(marked) == ROWS
    assert "not UTF-8 text" in error_of(write(tmp_path / f"latin{ending}", latin))


def test_marks_between_files_that_were_put_together_are_no_text(tmp_path: Path):
    marked = b"\xef\xbb\xbf" + FILES[".jsonl"]

    assert read(write(tmp_path / "a.jsonl", marked + marked)) == ROWS * 2


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=4),
    ending=st.sampled_from([".jsonl", ".json", ".csv"]),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_any_text_comes_out_as_it_went_in(
    texts: list[str], ending: str, newline: str, tmp_path_factory: pytest.TempPathFactory
):
    rows = [{"chosen": text, "rejected": f"not {text}"} for text in texts]
    data = as_csv(rows) if ending == ".csv" else json_lines(rows).replace(b"\n", newline.encode())
    data = json.dumps(rows).encode() if ending == ".json" else data

    assert read(write(tmp_path_factory.mktemp("any") / f"a{ending}", data)) == rows


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"PK\x03\x04....", "unpack it"),
        (b"/annex/objects/SHA256E-s1--0.jsonl", "git annex get"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.json", "a.csv", "a.jsonl.gz", "a.bin"])
def test_what_stands_for_data_is_named(data: bytes, told: str, name: str, tmp_path: Path):
    assert told in error_of(write(tmp_path / name, data))


def test_a_file_without_a_known_ending_is_told_by_its_content_or_refused(tmp_path: Path):
    for kind in (".jsonl", ".json", ".parquet", ".arrow"):
        assert read(write(tmp_path / f"{kind[1:]}.data", FILES[kind])) == ROWS
    assert "must end in .jsonl" in error_of(
        write(tmp_path / "pairs.txt", b"chosen,rejected\na,b\n")
    )


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


def test_a_uri_of_a_file_is_read_also_where_it_is_quoted(tmp_path: Path):
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
def test_what_is_hidden_below_a_folder_stays_out_and_is_said(name: str, tmp_path: Path):
    base = tmp_path / ".cache" / "_data"  # what lies above is the user's choice
    write(base / "sub" / "pairs.jsonl", pairs("shown"))
    hidden = write(base / name, pairs("hidden"))

    for place in (base, base / "**"):
        assert chosen_in(place) == ["shown"]
        read_as = locate(SourceSpec.parse(str(place))).read_as
        assert f"hidden, and left out: {name}" in read_as
    assert chosen_in(hidden) == ["hidden"]


def test_a_glob_that_names_what_is_hidden_gets_it(tmp_path: Path):
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


def test_a_split_is_known_by_its_other_names(tmp_path: Path):
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


def test_a_dataset_card_says_what_belongs_to_a_split(tmp_path: Path):
    folder = card_folder(tmp_path / "ds[1]")

    assert "has the splits train, test" in error_of(folder)
    assert chosen_in(f"{folder}:train") == ["helpful/a"]
    assert chosen_in(f"{folder}:helpful:test") == ["apart/h"]
    assert chosen_in(f"{folder}:harmless:train") == ["harmless/x/b"]
    assert chosen_in(f"{folder}:harmless") == ["harmless/x/b"]


def test_configurations_without_a_default_are_asked_for(tmp_path: Path):
    folder = card_folder(tmp_path / "ds", CARD.replace("  default: true\n", ""))

    message = error_of(folder)

    assert f"'{folder}:CONFIG:SPLIT' (helpful: train, test; harmless: train)" in message


def test_a_card_whose_files_are_missing_or_that_is_broken_is_refused(tmp_path: Path):
    missing = card_folder(tmp_path / "a", CARD.replace("helpful/*", "gone/*"))
    broken = card_folder(tmp_path / "b", "---\nconfigs: [\n---\n")
    plain = card_folder(tmp_path / "c", "# No front matter\n")

    assert "the split 'train' is in gone/*.jsonl" in error_of(f"{missing}:train")
    assert "its 'configs' cannot be read" in error_of(broken)
    assert len(chosen_in(plain)) == 4


def test_the_cache_of_datasets_is_a_folder_with_splits(tmp_path: Path):
    write(tmp_path / "org___name-train.arrow", as_arrow([{"chosen": "train"}], stream=True))
    write(tmp_path / "org___name-test.arrow", as_arrow([{"chosen": "test"}], stream=True))
    write(tmp_path / "cache-0123abc.arrow", as_arrow([{"chosen": "cache"}], stream=True))
    write(tmp_path / "dataset_info.json", b"{}")

    assert chosen_in(f"{tmp_path}:train") == ["train"]


def test_a_saved_dataset_asks_for_its_split_and_takes_the_only_one(tmp_path: Path):
    part = datasets.Dataset.from_list([{"chosen": "a", "rejected": "b"}])
    both, one = tmp_path / "both", tmp_path / "one"
    datasets.DatasetDict(train=part, test=part).save_to_disk(str(both))
    datasets.DatasetDict(prefs=part).save_to_disk(str(one))

    assert "has the splits train, test" in error_of(both)
    assert chosen_in(f"{both}:test") == chosen_in(one) == ["a"]


def test_formats_may_be_mixed_and_the_same_name_twice_is_said(tmp_path: Path):
    write(tmp_path / "a.csv", as_csv([{"chosen": "csv", "rejected": "x"}]))
    write(tmp_path / "b.json", b'[{"chosen": "json"}]')
    write(tmp_path / "b.parquet", as_parquet([{"chosen": "parquet"}]))
    write(tmp_path / "dataset_infos.json", b"{}")
    write(tmp_path / "empty.jsonl", b"")

    assert chosen_in(tmp_path) == ["csv", "json", "parquet"]
    read_as = locate(SourceSpec.parse(str(tmp_path))).read_as
    assert "4 files of csv, json, jsonl, parquet" in read_as
    assert "perhaps the same pairs twice: b.json, b.parquet" in read_as


def test_a_folder_with_nothing_to_read_lists_what_is_there(tmp_path: Path):
    write(tmp_path / "notes.txt", b"")
    write(tmp_path / "pairs.xlsx", b"")

    assert f"in {tmp_path} there is: notes.txt, pairs.xlsx" in error_of(tmp_path)
    hidden = write(tmp_path / "e" / "_x.jsonl", pairs("x"))
    for place in (hidden.parent, hidden.parent / "*.jsonl"):
        assert "hidden, and left out: _x.jsonl" in error_of(place)


def test_a_folder_named_like_a_file_is_a_folder(tmp_path: Path):
    write(tmp_path / "pairs.parquet" / "_SUCCESS", b"")
    write(tmp_path / "pairs.parquet" / "part-0.parquet", as_parquet([{"chosen": "a"}]))

    assert chosen_in(tmp_path / "pairs.parquet") == ["a"]


def test_a_link_to_nothing_is_refused(tmp_path: Path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "gone.jsonl")

    assert "no such file" in error_of(tmp_path / "a.jsonl")
