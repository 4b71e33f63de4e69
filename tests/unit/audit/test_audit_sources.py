"""What an audit reads."""

import json
from pathlib import Path

import pytest

from rm_ray.audit.audit_sources import open_sources
from rm_ray.config.sections.data import DataConfig
from rm_ray.data.sources.mixture import mixture_fingerprint, select
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.errors import InputError
from rm_ray.storage import Storage


def write(path: Path, *rows: dict[str, object]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_sets_and_exclusions_are_opened_by_the_rules_of_the_data(tmp_path: Path):
    pairs = write(tmp_path / "pairs.jsonl", {"prompt": "Why?", "best": "So.", "rejected": "No."})
    bench = write(tmp_path / "bench.jsonl", {"prompt": "Who?"}, {"prompt": "Why?"})
    out = write(tmp_path / "out.jsonl", {"origin": pairs, "row": 0})
    config = DataConfig(columns=("chosen=best",), exclude=(out,))
    folder = Storage.open(str(tmp_path / "audit"))
    opened = open_sources([pairs], {"bench": [bench]}, config, folder, seed=0)
    assert opened.origins == (pairs,)
    assert opened.rules == config.rules
    assert opened.sets.rows == {"bench": 2}
    assert opened.data_hash == mixture_fingerprint(
        select([SourceSpec.parse(pairs)], 0, rules=config.rules)
    )
    assert opened.exclusions.places.tolist() == [0]


def test_files_that_the_audit_itself_would_replace_are_refused(tmp_path: Path):
    pairs = write(tmp_path / "pairs.jsonl", {"prompt": "Why?", "chosen": "So.", "rejected": "No."})
    folder = Storage.open(str(tmp_path / "audit"))
    own = write(tmp_path / "audit" / "exclude" / "duplicates.jsonl", {"origin": pairs, "row": 0})
    with pytest.raises(InputError, match="in --output, where this audit would replace it"):
        open_sources([pairs], {}, DataConfig(exclude=(own,)), folder, seed=0)
    elsewhere = Storage.open(str(tmp_path / "other"))
    assert open_sources([pairs], {}, DataConfig(exclude=(own,)), elsewhere, seed=0).sets.rows == {}
