import json
from pathlib import Path

from made_cache import REFUSED, cache_row, make_parts

from rm_ray.data.cache.quarantine import QUARANTINE, write_quarantine
from rm_ray.storage import Storage


def test_every_refused_row_is_a_line_with_its_origin_and_its_text(tmp_path: Path):
    long = {"reason": "too long", "detail": "9 tokens", "raw": '{"chosen": "é"}'}
    parts = make_parts(
        tmp_path / "parts",
        [{"fragment": 1, "row": 7, **REFUSED}, cache_row(0, 0, [1], [2])],
        [{"fragment": 0, "row": 2, **long}, {"fragment": 0, "row": 3, **REFUSED}],
        origins=("a.jsonl", "org/b:train"),
    )

    folder = tmp_path / "build"
    folder.mkdir()

    refused = write_quarantine([parts], Storage.open(str(folder)))

    assert refused == {"empty": 2, "too long": 1}
    text = (tmp_path / "build" / QUARANTINE).read_text()
    assert [json.loads(line) for line in text.splitlines()] == [
        {"origin": "org/b:train", "row": 7, **REFUSED},
        {"origin": "a.jsonl", "row": 2, **long},
        {"origin": "a.jsonl", "row": 3, **REFUSED},
    ]
    assert "é" in text


def test_a_build_without_refused_rows_has_an_empty_file(tmp_path: Path):
    parts = make_parts(tmp_path / "parts", [cache_row(0, 0, [1], [2])])

    folder = tmp_path / "build"
    folder.mkdir()

    assert write_quarantine([parts], Storage.open(str(folder))) == {}
    assert (tmp_path / "build" / QUARANTINE).read_bytes() == b""
