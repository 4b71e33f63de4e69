import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rm_ray.importing import ROOT, hidden, share_package


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


def test_a_hidden_package_cannot_be_imported_meanwhile_and_an_imported_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "slow_package.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="slow_package"), hidden("slow_package"):
        importlib.import_module("slow_package")
    found = importlib.import_module("slow_package")
    with hidden("slow_package"):
        assert importlib.import_module("slow_package") is found
    assert sys.modules["slow_package"] is found
