import os
import subprocess
import sys
from pathlib import Path

import pytest

from rm_ray.importing import ROOT, share_package


@pytest.mark.parametrize("path", [None, "", "/somewhere/first", f"/somewhere/first:{ROOT}"])
def test_processes_started_anywhere_find_the_package(
    path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONSAFEPATH", "")  # restored after the test
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if path is not None:
        monkeypatch.setenv("PYTHONPATH", path)

    share_package()
    share_package()

    paths = os.environ["PYTHONPATH"].split(":")
    assert paths == (["/somewhere/first", ROOT] if path else [ROOT])
    subprocess.run(
        [sys.executable, "-c", "import rm_ray.config.train_config"], cwd=tmp_path, check=True
    )
