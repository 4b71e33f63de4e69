"""Records of a run's versions on the Hub."""

from pathlib import Path

from rm_ray.runs.versions import Version, Versions
from rm_ray.storage import Storage

LOSS = "eval/rm/loss"


def version(step: int, loss: float = 0.5, state: str = "published") -> Version:
    return Version(step=step, tag=f"step-{step:08d}", state=state, metrics={LOSS: loss})


def test_an_unreadable_record_is_skipped(tmp_path: Path, caplog):
    versions = Versions(run_folder=Storage.open(str(tmp_path)), repo_id="me/model")
    versions.write(version(20))
    versions.folder.write_text("step-00000010.json", "")
    versions.folder.write_text("step-00000030.json", '{"step": 30, "of": "newer code"}')
    assert versions.read() == {20: version(20)}
    assert caplog.text.count("is unreadable, skipping it") == 2


def test_records_survive_a_round_trip(tmp_path: Path):
    versions = Versions(run_folder=Storage.open(str(tmp_path)), repo_id="me/model")
    assert versions.read() == {}
    assert versions.main is None
    for each in (version(10, state="waiting"), version(20)):
        versions.write(each)
    versions.write_main("step-00000020")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.safetensors").write_bytes(b"weights")
    versions.keep_files(10, tmp_path / "files")
    assert versions.read() == {10: version(10, state="waiting"), 20: version(20)}
    assert versions.main == "step-00000020"
    assert versions.files(10).read_text("model.safetensors") == "weights"
    versions.delete_files(10)
    versions.delete_files(20)
    assert not versions.folder.exists("step-00000010")
    other = Versions(run_folder=Storage.open(str(tmp_path)), repo_id="me/other")
    assert other.read() == {}
