"""A real Slurm of two hosts on this machine, each with its own network, processes and name.

The hosts are namespaces of Linux, so that the ``ray stop`` at the end of ``ray symmetric-run`` ends
what is on its host, and nothing else of this machine. Needs root and Debian's slurm-wlm.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from servers import without_ray

from jobs import ROOT, command

PATIENCE_S = 600.0
"""How long a job may take to queue, to start Ray twice, and to train."""

TOOLS = ("ip", "munged", "nsenter", "sbatch", "slurmctld", "slurmd", "unshare")

MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]

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

_SITE = """
set -eu
mount --bind hosts /etc/hosts
mkdir -p /tmp/ray
ip link set lo up
ip link add name host1 type veth peer name host2
munged --force --key-file="$PWD/munge.key" --socket="$PWD/munge.socket" \\
    --pid-file="$PWD/munge.pid" --log-file="$PWD/munge.log" --seed-file="$PWD/munge.seed"
for n in 1 2; do
    unshare --net --pid --mount --uts --fork --mount-proc --kill-child bash host.sh $n &
    until init="$(pgrep -P $!)"; do sleep 0.1; done
    ip link set dev host$n netns "$init"
done
wait
"""

_HOST = """
set -eu
hostname host$1
mkdir ray$1
mount --bind ray$1 /tmp/ray
until ip link set dev host$1 up 2>/dev/null; do sleep 0.1; done
ip link set lo up
ip addr add 10.0.0.$1/24 dev host$1
[ $1 = 2 ] || slurmctld -c -L "$PWD/slurmctld.log"
slurmd -D -N host$1 -L "$PWD/slurmd$1.log"
"""


@dataclass(frozen=True)
class SlurmSite:
    """Slurm's commands, given on the first host."""

    folder: Path
    slurmd: int
    """A process of the first host."""

    def run(self, *words: str) -> str:
        """Give a command; return what it prints."""
        enter = ["nsenter", f"--target={self.slurmd}", "--net", "--mount", "--uts", f"--wd={ROOT}"]
        done = subprocess.run(
            [*enter, *words], env=_environment(self.folder), capture_output=True, text=True
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job: JobState, Restarts, ExitCode and more."""
        words = self.run("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


@contextmanager
def slurm_site(folder: Path) -> Iterator[SlurmSite]:
    """Start Slurm; in the end kill all that is on its hosts."""
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(_SLURM_CONF.format(folder=folder))
    (folder / "hosts").write_text("127.0.0.1 localhost\n10.0.0.1 host1\n10.0.0.2 host2\n")
    (folder / "host.sh").write_text(_HOST)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    apart = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    with (folder / "site.log").open("wb") as log:
        site = subprocess.Popen(
            [*apart, "bash", "-c", _SITE],
            cwd=folder,
            env=_environment(folder),
            stdout=log,
            stderr=log,
        )
    try:
        yield wait_for(lambda: _started(site, folder), lambda: (folder / "site.log").read_text())
    finally:
        there = psutil.Process(site.pid).children(recursive=True)
        site.kill()  # and with it the first process of each namespace, and so the others in it
        site.wait()
        psutil.wait_procs(there, timeout=30)


def wait_for(condition: Callable[[], Any], log: Callable[[], str]) -> Any:
    """Return what a condition gives once it is true; fail with the log where it never is."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.5)
    raise AssertionError(log())


def _started(site: subprocess.Popen[bytes], folder: Path) -> SlurmSite | None:
    assert site.poll() is None, (folder / "site.log").read_text()
    for process in psutil.Process(site.pid).children(recursive=True):
        if command(process).startswith("slurmd -D -N host1"):
            found = SlurmSite(folder, process.pid)
            states = found.run("sinfo", "--noheader", "--partition=main", "--format=%T %D")
            return found if states == "idle 2" else None
    return None


def _environment(folder: Path) -> dict[str, str]:
    """A home of its own, for the token of Ray that is made there."""
    return without_ray() | {"SLURM_CONF": str(folder / "slurm.conf"), "HOME": str(folder)}
