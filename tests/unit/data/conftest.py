import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rm_ray.data.tokenization import load_tokenizer

SHARED_DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Finds a file or folder of the real data, or skips the test where it is absent."""

    def find(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.exists():
            pytest.skip(f"the real pairs are not here: no {path}")
        return path

    return find


@pytest.fixture(scope="session")
def real_rows(shared_data: Callable[[str], Path]) -> Callable[[str], Iterator[dict[str, Any]]]:
    """Reads the rows of a JSON Lines file of the real data."""

    def read(name: str) -> Iterator[dict[str, Any]]:
        path = shared_data(name)
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            yield from map(json.loads, lines)

    return read


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The built-in tokenizer; tests that change one load their own."""
    return load_tokenizer("builtin")
