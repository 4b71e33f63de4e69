from pathlib import Path

from source_files import fragments_of, rows_of, write_lines, write_parquet

from rm_ray.data.sources.fragments import Fragment


def test_a_file_s_ending_gives_its_format(tmp_path: Path):
    assert [f.kind for f in fragments_of(write_lines(tmp_path / "a.jsonl", rows_of(1)))] == [
        "jsonl"
    ]
    assert [f.kind for f in fragments_of(write_lines(tmp_path / "a.jsonl.gz", rows_of(1)))] == [
        "jsonl"
    ]
    assert [f.kind for f in fragments_of(write_parquet(tmp_path / "a.parquet", rows_of(1)))] == [
        "parquet"
    ]


def test_an_origin_names_the_location_and_the_split():
    assert Fragment(kind="jsonl", location="/a/b.jsonl").origin == "/a/b.jsonl"
    assert Fragment(kind="hub", location="org/name", split="test").origin == "org/name:test"
