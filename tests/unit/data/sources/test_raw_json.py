import datetime
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_ray.data.sources.discovery import discover
from rm_ray.data.sources.raw_json import arrow_rows, encode_row, foreign_type
from rm_ray.data.sources.readers import read_rows
from rm_ray.data.sources.source_spec import SourceSpec

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def read(path: Path) -> list[Any]:
    (fragment,) = discover(SourceSpec.parse(str(path)))
    return [json.loads(text) for _, text in read_rows(fragment)]


def through_arrow(column: pa.Array) -> list[Any]:
    batch = pa.record_batch({"x": column})
    return [json.loads(encode_row(row))["x"] for row in arrow_rows(batch)]


@settings(max_examples=50)
@given(JSON_VALUES)
def test_json_values_round_trip(value: Any):
    assert json.loads(encode_row({"x": value})) == {"x": value}


def test_a_timestamp_among_messages_keeps_its_type_and_never_becomes_text():
    when = datetime.datetime(2024, 5, 1, 12)

    for column in (
        pa.array([when]),
        pa.array([when], pa.timestamp("ns", tz="UTC")),
        pa.array([datetime.timedelta(days=1)]),
        pa.array([when.time()]),
        pa.array([[{"role": "user", "content": when}]]),
    ):
        (value,) = through_arrow(column)
        inner = value[0]["content"] if isinstance(value, list) else value
        assert foreign_type(inner) in ("datetime", "Timestamp", "timedelta", "time")
        assert set(inner) == {"__not_json__", "shown"}


def test_a_value_that_python_cannot_represent_is_marked_and_its_neighbours_are_read():
    far = through_arrow(pa.array([2**60, 0, None]).cast(pa.timestamp("s")))
    no_text = pa.array([b"a", b"\xff"]).view(pa.string())

    assert [foreign_type(value) for value in far] == ["timestamp[s]", "datetime", None]
    assert [foreign_type(value) for value in through_arrow(no_text)] == [None, "string"]


def test_bytes_that_are_utf_8_are_text_and_others_are_marked():
    text, other = through_arrow(pa.array(["schön".encode(), b"\x89PNG\r\n"]))

    assert text == "schön"
    assert foreign_type(other) == "bytes"


def test_decimals_are_numbers_and_nan_stays_nan():
    decimals = pa.array([Decimal("0.25"), Decimal("2.00"), None])

    assert through_arrow(decimals) == [0.25, 2, None]
    (value,) = through_arrow(pa.array([math.nan]))
    assert math.isnan(value)


def test_a_map_is_an_object():
    column = pa.array([[("role", "user"), ("content", "Hi")]], pa.map_(pa.string(), pa.string()))

    assert through_arrow(column) == [{"role": "user", "content": "Hi"}]


def test_json_columns_are_parsed_also_inside_lists():
    rows = [{"chosen": [{"role": "user", "content": "Hi", "tool_calls": [{"id": 1}]}], "x": None}]
    features = datasets.Features(
        {"chosen": datasets.List(datasets.Json()), "x": datasets.Value("string")}
    )
    table = datasets.Dataset.from_list(rows, features=features).data.table

    assert [json.loads(encode_row(r)) for b in table.to_batches() for r in arrow_rows(b)] == rows


def test_images_are_marked_and_not_decoded(tmp_path: Path):
    table = pa.table({"chosen": ["a"], "image": [{"bytes": b"no picture", "path": "x.png"}]})
    pq.write_table(table, tmp_path / "a.parquet")

    (row,) = read(tmp_path / "a.parquet")

    assert row["chosen"] == "a"
    assert foreign_type(row["image"]) == "image, audio or other file"


def test_the_format_of_a_saved_dataset_changes_nothing(tmp_path: Path):
    rows = [{"chosen": "a", "rejected": "b", "margin": 0.5, "ids": [1, 2]}] * 3
    for name in ("numpy", "torch", "pandas", None):
        dataset = datasets.Dataset.from_list(rows).with_format(name)
        dataset.save_to_disk(str(tmp_path / str(name)))

        assert read(tmp_path / str(name)) == rows


def test_only_marked_values_are_foreign():
    assert foreign_type({"__not_json__": "bytes", "shown": "b''"}) == "bytes"
    assert [foreign_type(v) for v in ("__not_json__", {}, {"role": "user"}, None, [1])] == [
        None
    ] * 5
