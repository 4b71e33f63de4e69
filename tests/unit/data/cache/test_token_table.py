import os
import random
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_cache import NO_SCORE, REFUSED, Row, cache_row, group_row, make_parts
from tables import chosen_ids, read_rows, rejected_ids

from rm_ray.data.cache.group_columns import COLUMNS
from rm_ray.data.cache.token_parts import ROWS_PER_BATCH, SCHEMA, TABLE_COLUMNS
from rm_ray.data.cache.token_table import map_table, open_table, write_table
from rm_ray.local_home import local_home


@pytest.fixture(autouse=True)
def tables_under_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "machine"))


def batches(*groups: Sequence[Row]) -> list[pa.RecordBatch]:
    schema = pa.schema([SCHEMA.field(name) for name in TABLE_COLUMNS])
    return [
        pa.record_batch({name: [row[name] for row in rows] for name in TABLE_COLUMNS}, schema)
        for rows in groups
    ]


def in_order(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row["fragment"], row["row"]))


def random_rows(count: int, seed: int) -> list[Row]:
    """Return shuffled rows of three fragments, of 1 to 5 responses and 0 to 4 comparisons.

    Prefixes leave each conversation at least one token. All numbers are exact in float32.
    """
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        size = rng.choice([1, 2, 2, 2, 3, 5])
        prefix = [rng.randrange(50_000) for _ in range(rng.randrange(20))]
        conversations = [
            [*prefix, k, *(rng.randrange(50_000) for _ in range(rng.randrange(9)))]
            for k in range(size)
        ]
        sides = list(combinations(range(size), 2))
        num_compared = rng.randrange(5) if sides else 0
        compared = [rng.choice(sides)[:: rng.choice([1, -1])] for _ in range(num_compared)]
        rows.append(
            group_row(
                rng.randrange(3),
                i,
                conversations,
                compared,
                **random_labels(rng, size, num_compared),
                prefix_length=len(prefix),
                prompt_length=rng.randrange(len(prefix) + 1),
                source=rng.choice(["hh", "pandalm", "ü"]),
            )
        )
    rng.shuffle(rows)
    return rows


def random_labels(rng: random.Random, num_responses: int, num_comparisons: int) -> Row:
    return {
        "score": [rng.choice([NO_SCORE, 0.0, 2.5]) for _ in range(num_responses)],
        "weight": [rng.choice([0.25, 0.5]) for _ in range(num_comparisons)],
        "margin": [rng.randrange(8) / 4 for _ in range(num_comparisons)],
        "probability": [rng.choice([0.5, 0.75, 1.0]) for _ in range(num_comparisons)],
    }


def test_every_group_round_trips_in_order(tmp_path: Path):
    rows = random_rows(200, seed=0)
    parts = make_parts(tmp_path / "parts", rows[:70], rows[70:71], rows[71:])

    assert read_rows(open_table(parts)) == in_order(rows)


def test_several_batches_round_trip(tmp_path: Path):
    rows = random_rows(2 * ROWS_PER_BATCH + 10, seed=1)

    table = open_table(make_parts(tmp_path / "parts", rows))

    assert read_rows(table) == in_order(rows)


def test_groups_are_ordered_by_fragment_and_then_by_row(tmp_path: Path):
    places = [(1, 0), (0, 10), (2, 1), (0, 9), (1, 1), (0, 0)]
    rows = [cache_row(*place, [1, 2], [1, 3], prefix_length=1) for place in places]

    table = open_table(make_parts(tmp_path / "parts", rows[:3], rows[3:]))

    assert list(zip(table.fragment.tolist(), table.row.tolist(), strict=True)) == sorted(places)


def test_the_order_of_files_and_batches_does_not_matter(tmp_path: Path):
    rows = random_rows(30, seed=2)
    one = make_parts(tmp_path / "one", rows)
    other = make_parts(tmp_path / "other", rows[20:], rows[:20][::-1])

    assert read_rows(open_table(one)) == read_rows(open_table(other))


