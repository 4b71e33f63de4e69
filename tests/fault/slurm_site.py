"""A real Slurm of two hosts on this machine. Needs root and Debian's slurm-wlm.

The ``ray stop`` at the end of ``ray symmetric-run`` ends what is on its host, and nothing else of
this machine.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hosts
from servers import without_ray

PATIENCE_S = 600.0
"""How long a job may take to queue, to start Ray twice, and to train."""

TOOLS = ("munged", "sbatch", "slurmctld", "slurmd")

MISSING = hosts.MISSING + [tool for tool in TOOLS if shutil.which(tool) is None]

_SLURM_CONF = """
ClusterName=test
SlurmctldHost=host1
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=host[1-2] CPUs=4
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=ALL PriorityTier=2
"""


class SlurmSite:
    """Slurm's commands, given on the first host."""

    def __init__(self, folder: Path, first: hosts.Host, second: hosts.Host) -> None:
        self._first = first
        # A home of its own, for the token of Ray that is made there.
        self._env = without_ray() | {"SLURM_CONF": str(folder / "slurm.conf"), "HOME": str(folder)}
        munge = (f"--{what}-file={folder}/munge.{what}" for what in ("key", "pid", "log", "seed"))
        first.run("munged", "--force", f"--socket={folder}/munge.socket", *munge, env=self._env)
        first.run("slurmctld", "-c", "-L", f"{folder}/slurmctld.log", env=self._env)
        for host in (first, second):
            log = folder / f"{host.name}.log"
            host.start("slurmd", "-D", "-N", host.name, log=log, env=self._env)

    def run(self, *words: str) -> str:
        """Give a command; return what it prints."""
        return self._first.run(*words, env=self._env)

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job: JobState, Restarts, ExitCode and more."""
        words = self.run("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def is_ready(self) -> bool:
        """Tell whether both hosts wait for jobs."""
        return self.run("sinfo", "--noheader", "--partition=main", "--format=%T %D") == "idle 2"


@contextmanager
def slurm_site(folder: Path) -> Iterator[SlurmSite]:
    """Start Slurm; in the end kill all that is on its hosts."""
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(_SLURM_CONF.format(folder=folder))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    with hosts.two_hosts(folder) as both:
        site = SlurmSite(folder, *both)
        wait_for(site.is_ready, lambda: (folder / "slurmctld.log").read_text())
        yield site


def wait_for(condition: Callable[[], Any], log: Callable[[], str]) -> Any:
    """Return what a condition gives once it is true; fail with the log where it never is."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.5)
    raise AssertionError(log())
