import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_rows import ROWS
from source_files import (
    fragments_of,
    message_of_wrong,
    ordinals,
    rows_of,
    save_dataset,
    selected,
    write_lines,
    write_parquet,
)

from rm_ray.config.column_rules import ColumnRules
from rm_ray.data.sources.mixture import Selection, mixture_fingerprint, select
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.errors import InputError


def test_without_a_share_all_rows_are_taken_in_order(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", rows_of(5))

    for text in (path, f"{path}=1.0"):
        assert selected(text) == [Selection(fragment=fragments_of(path)[0], rows=None)]


@pytest.fixture(scope="module")
def file_of_40(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("pairs") / "a.jsonl", rows_of(40))


@given(count=st.integers(1, 40), seed=st.integers(0, 2**40))
def test_a_count_takes_exactly_that_many_different_rows(file_of_40: Path, count: int, seed: int):
    (rows,) = ordinals(selected(f"{file_of_40}={count}", seed=seed))

    assert len(rows) == count
    assert rows == sorted(set(rows))
    assert set(rows) <= set(range(40))


@given(percent=st.integers(3, 99), seed=st.integers(0, 2**40))
def test_a_fraction_takes_the_nearest_number_of_rows(file_of_40: Path, percent: int, seed: int):
    (rows,) = ordinals(selected(f"{file_of_40}={percent / 100}", seed=seed))

    assert abs(len(rows) - 40 * percent / 100) <= 0.5
    assert rows == sorted(set(rows))
    assert set(rows) <= set(range(40))


def test_a_fraction_that_selects_no_row_is_refused(file_of_40: Path):
    with pytest.raises(InputError, match=r"a\.jsonl=0\.01'"):
        selected(f"{file_of_40}=0.01")


def test_the_same_seed_takes_the_same_rows_and_another_seed_does_not(file_of_40: Path):
    by_seed = [ordinals(selected(f"{file_of_40}=20", seed=seed)) for seed in range(5)]

    assert by_seed == [ordinals(selected(f"{file_of_40}=20", seed=seed)) for seed in range(5)]
    assert len({tuple(rows) for (rows,) in by_seed}) == 5


def test_a_larger_share_of_the_same_source_includes_the_smaller(file_of_40: Path):
    small, large = (ordinals(selected(f"{file_of_40}={count}"))[0] for count in (10, 25))

    assert set(small) < set(large)


def test_a_share_is_taken_of_all_the_files_of_a_folder_together(tmp_path: Path):
    for name, count in (("a", 30), ("b", 1), ("c", 20)):
        write_lines(tmp_path / f"{name}.jsonl", rows_of(count))

    selections = selected(f"{tmp_path}=40")

    assert [Path(s.fragment.location).name for s in selections] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    taken = ordinals(selections)
    assert sum(map(len, taken)) == 40
    assert len(taken[0]) >= 40 - 1 - 20
    assert len(taken[2]) >= 40 - 1 - 30
    for rows, count in zip(taken, (30, 1, 20), strict=True):
        assert set(rows) <= set(range(count))
        assert len(set(rows)) == len(rows)


def test_a_count_of_all_rows_takes_the_whole_folder(tmp_path: Path):
    for name, count in (("a", 3), ("b", 2)):
        write_lines(tmp_path / f"{name}.jsonl", rows_of(count))

    assert ordinals(selected(f"{tmp_path}=5")) == [[0, 1, 2], [0, 1]]


def test_a_mixture_is_its_sources_one_after_another(tmp_path: Path, file_of_40: Path):
    other = write_parquet(tmp_path / "b.parquet", rows_of(10))

    mixture = selected(other, f"{file_of_40}=7", "builtin:test=0.5")

    assert [s.fragment.kind for s in mixture] == ["parquet", "jsonl", "builtin"]
    assert mixture[0].rows is None
    assert [len(rows) for rows in ordinals(mixture)] == [0, 7, 250]
    assert ordinals(mixture)[1] == ordinals(selected(f"{file_of_40}=7"))[0]


def test_files_know_which_source_of_the_mixture_they_are_of(tmp_path: Path, file_of_40: Path):
    (tmp_path / "folder").mkdir()
    for name in ("a", "b"):
        shutil.copy(file_of_40, tmp_path / "folder" / f"{name}.jsonl")
    texts = (str(tmp_path / "folder"), f"{file_of_40}=3")
    selections = select([SourceSpec.parse(text) for text in texts], seed=0)
    assert [each.entry for each in selections] == [0, 0, 1]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_file_without_rows_is_empty(name: str, tmp_path: Path):
    if name.endswith(".parquet"):
        columns = {"chosen": pa.array([], pa.string()), "rejected": pa.array([], pa.string())}
        pq.write_table(pa.table(columns), tmp_path / name)
    else:
        write_lines(tmp_path / name, [])

    message = message_of_wrong(tmp_path / name)

    assert message == f"data source '{tmp_path / name}' is empty: it has no rows"


def test_one_empty_file_among_others_is_accepted(tmp_path: Path):
    write_lines(tmp_path / "a.jsonl", [])
    write_lines(tmp_path / "b.jsonl", rows_of(3))

    assert len(selected(tmp_path)) == 2


def test_wrong_columns_are_refused_with_those_found(tmp_path: Path):
    rows = [{"prompt": "Why?", "chosen": "So.", "response_b": "No."}]

    for path in (
        write_lines(tmp_path / "a.jsonl", rows),
        write_parquet(tmp_path / "a.parquet", rows),
        save_dataset(tmp_path / "saved", **{"": rows}),
    ):
        assert message_of_wrong(path) == (
            f"data source '{path}' must have the columns 'chosen' and 'rejected', or "
            "'responses' with 'ranks' or 'scores'; it has: prompt, chosen, response_b. If they "
            "have other names, name them with data.columns, as in chosen=COLUMN"
        )


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": ["a", "b"], "rejected": ["c"]},
        {"prompt": "Why?", "responses": ["a", "b"], "ranks": [1, 2]},
        {"prompt": "Why?", "responses": ["a", "b"], "scores": [1, 2]},
        {"prompt": "Why?", "response": "a", "score": 3.5},
        ROWS["nectar"],
        ROWS["arena_100k"],
        ROWS["helpsteer2"],
    ],
)
def test_a_source_may_have_any_form_of_comparison_group(row: dict[str, Any], tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", [row])

    assert len(selected(path)) == 1


def test_a_source_of_another_form_than_asked_for_is_refused_with_its_columns(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", [{"chosen": "a", "rejected": "b"}])

    with pytest.raises(InputError) as caught:
        select([SourceSpec.parse(str(path))], seed=0, rules=ColumnRules(form="nectar"))

    assert (
        "must have the columns of berkeley-nest/Nectar, prompt, answers, num_responses (data.form "
        "nectar); it has: chosen, rejected"
    ) in str(caught.value)


def test_lines_that_are_not_objects_are_refused_with_their_type(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", [["So.", "No."]])

    assert "it has: list. " in message_of_wrong(path)


@pytest.mark.parametrize("count", [41, 1_000_000])
def test_a_request_for_too_many_rows_is_refused_with_their_number(count: int, file_of_40: Path):
    text = f"{file_of_40}={count}"

    assert message_of_wrong(text) == f"data source '{text}' requests {count} of only 40 rows"
    assert [len(rows) for rows in ordinals(selected(f"{file_of_40}=40"))] == [40]


def test_an_unknown_split_is_refused_with_the_available_ones(tmp_path: Path, file_of_40: Path):
    with_splits = save_dataset(tmp_path / "with", train=rows_of(1), test=rows_of(1))
    without = save_dataset(tmp_path / "without", **{"": rows_of(1)})

    assert message_of_wrong("builtin:eval") == (
        "data source 'builtin:eval': splits are train, test, truth, pairs, flipped, soft, ties, "
        "strengths, lists, exploded, scores"
    )
    assert message_of_wrong(f"{with_splits}:eval").endswith("splits are train, test")
    assert message_of_wrong(f"{without}:eval").endswith("this dataset has no splits")
    assert message_of_wrong(f"{file_of_40}:eval").endswith("files have no split ':eval'")


def test_each_planted_split_has_a_fingerprint_of_its_own():
    found = {mixture_fingerprint(selected(f"builtin:{split}=10")) for split in ("truth", "pairs")}

    assert len(found) == 2
    assert found.isdisjoint({mixture_fingerprint(selected("builtin:test=10"))})


def test_a_moved_file_keeps_its_fingerprint(tmp_path: Path):
    before = mixture_fingerprint(selected(write_lines(tmp_path / "a.jsonl", rows_of(4))))
    moved = (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")

    assert mixture_fingerprint(selected(moved)) == before


def test_any_change_to_the_rows_changes_the_fingerprint(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", rows_of(40))
    other = write_lines(tmp_path / "b.jsonl", rows_of(40, "other"))
    texts: list[list[str | Path]] = [
        [path],
        [other],
        [path, other],
        [other, path],
        [path, path],
        [f"{path}=20"],
        [f"{path}=21"],
        ["builtin:test"],
        ["builtin:train"],
    ]

    prints = [mixture_fingerprint(selected(*several)) for several in texts]
    prints.append(mixture_fingerprint(selected(f"{path}=20", seed=1)))

    assert len(set(prints)) == len(prints)
    assert prints == [
        *(mixture_fingerprint(selected(*several)) for several in texts),
        mixture_fingerprint(selected(f"{path}=20", seed=1)),
    ]


def test_a_saved_dataset_has_the_fingerprint_of_its_contents(tmp_path: Path):
    one = save_dataset(tmp_path / "one", train=rows_of(3), test=rows_of(2))

    splits = [mixture_fingerprint(selected(f"{one}:{split}")) for split in ("train", "test")]

    assert splits[0] != splits[1]
    assert splits == [
        mixture_fingerprint(selected(f"{one}:{split}")) for split in ("train", "test")
    ]
