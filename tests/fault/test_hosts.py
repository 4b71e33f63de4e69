"""Training over two hosts whose link fails, and one of which goes, as networks and machines do."""

import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hosts import MISSING, Host, two_hosts
from outcomes import assert_same_losses, assert_same_outcome, result
from servers import RAY, RayMachines, without_ray

from jobs import PATIENCE_S, Job, finish, running, small_job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]

NUM_CPUS = {"host1": 3, "host2": 2}
"""Room for a worker of 2 CPUs on each, and for Ray Data."""

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
"""There are fewer cores than threads."""


def job_of_two(
    storage: Path, name: str, *, num_steps: int = 60, num_workers: int | str = 2
) -> dict[str, Any]:
    """A job that gets one worker on each host."""
    settings = small_job(storage, name, num_steps=num_steps)
    settings["cluster"] = {"num_workers": num_workers, "cpus_per_worker": 2}
    settings["checkpoint"]["every_steps"] = 10  # each waits for Ray Train to look, every 2 s
    # Without them the rounding of a zero becomes a step, and grows, where one host trains alone.
    settings["optimizer"] |= {"eps": 1e-5, "learning_rate": 1e-4}
    return settings


@dataclass
class Cluster:
    """A Ray of two hosts, on each of which something starts its node again when that ends."""

    first: Host
    second: Host
    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(32))

    @property
    def environment(self) -> dict[str, str]:
        return {
            "RAY_ADDRESS": f"{self.first.address}:6379",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            **PASSIVE,
        }

    def join(self, host: Host) -> None:
        """Start a host's node, now and whenever it has ended."""
        role = ["--head", "--port=6379"] if host is self.first else ["--address=10.0.0.1:6379"]
        start = [RAY, "start", *role, "--block", "--disable-usage-stats"]
        again = 'while true; do "$@"; sleep 1; done'
        host.start(
            "bash", "-c", again, "_", *start, f"--num-cpus={NUM_CPUS[host.name]}",
            log=self.folder / f"{host.name}.log", env=without_ray() | self.environment,
        )  # fmt: skip

    def count_nodes(self) -> int:
        """How many nodes Ray holds to be alive; 0 before it answers."""
        code = (
            "import ray; ray.init(log_to_driver=False, logging_level='ERROR');"
            "print(sum(node['Alive'] for node in ray.nodes()))"
        )
        try:
            printed = self.first.run(sys.executable, "-c", code, env=os.environ | self.environment)
        except AssertionError:
            return 0
        return int(printed.split()[0])  # Ray may tell of a node after it

    def wait_for_nodes(self, count: int) -> None:
        """Wait until Ray holds so many to be alive."""
        deadline = time.monotonic() + PATIENCE_S
        while self.count_nodes() != count:
            assert time.monotonic() < deadline, f"there were never {count} nodes"

    @contextmanager
    def training(self, settings: dict[str, Any]) -> Iterator[Job]:
        """The command, given on the first host."""
        log = Path(settings["run"]["storage_path"]) / f"{settings['run']['name']}.log"
        with running(settings, log, within=self.first.entering, **self.environment) as job:
            yield job


class Times:
    """A stopwatch that tells what it measures (``pytest -s``)."""

    def start(self, what: str) -> None:
        self._what, self._since = what, time.monotonic()

    def say(self, what: str) -> float:
        seconds = time.monotonic() - self._since
        print(f"\n{self._what}, {what} after {seconds:.0f} s", flush=True)
        return seconds


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="hosts-") as folder, two_hosts(Path(folder)) as hosts:
        for host in hosts:
            # As Debian writes it: what a host calls itself is not where others reach it.
            host.names.write_text(f"127.0.0.1 localhost\n127.0.1.1 {host.name}\n")
        cluster = Cluster(*hosts, Path(folder))
        cluster.join(cluster.first)
        cluster.join(cluster.second)
        cluster.wait_for_nodes(2)
        yield cluster


