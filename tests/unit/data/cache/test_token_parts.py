import tempfile
from pathlib import Path

import pytest
from made_cache import REFUSED, cache_row, make_parts
from tables import read_rows

from rm_ray.data.cache.token_table import open_table


@pytest.fixture(autouse=True)
def tables_under_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "machine"))


def test_refused_rows_are_in_the_scan_but_not_in_the_table(tmp_path: Path):
    kept = cache_row(0, 1, [1, 2], [1, 3], prefix_length=1)
    refused = [{"fragment": 0, "row": 0, **REFUSED}, {"fragment": 1, "row": 5, **REFUSED}]
    parts = make_parts(tmp_path / "parts", [refused[0], kept], [refused[1]])

    assert read_rows(open_table(parts)) == [kept]
    scanned = [row for b in parts.scan(("row", "reason"), refused=True) for row in b.to_pylist()]
    assert scanned == [{"row": 0, "reason": "empty"}, {"row": 5, "reason": "empty"}]
