from pathlib import Path

import pytest

from rm_ray.errors import InputError
from rm_ray.scoring.batch import see_all
from rm_ray.scoring.chunks import PARTS
from rm_ray.storage import Storage


def test_files_that_other_machines_kept_to_themselves_are_missed(tmp_path: Path):
    folder = Storage.open(str(tmp_path))
    for name in ("a.jsonl", "b.jsonl"):
        folder.write_text(f"{PARTS}/{name}", "{}\n")

    see_all(folder, {"a.jsonl", "b.jsonl"})
    with pytest.raises(InputError, match=r"1 of 3 chunks were scored, and are not in .* --output"):
        see_all(folder, {"a.jsonl", "b.jsonl", "c.jsonl"})
