from pathlib import Path

import pytest
from source_files import (
    FILES,
    ROWS,
    as_arrow,
    error_of,
    message_of_wrong,
    read,
    rows_of,
    write,
    write_parquet,
)


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_a_truncated_table_is_named_in_one_line(ending: str, tmp_path: Path):
    for size in (0, 4, len(FILES[ending]) // 2):
        path = write(tmp_path / f"a{ending}", FILES[ending][:size])
        assert error_of(path).startswith(f"{path} is not a")
        assert "\n" not in error_of(path)


def test_an_arrow_stream_is_read_like_a_file(tmp_path: Path):
    assert read(write(tmp_path / "a.arrow", as_arrow(ROWS, stream=True))) == ROWS


def test_an_empty_file_is_not_a_parquet_file(tmp_path: Path):
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
