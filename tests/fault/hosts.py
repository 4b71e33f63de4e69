"""Two hosts on this machine, each with its own network, processes, name, and folder for Ray.

They are namespaces of Linux, plugged into a switch that is one too, so that whatever ends or cuts
off a host reaches nothing else of this machine. They know each other by name and ask no server for
names, which gRPC would wait for. Needs root.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from jobs import ROOT, command

TOOLS = ("bridge", "ip", "nsenter", "setpriv", "unshare")

MISSING = ["root"] * (os.geteuid() != 0) + [tool for tool in TOOLS if shutil.which(tool) is None]

_SWITCH = """
set -eu
ip link add name switch type bridge
ip link set dev switch up
ip addr add 10.0.0.254/24 dev switch
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
ip route add unreachable default
echo ready
exec sleep infinity
"""
"""It is also the hosts' gateway, and tells them that nothing lies behind it."""

_HOST = """
set -eu
hostname "$1"
mkdir -p ray tmp /tmp/ray
mount --bind ray /tmp/ray
mount --bind hosts /etc/hosts
: >resolv.conf
mount --bind resolv.conf /etc/resolv.conf
ip link set lo up
echo ready
sleep infinity &
wait
"""

_PLUG_IN = """
set -eu
ip addr add "$1/24" dev eth0
ip link set dev eth0 up
ip route add default via 10.0.0.254
"""


class Host:
    """A host, up as soon as it is made, and plugged in."""

    def __init__(self, folder: Path, number: int, switch: int) -> None:
        self.name, self.address = f"host{number}", f"10.0.0.{number}"
        self.folder = folder / self.name
        self.folder.mkdir()
        self.names = self.folder / "hosts"
        """Its ``/etc/hosts``."""
        self.names.write_text("127.0.0.1 localhost\n10.0.0.1 host1\n10.0.0.2 host2\n")
        self._port, self._mac, self._switch = f"port{number}", f"02:00:00:00:00:0{number}", switch
        self._started: list[subprocess.Popen[bytes]] = []
        self.boot()

    def boot(self) -> None:
        """Start it, for the first time or again, with nothing running on it."""
        apart = ["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--mount-proc"]
        self._unshare = _start(
            [*apart, "--kill-child", "bash", "-c", _HOST, "_", self.name], self.folder
        )
        (init,) = psutil.Process(self._unshare.pid).children()
        self._init = init.pid
        self._at_switch(
            "ip", "link", "add", "name", self._port, "type", "veth",
            "peer", "name", "eth0", "address", self._mac, "netns", str(self._init),
        )  # fmt: skip
        self._at_switch("ip", "link", "set", "dev", self._port, "master", "switch", "up")
        self.run("bash", "-c", _PLUG_IN, "_", self.address)

    def lose(self) -> None:
        """End it without a word to the other."""
        self._at_switch("ip", "link", "delete", "dev", self._port)
        self.shut_down()

    def shut_down(self) -> None:
        """Kill all that is on it."""
        first = psutil.Process(self._init)
        self._unshare.kill()  # and with it the first process of the host, and so every other
        first.wait()
        for process in (self._unshare, *self._started):
            process.wait()
        self._started.clear()

    def cut_off(self) -> None:
        """Let nothing through from or to it, and tell no one."""
        self._at_switch("bridge", "link", "set", "dev", self._port, "state", "0")

    def reconnect(self) -> None:
        """Let everything through again."""
        self._at_switch("bridge", "link", "set", "dev", self._port, "state", "3")

    @property
    def entering(self) -> list[str]:
        """Words before a command, which run it here, from the project's root."""
        into = ["--net", "--pid", "--mount", "--uts", f"--wd={ROOT}"]
        # Temporary files, as of checkpoints that are not yet copied, are no other host's.
        mine = ["env", f"TMPDIR={self.folder / 'tmp'}", "setpriv", "--pdeathsig=KILL", "--"]
        return ["nsenter", f"--target={self._init}", *into, *mine]

    def start(self, *words: str, log: Path, env: dict[str, str]) -> None:
        """Start a command here; it ends with the host, if not before."""
        there = [*self.entering, *words]
        with log.open("ab") as output:
            self._started.append(subprocess.Popen(there, env=env, stdout=output, stderr=output))

    def run(self, *words: str, env: dict[str, str] | None = None) -> str:
        """Run a command here to its end; return what it prints."""
        there = [*self.entering, *words]
        done = subprocess.run(there, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def find(self, name: str) -> list[psutil.Process]:
        """Processes of the host whose command line holds a name."""
        return [p for p in psutil.process_iter() if name in command(p) and self._holds(p.pid)]

    def _holds(self, pid: int) -> bool:
        try:
            return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{self._init}/ns/pid")
        except FileNotFoundError:
            return False

    def _at_switch(self, *words: str) -> None:
        subprocess.run(["nsenter", f"--target={self._switch}", "--net", *words], check=True)


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts, ``host1`` at 10.0.0.1 and ``host2`` at 10.0.0.2; in the end all on them is killed.

    Ray puts sockets into the folder, so its path must be short.
    """
    switch = _start(["unshare", "--net", "bash", "-c", _SWITCH], folder)
    hosts: list[Host] = []
    try:
        for number in (1, 2):
            hosts.append(Host(folder, number, switch.pid))
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            host.shut_down()
        switch.kill()
        switch.wait()


def _start(command: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """Start what says 'ready' once it is."""
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == "ready\n", command
    return process
