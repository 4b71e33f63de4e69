from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from ray.train import CheckpointUploadMode

from rm_ray.storage import Storage
from rm_ray.worker.context import RayRankContext


@pytest.fixture
def context(tmp_path: Path) -> RayRankContext:
    return RayRankContext(run_folder=Storage.open(str(tmp_path)).folder("run"))


def test_a_checkpoint_is_reported_with_its_upload_function(
    context: RayRankContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reports: list[Any] = []
    monkeypatch.setattr(
        ray.train,
        "report",
        lambda metrics, **how: reports.append(SimpleNamespace(metrics=metrics, **how)),
    )
    folder = tmp_path / "staged" / "checkpoint_00000002_0001"
    folder.mkdir(parents=True)
    uploaded: list[Path] = []
    context.report({"step": 2}, folder, uploaded.append)
    (report,) = reports
    assert report.metrics == {"step": 2}
    assert report.checkpoint_dir_name == folder.name
    assert report.checkpoint_upload_mode == CheckpointUploadMode.ASYNC
    assert report.delete_local_checkpoint_after_upload
    assert uploaded == []  # not before Ray's thread calls it
    there = report.checkpoint_upload_fn(report.checkpoint, folder.name)
    assert uploaded == [folder]
    assert there.path == context.run_folder.join(folder.name)


@pytest.mark.parametrize(("info", "expected"), [(None, False), (SimpleNamespace(), True)])
def test_ray_s_preemption_info_decides_whether_a_rank_is_preempted(
    context, info, expected, monkeypatch
):
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: info)
    assert context.is_preempted() is expected
