"""Held-out pairs whose prompt is also trained on."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_cache import cache_row, make_parts
from planned_runs import empty_cache

from rm_ray.data.cache.token_cache import TokenCache
from rm_ray.preflight.caches import find_prompt_overlap
from rm_ray.storage import Storage

SAME, OTHER, THIRD = (bytes([i]) * 16 for i in range(3))


def cache_of(folder: Path, *prompts: tuple[bytes, str]) -> TokenCache:
    rows = [
        {**cache_row(0, i, [1, 2], [1, 3], source=source), "prompt_hash": prompt}
        for i, (prompt, source) in enumerate(prompts)
    ]
    cache = empty_cache(Storage.open(str(folder)), num_pairs=len(rows))
    return replace(cache, parts=make_parts(folder, rows))


def test_an_overlap_is_counted_by_source_and_logged_as_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    train = cache_of(tmp_path / "train", (SAME, "a"), (SAME, "a"), (OTHER, "b"))
    held_out = cache_of(tmp_path / "eval", (SAME, "a"), (THIRD, "a"), (OTHER, "b"), (SAME, "b"))

    assert find_prompt_overlap(train, held_out) == {"a": 1, "b": 2}
    assert "3 of 4 held-out pairs have a prompt that is also trained on (a: 1, b: 2)" in caplog.text


def test_different_prompts_do_not_overlap(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    train = cache_of(tmp_path / "train", (SAME, "a"))

    assert find_prompt_overlap(train, cache_of(tmp_path / "eval", (OTHER, "a"))) == {}
    assert find_prompt_overlap(train, None) == {}
    assert caplog.text == ""
