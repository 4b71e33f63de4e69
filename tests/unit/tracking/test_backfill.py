from pathlib import Path

import pytest
from made_run import MadeRun, make_run

from rm_ray.errors import InputError
from rm_ray.tracking.backfill import read_journal


@pytest.fixture
def made(tmp_path: Path) -> MadeRun:
    made = make_run(tmp_path)
    made.save(10)
    made.save(20)
    return made


def steps(made: MadeRun) -> list[int]:
    return [record.step for record in read_journal(made.run).records]


def test_the_journal_of_a_run_under_way_is_that_of_its_newest_checkpoint(made):
    assert steps(made) == [10, 20]


def test_a_checkpoint_that_is_half_copied_has_no_journal(made):
    newest = Path(made.folder) / "checkpoint_00000020_0001"
    journal = newest / "history.jsonl"
    journal.write_text(journal.read_text().splitlines(keepends=True)[0])
    assert steps(made) == [10]
    (newest / "manifest.json").unlink()
    assert steps(made) == [10]


def test_a_run_without_a_whole_checkpoint_has_no_journal_yet(tmp_path):
    with pytest.raises(InputError, match="no metrics yet"):
        read_journal(make_run(tmp_path).run)
