"""``cluster/slurm.sh`` under a real Slurm: two hosts with a worker each, and the ends of a job."""

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from outcomes import assert_same_outcome, result
from slurm_site import MISSING, SlurmSite, slurm_site, wait_for

from jobs import finish, small_job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]


@pytest.fixture
def site() -> Iterator[SlurmSite]:
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, slurm_site(Path(folder)) as site:
        yield site


def test_a_job_comes_back_from_the_queue_and_goes_on(site: SlurmSite, tmp_path: Path) -> None:
    """At a notice of its end, at that of another job's start, and given again after a cancel."""
    settings = small_job(tmp_path, "slurm", num_steps=400, num_workers=2)
    settings["checkpoint"]["every_steps"] = 0
    recipe = tmp_path / "small.yaml"
    recipe.write_text(json.dumps(settings))

    def submit() -> str:
        return site.run(
            "sbatch", "--parsable", "--nodes=2", "--cpus-per-task=2", "--gpus-per-node=0",
            f"--output={tmp_path}/%j.log", "cluster/slurm.sh", "--recipe", str(recipe),
        )  # fmt: skip

    def printed() -> str:
        log = tmp_path / f"{number}.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def is_in(*states: str) -> bool:
        return site.job(number)["JobState"] in states

    def wait_for_steps(times: int) -> None:
        def steps() -> bool:
            assert not is_in("COMPLETED", "FAILED"), f"{site.job(number)}\n{printed()}"
            return printed().count("first step after") == times

        wait_for(steps, printed)

    def come_back() -> None:
        wait_for(lambda: is_in("PENDING"), printed)
        site.run("scontrol", "update", f"JobId={number}", "StartTime=now")

    def saved() -> list[str]:
        return re.findall(r"ed at step (\d+); its newest checkpoint is from step \1;", printed())

    number = submit()
    wait_for_steps(1)
    site.run("scancel", "--batch", "--signal=USR1", number)  # as --signal does before the end
    come_back()
    wait_for_steps(2)
    assert f"resumed from the checkpoint of step {saved()[0]}" in printed()
    site.run("sbatch", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=true")
    come_back()
    wait_for_steps(3)
    assert f"resumed from the checkpoint of step {saved()[1]}" in printed()
    site.run("scancel", "--batch", "--signal=TERM", number)
    wait_for(lambda: is_in("FAILED"), printed)
    assert (site.job(number)["Restarts"], site.job(number)["ExitCode"]) == ("2", "143:0")
    before, stopped = printed(), saved()[2]

    number = submit()
    wait_for(lambda: is_in("COMPLETED", "FAILED"), printed)
    assert f"resumed from the checkpoint of step {stopped}" in printed(), printed()
    assert "run 'slurm': 400 steps" in printed()
    assert site.job(number)["ExitCode"] == "0:0"
    assert before.count("going back to the queue") == 2
    causes = [attempt["cause"] for attempt in result(tmp_path / "slurm")["attempts"]]
    assert causes == ["terminated", "terminated", "terminated", ""]

    quiet = small_job(tmp_path, "quiet", num_steps=400, num_workers=2)
    finish(quiet, tmp_path / "quiet.log")
    assert_same_outcome(tmp_path / "slurm", tmp_path / "quiet")
