import tempfile
from pathlib import Path

import pytest
from made_cache import REFUSED, Row, cache_row, make_parts
from tables import chosen_ids, rejected_ids

from rm_ray.data.cache.token_table import TokenTable, open_table


@pytest.fixture(autouse=True)
def tables_under_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "machine"))


def read_back(table: TokenTable) -> list[Row]:
    return [
        cache_row(
            int(table.fragment[pair]),
            int(table.row[pair]),
            chosen_ids(table, pair).tolist(),
            rejected_ids(table, pair).tolist(),
            prefix_length=int(table.prefix_length[pair]),
            prompt_length=int(table.prompt_length[pair]),
            margin=float(table.margin[pair]),
            source=table.sources[table.source[pair]],
        )
        for pair in range(len(table))
    ]


def test_refused_rows_are_in_the_scan_but_not_in_the_table(tmp_path: Path):
    kept = cache_row(0, 1, [1, 2], [1, 3], prefix_length=1)
    refused = [{"fragment": 0, "row": 0, **REFUSED}, {"fragment": 1, "row": 5, **REFUSED}]
    parts = make_parts(tmp_path / "parts", [refused[0], kept], [refused[1]])

    assert read_back(open_table(parts)) == [kept]
    scanned = [row for b in parts.scan(("row", "reason"), refused=True) for row in b.to_pylist()]
    assert scanned == [{"row": 0, "reason": "empty"}, {"row": 5, "reason": "empty"}]
