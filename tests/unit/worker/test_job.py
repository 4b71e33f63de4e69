from pathlib import Path

from plain_training import PlainRank, small_config


def test_a_job_names_its_attempt_and_shows_no_data(tmp_path: Path):
    job = PlainRank.make(tmp_path, small_config(tmp_path), attempt=3).job
    assert repr(job) == str(job) == "attempt 3 at run 'plain'"
