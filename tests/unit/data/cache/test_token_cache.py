from pathlib import Path

import numpy as np
import pytest
from made_cache import cache_row, make_parts

from rm_ray.data.cache.group_counts import GroupCounts
from rm_ray.data.cache.token_cache import MANIFEST, TokenCache, read_manifest, write_manifest
from rm_ray.data.rows.column_readings import ColumnReading
from rm_ray.errors import InputError
from rm_ray.storage import Storage

COUNTS = GroupCounts(
    num_rows=5,
    num_groups=3,
    num_responses=8,
    num_comparisons=7,
    num_ties=2,
    num_scores=4,
    num_tokens=70,
    by_source={"a": 1, "b": 2},
    duplicates=1,
    contradictions=2,
    readings=(ColumnReading(origin="x", rows=3, used={"chosen": {"chosen": 3}}),),
)


def written(folder: Path, build: str = "build-01234567") -> tuple[Storage, TokenCache]:
    home = Storage.open(str(folder / "0123456789abcdef"))
    manifest = write_manifest(
        home,
        build=build,
        identity="contents and settings",
        data_hash="contents",
        revisions={"org/x:train": "c0ffee"},
        origins=("org/x:train",),
        counts=COUNTS,
        refused={"too long": 4, "empty": 1},
    )
    return home, read_manifest(home, manifest)


def test_a_manifest_round_trips_to_its_cache(tmp_path: Path):
    home, cache = written(tmp_path)

    assert read_manifest(home, home.read_json(MANIFEST)) == cache
    assert (cache.identity, cache.data_hash) == ("contents and settings", "contents")
    assert (cache.num_rows, cache.num_groups, cache.num_responses) == (5, 3, 8)
    assert (cache.num_comparisons, cache.num_ties, cache.num_scores) == (7, 2, 4)
    assert cache.num_tokens == 70
    assert (cache.duplicates, cache.contradictions) == (1, 2)
    assert cache.groups_by_source == {"a": 1, "b": 2}
    assert cache.readings == COUNTS.readings
    assert cache.revisions == {"org/x:train": "c0ffee"}
    assert cache.num_refused == 5
    assert cache.parts.key == "0123456789abcdef-build-01234567"
    assert cache.parts.parts.path == f"{home.path}/build-01234567/parts"
    assert cache.quarantine == f"{home.path}/build-01234567/quarantine.jsonl"


def test_the_keys_of_a_manifest_keep_their_names_and_order(tmp_path: Path):
    home, _ = written(tmp_path)

    assert [*home.read_json(MANIFEST)] == [
        "build", "revisions", "identity", "data_hash", "duplicates", "contradictions", "origins",
        "num_rows", "num_groups", "num_responses", "num_comparisons", "num_ties", "num_scores",
        "num_tokens", "groups_by_source", "refused", "readings",
    ]  # fmt: skip


@pytest.mark.parametrize("build", ["../../x", "build-0123456", "build-01234567/..", "None"])
def test_an_invalid_build_name_is_refused(build: str, tmp_path: Path):
    with pytest.raises(InputError, match="not a valid build name; delete"):
        written(tmp_path, build)


def test_the_prompts_keys_come_in_the_order_of_the_parts(tmp_path: Path):
    _, cache = written(tmp_path)
    keys = [bytes([i + 1]) * 16 for i in range(3)]
    rows = [{**cache_row(0, i, [1], [2]), "prompt_hash": key} for i, key in enumerate(keys)]
    make_parts(Path(cache.parts.parts.path), rows[:1], rows[1:])

    assert cache.prompt_keys.dtype == np.dtype("S16")
    assert cache.prompt_keys.tolist() == keys
