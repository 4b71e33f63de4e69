import logging
from pathlib import Path

from made_run import make_run

from rm_ray.audit.run_summary import write_to_run

COUNTS = {"duplicates": 0, "mislabelled": 7}


def test_counts_of_the_run_s_own_rows_are_left_in_its_folder(tmp_path: Path):
    made = make_run(tmp_path)
    assert write_to_run(made.folder, made.config.data.train, COUNTS, num_rows=24)
    found = made.run.read_json("audit.json")
    assert found == {"rows": 24, "findings": COUNTS}


def test_an_audit_of_other_rows_says_nothing_of_the_run(tmp_path: Path, caplog):
    made = make_run(tmp_path)
    with caplog.at_level(logging.INFO):
        assert not write_to_run(made.folder, ("other.jsonl",), COUNTS, num_rows=24)
    assert "which was trained on builtin:train" in caplog.text
    assert made.run.read_json("audit.json") is None


def test_a_model_without_a_run_gets_nothing(tmp_path: Path):
    export = tmp_path / "export"
    export.mkdir()
    assert not write_to_run(str(export), ("builtin:train",), COUNTS, num_rows=24)
    assert not write_to_run("someone/rewards", ("builtin:train",), COUNTS, num_rows=24)
    assert [*export.iterdir()] == []
