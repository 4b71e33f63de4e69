import json
from pathlib import Path
from typing import Any

import pytest

from rm_ray.errors import InputError
from rm_ray.runs.layout import RUN, read_record
from rm_ray.storage import Storage


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"holds no run: run\.json is missing"):
        read_record(Storage.open(str(tmp_path)))


@pytest.mark.parametrize("written", [[], {}, {"config": []}, {"config": {"run": {}}}, 3])
def test_a_foreign_run_json_is_refused(written: Any, tmp_path: Path):
    (tmp_path / RUN).write_text(json.dumps(written))

    with pytest.raises(InputError, match=r"run\.json is not the record of a run"):
        read_record(Storage.open(str(tmp_path)))
