import json
from pathlib import Path

import pytest
from source_files import FILES, ROWS, error_of, message_of_wrong, read, rows_of, write


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_wide_text_is_refused_with_a_command_that_converts_it(
    encoding: str, ending: str, tmp_path: Path
):
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


def test_text_that_is_not_utf8_is_named_by_line(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(rows_of(1)[0]).encode() + b"\n" + '{"a": "é"}'.encode("latin-1"))

    assert message_of_wrong(path).startswith(f"{path}, line 2: not UTF-8 text")