def quiet_run(storage: Path, num_steps: int) -> Path:
    """The folder of a run on one host that was left alone."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        machine = RayMachines(Path(folder))
        with machine.node(num_cpus=sum(NUM_CPUS.values()), is_head=True, **PASSIVE):
            machine.wait_for_nodes(1)
            settings = job_of_two(storage, "quiet", num_steps=num_steps)
            finish(settings, storage / "quiet.log", **machine.environment)
    return storage / "quiet"


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quiet_run(tmp_path_factory.mktemp("quiet"), 60)


def test_two_hosts_train_as_one(cluster: Cluster, quiet: Path) -> None:
    with cluster.training(job_of_two(quiet.parent, "together")) as job:
        job.wait_for_steps_of_attempt(1)
        for host in (cluster.first, cluster.second):
            assert len(host.find("RayTrainWorker")) == 1
        # With it on the other host, the watch would not see that go.
        assert cluster.first.find("ray::Channel")
        assert job.wait() == 0, job.printed
    assert_same_outcome(job.folder, quiet)


def test_a_link_that_is_cut_for_a_moment_is_waited_for(cluster: Cluster, quiet: Path) -> None:
    with cluster.training(job_of_two(quiet.parent, "moment")) as job:
        job.wait_for_checkpoint(2)
        cluster.second.cut_off()
        time.sleep(10)
        cluster.second.reconnect()
        assert job.wait() == 0, job.printed
    assert_same_outcome(job.folder, quiet)
    assert len(result(job.folder)["attempts"]) == 1


@pytest.mark.parametrize("by", ["the watch", "ray"])
def test_a_link_that_is_cut_until_the_host_is_given_up(
    by: str, cluster: Cluster, quiet: Path, times: Times
) -> None:
    """By the watch, the host stays in the cluster if all is well; by Ray, its node ends."""
    with cluster.training(job_of_two(quiet.parent, by.replace(" ", "-"))) as job:
        job.wait_for_checkpoint(2)
        cluster.second.cut_off()
        times.start("cut")
        job.wait_for(lambda: "silent for 30 s" in job.printed, "the watch")
        assert times.say("seen") < 60
        if by == "ray":
            cluster.wait_for_nodes(1)
            times.say("given up")
            job.wait_for(lambda: "attempt 1 ended" in job.printed, "the end of the attempt")
            assert times.say("ended") < 120
        cluster.second.reconnect()
        times.start("reconnected")
        job.wait_for_steps_of_attempt(2)
        times.say("training")
        assert job.wait() == 0, job.printed
    assert_same_outcome(job.folder, quiet)
    assert "silent for 30 s" in result(job.folder)["attempts"][0]["cause"]


def test_a_host_that_is_lost_is_done_without_until_it_is_back(
    cluster: Cluster, tmp_path: Path, times: Times
) -> None:
    """Two workers, one, and two again: equal losses at every step."""
    settings = job_of_two(tmp_path, "lost", num_steps=200, num_workers="1-2")
    with cluster.training(settings) as job:
        job.wait_for_checkpoint(2)
        cluster.second.lose()
        times.start("lost")
        job.wait_for(lambda: "attempt 1 ended" in job.printed, "the end of the attempt")
        assert times.say("ended") < 120
        job.wait_for_steps_of_attempt(2)
        times.say("training")
        cluster.second.boot()
        times.start("booted")
        cluster.join(cluster.second)
        job.wait_for_steps_of_attempt(3)
        times.say("training")
        assert job.wait() == 0, job.printed
    first, *between, last = result(job.folder)["attempts"]
    assert (first["workers"], last["workers"]) == (2, 2)
    assert [attempt["workers"] for attempt in between if attempt["last_step"]] == [1]
    assert between[-1]["cause"] == "resized"
    assert last["first_step"] == between[-1]["last_step"], "no step is thrown away"
    assert_same_losses(job.folder, quiet_run(tmp_path, 200))
