import gzip
from pathlib import Path

import pytest
from source_files import (
    CODECS,
    FILES,
    ROWS,
    error_of,
    message_of_wrong,
    read,
    rows_of,
    write,
    write_lines,
)


@pytest.mark.parametrize("codec", [".gz", ".zst", ".bz2", ".xz"])
def test_a_truncated_or_uncompressed_file_is_named(codec: str, tmp_path: Path):
    whole = CODECS[codec](FILES[".jsonl"] * 50)
    cut = write(tmp_path / f"cut.jsonl{codec}", whole[:-20])
    plain = write(tmp_path / f"plain.jsonl{codec}", FILES[".jsonl"])

    for path in (cut, plain):
        assert error_of(path).startswith(f"{path} is not an intact")


def test_a_compressed_file_is_recognised_by_its_first_bytes(tmp_path: Path):
    assert read(write(tmp_path / "a.jsonl", gzip.compress(FILES[".jsonl"]))) == ROWS


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
def test_placeholders_for_data_are_refused(data: bytes, told: str, name: str, tmp_path: Path):
    assert told in error_of(write(tmp_path / name, data))


@pytest.mark.parametrize("share", ["", "=5", "=0.5"])
@pytest.mark.parametrize("part", ["cut in the middle", "not compressed"])
def test_a_broken_gzip_file_is_named(part: str, share: str, tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl.gz", rows_of(4_000))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if part == "cut in the middle" else b"plain text\n")

    assert message_of_wrong(f"{path}{share}").startswith(f"{path} is not an intact gzip file")