def test_each_distinct_token_is_stored_once(tmp_path: Path):
    rows = [
        cache_row(0, 0, [7, 8, 1, 2], [7, 8, 3], prefix_length=2),
        cache_row(0, 1, [9], [10, 11], prefix_length=0),
        group_row(0, 2, [[5, 12], [5, 13, 14], [5, 15]], [(0, 2)], prefix_length=1),
        group_row(0, 3, [[16, 17]], prefix_length=1),
    ]

    table = open_table(make_parts(tmp_path / "parts", rows))

    tokens = [7, 8, 1, 2, 3, 9, 10, 11, 5, 12, 13, 14, 15, 16, 17]
    assert np.asarray(table.tokens).tolist() == tokens
    assert table.start.tolist() == [0, 5, 8, 13]
    (file,) = (local_home() / "tables").glob("*/tokens.bin")
    assert file.stat().st_size == len(tokens) * 4


ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5)

groups = st.tuples(
    st.lists(st.integers(0, 2**31 - 1), max_size=5), st.lists(ids, min_size=1, max_size=4)
)


@settings(max_examples=25)
@given(st.lists(groups, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_any_ids_round_trip(groups: list[tuple[list[int], list[list[int]]]], rng: random.Random):
    rows = [
        group_row(0, i, [prefix + tail for tail in tails], prefix_length=len(prefix))
        for i, (prefix, tails) in enumerate(groups)
    ]
    shuffled = rng.sample(rows, len(rows))
    cut = rng.randrange(len(rows) + 1)
    parts = Path(tempfile.gettempdir()) / uuid.uuid4().hex

    table = open_table(make_parts(parts, shuffled[:cut], shuffled[cut:]))

    assert read_rows(table) == rows


def test_lengths_are_those_of_the_conversations(tmp_path: Path):
    rows = [
        cache_row(0, 0, [1, 2, 3], [1, 4], prefix_length=1),
        cache_row(0, 1, [1, 2], [1, 4, 5, 6], prefix_length=1),
        cache_row(0, 2, [1, 2], [1, 4], prefix_length=1),
        group_row(0, 3, [[1], [2, 3], [4, 5, 6]]),
        group_row(0, 4, [[1, 2, 3]], prefix_length=2),
    ]

    table = open_table(make_parts(tmp_path / "parts", rows))

    assert table.lengths.longest.tolist() == [3, 4, 2, 3, 3]
    assert table.lengths.distinct.tolist() == [4, 5, 3, 6, 3]
    assert table.lengths.num_responses.tolist() == [2, 2, 2, 3, 1]
    assert table.lengths.conversations.tolist() == [3, 2, 2, 4, 2, 2, 1, 2, 3, 3]


def test_ids_and_columns_have_their_types(tmp_path: Path):
    table = open_table(make_parts(tmp_path / "parts", [cache_row(0, 0, [1, 2], [3])]))

    assert chosen_ids(table, 0).dtype == rejected_ids(table, 0).dtype == np.int32
    assert {name: getattr(table.columns, name).dtype for name in COLUMNS} == COLUMNS
    assert table.row.dtype == table.start.dtype == np.int64


def test_a_group_is_named_by_its_origin_and_row(tmp_path: Path):
    rows = [cache_row(1, 17, [1], [2]), cache_row(0, 3, [1], [2])]

    table = open_table(make_parts(tmp_path / "parts", rows, origins=("x.jsonl", "org/y:train")))

    assert [table.group_id(group) for group in range(2)] == ["x.jsonl:3", "org/y:train:17"]
    assert table.origins == ("x.jsonl", "org/y:train")


def test_an_empty_cache_is_a_table_without_groups(tmp_path: Path):
    only_refused = make_parts(tmp_path / "refused", [{"fragment": 0, "row": 0, **REFUSED}])
    no_rows = make_parts(tmp_path / "no_rows", [])
    no_files = make_parts(tmp_path / "no_files")

    for parts in (only_refused, no_rows, no_files):
        table = open_table(parts)
        assert len(table) == 0
        assert len(table.lengths) == len(table.columns) == 0
        assert table.tokens.tolist() == []


def test_opening_again_reads_the_local_copy(tmp_path: Path):
    rows = random_rows(5, seed=3)
    parts = make_parts(tmp_path / "parts", rows)
    open_table(parts)
    shutil.rmtree(tmp_path / "parts")

    assert read_rows(open_table(parts)) == in_order(rows)


@pytest.mark.parametrize("file", ["row.npy", "better.npy", "tokens.bin", "names.json"])
@pytest.mark.parametrize("is_gone", [True, False])
def test_a_damaged_copy_is_rebuilt(
    file: str, is_gone: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    rows = random_rows(5, seed=3)
    parts = make_parts(tmp_path / "parts", rows)
    open_table(parts)
    path = local_home() / "tables" / parts.key / file
    if is_gone:
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 4)
    map_table.cache_clear()  # as in another process

    assert read_rows(open_table(parts)) == in_order(rows)
    assert "is damaged; rebuilding it" in caplog.text


def test_caches_with_different_keys_stay_apart(tmp_path: Path):
    first = make_parts(tmp_path / "first", [cache_row(0, 0, [1], [2])])
    second = make_parts(tmp_path / "second", [cache_row(0, 0, [3], [4])])

    tables = [open_table(parts) for parts in (first, second)]

    assert [chosen_ids(table, 0).tolist() for table in tables] == [[1], [3]]


def test_tables_are_kept_in_the_temporary_folder(tmp_path: Path):
    parts = make_parts(tmp_path / "parts", [cache_row(0, 0, [1], [2])])

    open_table(parts)

    assert local_home().parent == tmp_path / "machine"
    assert [folder.name for folder in (local_home() / "tables").iterdir()] == [parts.key]


def test_the_folder_appears_only_when_complete(tmp_path: Path):
    folder = tmp_path / "tables" / "key"
    seen = []

    def watched() -> Iterator[pa.RecordBatch]:
        for batch in batches(random_rows(3, seed=4), random_rows(3, seed=5)):
            yield batch
            seen.append(folder.exists())

    write_table(watched(), ("a", "b", "c"), folder)

    assert seen == [False, False]
    assert [path.name for path in folder.parent.iterdir()] == ["key"]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path):
    folder = tmp_path / "tables" / "key"

    def broken() -> Iterator[pa.RecordBatch]:
        yield from batches(random_rows(3, seed=6))
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="the file is gone"):
        write_table(broken(), ("a", "b", "c"), folder)

    assert list(folder.parent.iterdir()) == []


