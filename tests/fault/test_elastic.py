"""A run on a cluster whose machines come and go: the same pairs in the same steps."""

import os
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from outcomes import assert_same_losses, result
from servers import RAY, RayMachines

from jobs import INJECT, PATIENCE_S, assert_tidy, finish, running, small_job

pytestmark = pytest.mark.slow


ONE_ON_EACH = {"num_workers": "1-2", "cpus_per_worker": 2}
"""On a head of 3 CPUs, of which Ray Data needs one, and a node of 2."""


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_run_shrinks_and_grows_with_its_cluster(zero_stage: int, tmp_path: Path) -> None:
    """Two workers, one when a machine is lost, two when one comes: equal losses at every step."""
    settings = {
        name: small_job(tmp_path, name, num_steps=400, num_workers=2) for name in ("fixed", "free")
    }
    for each in settings.values():
        each["cluster"]["zero_stage"] = zero_stage
        each["checkpoint"]["every_steps"] = 20  # each waits for Ray Train to look, every 2 s
        # Without them the rounding of a zero becomes a step, and grows over hundreds of them.
        each["optimizer"] |= {"eps": 1e-5, "learning_rate": 1e-4}
    finish(settings["fixed"], tmp_path / "fixed.log")
    settings["free"]["cluster"] |= ONE_ON_EACH
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, ExitStack() as stack:
        machines = RayMachines(Path(folder))
        stack.enter_context(machines.node(num_cpus=3, is_head=True))
        second = ExitStack()
        second.enter_context(machines.node(num_cpus=2))
        machines.wait_for_nodes(2)
        with running(settings["free"], tmp_path / "free.log", **machines.environment) as job:
            job.wait_for_checkpoint(2)
            second.close()
            job.wait_for_steps_of_attempt(2)
            stack.enter_context(machines.node(num_cpus=2))
            job.wait_for_steps_of_attempt(3)
            assert job.process.wait(2 * PATIENCE_S) == 0, job.printed
        attempts = result(job.folder)["attempts"]
        assert [attempt["workers"] for attempt in attempts] == [2, 1, 2]
        assert [attempt["cause"] for attempt in attempts[1:]] == ["resized", ""]
        assert attempts[2]["first_step"] == attempts[1]["last_step"], "no step is thrown away"
    assert_tidy(job.folder)
    assert_same_losses(job.folder, tmp_path / "fixed")


def drain(machines: RayMachines, *, num_cpus: int) -> None:
    """Announce that the node with so many CPUs is about to be taken away, as a cloud does."""
    environment = os.environ | machines.environment
    is_it = f"n['Resources'].get('CPU') == {num_cpus}"
    node = machines.ask(f"*[n['NodeID'] for n in nodes if {is_it}]")
    subprocess.run(
        [
            RAY, "drain-node", "--address", environment["RAY_ADDRESS"], "--node-id", node,
            "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot instance",
            "--deadline-remaining-seconds", "3600",
        ],
        env=environment,
        check=True,
    )  # fmt: skip


def test_a_preemption_notice_leads_to_a_checkpoint(tmp_path: Path) -> None:
    settings = small_job(tmp_path, "preempted", num_steps=400)
    settings["cluster"] |= ONE_ON_EACH
    settings["checkpoint"]["every_steps"] = 0
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, ExitStack() as stack:
        machines = RayMachines(Path(folder))
        stack.enter_context(machines.node(num_cpus=3, is_head=True))
        stack.enter_context(machines.node(num_cpus=2))
        machines.wait_for_nodes(2)
        with running(settings, tmp_path / "preempted.log", **machines.environment) as job:
            job.wait_for_steps_of_attempt(1)
            drain(machines, num_cpus=2)
            assert job.process.wait(2 * PATIENCE_S) == 0, job.printed
        first, second = result(job.folder)["attempts"]
        assert (first["workers"], first["cause"], second["workers"]) == (2, "preempted", 1)
        assert second["first_step"] == first["last_step"] > 0


def test_a_preemption_notice_does_not_wait_for_the_end_of_an_evaluation(tmp_path: Path) -> None:
    settings = small_job(tmp_path, "evaluating", num_steps=30)
    settings["data"]["eval"] = ["builtin:test=320"]  # twenty steps, of 3 s each
    settings["cluster"] |= ONE_ON_EACH
    settings["checkpoint"]["every_steps"] = 0
    mark = tmp_path / "dawdles"
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, ExitStack() as stack:
        machines = RayMachines(Path(folder))
        slow = {"PYTHONPATH": INJECT, "DAWDLES": str(mark)}
        stack.enter_context(machines.node(num_cpus=3, is_head=True, **slow))
        stack.enter_context(machines.node(num_cpus=2, **slow))
        machines.wait_for_nodes(2)
        environment = machines.environment | slow
        with running(settings, tmp_path / "evaluating.log", **environment) as job:
            job.wait_for(mark.exists, "an evaluation")
            drain(machines, num_cpus=2)
            job.wait_for(lambda: "attempt 1 ended at step 20: preempted" in job.printed, "a stop")
            assert "evaluation at step" not in job.printed
