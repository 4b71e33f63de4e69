import json
import re
from pathlib import Path

import pytest

from rm_ray.commands.status import main
from rm_ray.runs.attempts import Attempt, write_attempts
from rm_ray.storage import Storage


def make_run(folder: Path, *, updated: float) -> None:
    run_folder = Storage.open(str(folder))
    run_folder.write_json("run.json", {"steps": 200, "config": {}})
    attempt = Attempt(number=1, began=updated - 60, updated=updated, first_step=0, step=50)
    write_attempts(run_folder, [attempt])


def test_the_runs_of_a_storage_path_are_listed_in_a_table(tmp_path: Path, capsys):
    make_run(tmp_path / "one", updated=1_000.0)
    assert main([str(tmp_path)]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["run", "state", "step"]
    assert line.split()[:3] == ["one", "running", "50/200"]


def test_json_has_one_object_per_run(tmp_path: Path, capsys):
    make_run(tmp_path / "one", updated=1_000.0)
    make_run(tmp_path / "two", updated=2_000.0)
    assert main([str(tmp_path), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["name"]: line["step"] for line in lines} == {"one": 50, "two": 50}


def test_an_empty_storage_is_reported(tmp_path: Path, capsys):
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"there are no runs in {tmp_path}\n"


def test_an_unknown_storage_scheme_exits_with_2(capsys):
    assert main(["nosuch://x"]) == 2
    assert re.match(r"error: .*nosuch://x", capsys.readouterr().out)


@pytest.mark.parametrize("seconds", ["-1", "0", "nan"])
def test_watch_needs_a_positive_number_of_seconds(tmp_path: Path, capsys, seconds: str):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--watch", seconds])
    assert f"--watch {seconds}: must be more than 0 seconds" in capsys.readouterr().err