def test_the_first_of_two_processes_wins(tmp_path: Path):
    folder = tmp_path / "tables" / "key"
    mine, theirs = batches([cache_row(0, 0, [1], [2])]), batches([cache_row(0, 0, [3], [4])])

    def overtaken() -> Iterator[pa.RecordBatch]:
        yield from mine
        write_table(theirs, ("a",), folder)

    write_table(overtaken(), ("a",), folder)

    assert np.fromfile(folder / "tokens.bin", dtype=np.int32).tolist() == [3, 4]
    assert [path.name for path in folder.parent.iterdir()] == ["key"]


def test_groups_are_gathered_in_the_given_order_with_each_distinct_token_once(tmp_path: Path):
    rows = [
        cache_row(0, 0, [1, 2, 3], [1, 2, 4, 5], prefix_length=2),
        cache_row(0, 1, [6], [7, 8], prefix_length=0),
        group_row(0, 2, [[9, 10], [9, 11], [9, 12]], prefix_length=1),
    ]
    table = open_table(make_parts(tmp_path / "parts", rows))

    groups = table.gather(np.array([2, 0]))

    assert groups.tokens.tolist() == [9, 10, 11, 12, 1, 2, 3, 4, 5]
    assert groups.lengths.num_responses.tolist() == [3, 2]
    for i, row in enumerate((rows[2], rows[0])):
        assert [ids.tolist() for ids in groups.conversations(i)] == row["ids"]
