import json
from pathlib import Path
from typing import Any

import pytest

from rm_ray.errors import InputError
from rm_ray.runs.layout import FORMAT, RUN, read_record, refuse_other_format
from rm_ray.storage import Storage


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"holds no run: run\.json is missing"):
        read_record(Storage.open(str(tmp_path)))


@pytest.mark.parametrize("written", [[], {}, {"config": []}, {"config": {"run": {}}}, 3])
def test_a_foreign_run_json_is_refused(written: Any, tmp_path: Path):
    (tmp_path / RUN).write_text(json.dumps(written))

    with pytest.raises(InputError, match=r"run\.json is not the record of a run"):
        read_record(Storage.open(str(tmp_path)))


@pytest.mark.parametrize("form", [FORMAT, FORMAT + 1, None])
def test_the_record_of_a_run_is_read_whatever_the_format_of_its_checkpoints(tmp_path: Path, form):
    record = {"config": {"run": {}, "mlflow": {}, "hub": {}}, "format": form}
    (tmp_path / RUN).write_text(json.dumps(record))
    assert read_record(Storage.open(str(tmp_path))) == record


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({}, "1"),
        ({"format": 3}, "3"),
        ({"format": "2"}, "'2'"),
        ({"format": None, "versions": None}, "None"),
    ],
)
def test_checkpoints_of_another_format_are_refused_with_what_can_be_done(record, found):
    with pytest.raises(InputError, match=rf"have format {found}, and .* format {FORMAT}\. Conti"):
        refuse_other_format(record, "'here'")
    with pytest.raises(InputError, match="an unknown commit") as caught:
        refuse_other_format(record, "'here'", is_finished=True)
    assert "its export can be used as it is" in str(caught.value)
    assert "ontinue" not in str(caught.value)
    refuse_other_format({"format": FORMAT}, "'here'")
