"""Checks before a build; ``tests/integration/test_data.py`` builds caches with Ray Data."""

import json
from pathlib import Path
from typing import Any

import pytest

from rm_ray.config.sections.data import DataConfig
from rm_ray.data.cache.cache_build import FIRST_ROWS, build_token_cache
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.storage import Storage

PAIR = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}


def build(rows: list[dict[str, Any]], folder: Path, **settings: Any) -> None:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    storage = Storage.open(str(folder / "storage"))
    config = DataConfig(**settings)
    build_token_cache([str(path)], config, load_tokenizer("builtin"), seed=0, storage=storage)


@pytest.mark.parametrize("place", [0, FIRST_ROWS - 1])
def test_a_source_that_would_lose_a_column_is_refused_before_anything_is_written(
    place: int, tmp_path: Path
):
    rows: list[dict[str, Any]] = [PAIR] * FIRST_ROWS
    rows[place] = {**PAIR, "context": "The sky is blue."}

    with pytest.raises(InputError, match=r"'context' .*would not be trained on"):
        build(rows, tmp_path)

    assert not (tmp_path / "storage").exists()


def test_a_source_without_pairs_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(InputError, match="must have the columns 'chosen' and 'rejected'"):
        build([{"prompt": "Why?"}], tmp_path)

    assert not (tmp_path / "storage").exists()
