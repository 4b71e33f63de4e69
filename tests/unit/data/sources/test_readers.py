import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import (
    CODECS,
    FILES,
    ROWS,
    as_csv,
    error_of,
    fragments_of,
    json_lines,
    read,
    rows_of,
    save_dataset,
    write,
    write_lines,
    write_parquet,
)

from rm_ray.data.sources.fragments import Fragment
from rm_ray.data.sources.readers import count_rows, read_rows
from rm_ray.data.sources.synthetic import SPLITS, generate_pairs


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("ending", FILES)
def test_every_format_gives_the_same_rows_plain_and_compressed(
    ending: str, codec: str, tmp_path: Path
):
    path = write(tmp_path / f"a{ending}{codec}", CODECS[codec](FILES[ending]))

    assert read(path) == ROWS


MISSING = ("nan", "NaN", "None", "null", "NULL", "<NA>", "NaT")
"""Texts that stand for a missing cell in a CSV file, besides an empty one."""

texts_of_cells = st.text(min_size=1, max_size=20) | st.sampled_from(MISSING)


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(texts_of_cells, min_size=1, max_size=4),
    ending=st.sampled_from([".jsonl", ".json", ".csv"]),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_any_text_round_trips_unless_it_is_a_missing_cell(
    texts: list[str], ending: str, newline: str, tmp_path_factory: pytest.TempPathFactory
):
    rows = [{"chosen": text, "rejected": f"not {text}"} for text in texts]
    data = as_csv(rows) if ending == ".csv" else json_lines(rows).replace(b"\n", newline.encode())
    data = json.dumps(rows).encode() if ending == ".json" else data

    missing = MISSING if ending == ".csv" else ()
    expected = [
        {**row, "chosen": None if row["chosen"] in missing else row["chosen"]} for row in rows
    ]
    assert read(write(tmp_path_factory.mktemp("any") / f"a{ending}", data)) == expected


def test_a_file_without_a_known_ending_is_recognised_by_its_content_or_refused(tmp_path: Path):
    for kind in (".jsonl", ".json", ".parquet", ".arrow"):
        assert read(write(tmp_path / f"{kind[1:]}.data", FILES[kind])) == ROWS
    assert "must end in .jsonl" in error_of(
        write(tmp_path / "pairs.txt", b"chosen,rejected\na,b\n")
    )


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


def test_messages_round_trip_through_parquet_and_datasets(tmp_path: Path):
    rows = list(generate_pairs("test", 4))

    assert read(write_parquet(tmp_path / "a.parquet", rows)) == rows
    assert read(save_dataset(tmp_path / "saved", **{"": rows})) == rows


def test_the_built_in_counts_are_known_without_reading():
    for split, count in SPLITS.items():
        assert count_rows(Fragment(kind="builtin", location="builtin", split=split)) == count
